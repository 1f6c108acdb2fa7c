"""The core and the emulated CUDA kernels, built once for all test files."""

import platform

import emulated_cuda
import pytest
from native_core import Core

from keras_internimage.custom_ops import build
from keras_internimage.ops import native

X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = ("sse2", "avx2", "avx512") if X86 else ("generic",)


@pytest.fixture(scope="session")
def library():
    if native.mode() == "off":
        pytest.skip(f"{native.VARIABLE}=off")
    try:
        path = build.core_library()
    except build.KernelsUnavailable as error:
        if native.mode() == "require":
            raise
        pytest.skip(f"the kernels cannot be built here: {error}")
    return Core(path)


@pytest.fixture(params=ISAS)
def core(request, library):
    best = library.isa
    if not library.set_isa(request.param):
        pytest.skip(f"not on this processor, which has {best}")
    yield library
    library.set_isa(best)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return emulated_cuda.build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def small_grids(tmp_path_factory):
    """What large batches and images need, and what only newer GPUs have."""
    constants = {"kMaxGridX": "2", "kMaxGridY": "3", "kManyTiles": "1", "kMaxCoordinate": "3"}
    return emulated_cuda.build(tmp_path_factory.mktemp("cuda"), architecture=900, **constants)
