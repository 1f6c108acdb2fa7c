"""What the CUDA library tells of itself, and what follows for a GPU."""

import dataclasses
import shutil
import subprocess

import pytest

from keras_internimage.custom_ops import libraries, toolchain
from keras_internimage.ops.native import cuda

pytestmark = pytest.mark.any_backend

SOURCE = libraries.SOURCES / "core" / "cuda_info.cu"
LIBRARY = cuda.Library(
    code=((7, 5), (8, 0), (9, 0), (10, 0)), ptx=(10, 0), runtime=(13, 0), driver=(13, 0)
)
HEADER = """
enum cudaError_t { cudaSuccess, cudaErrorOther };
inline cudaError_t cudaRuntimeGetVersion(int* version) { *version = 13020; return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { *version = DRIVER; return RESULT; }
"""


def compiled(folder, driver, result="cudaSuccess", *more):
    """The functions in a library, for a driver that is pretended."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    (folder / "cuda_runtime_api.h").write_text(HEADER)
    path = folder / libraries.CUDA_CORE
    told = "-DDCNV3_ARCHITECTURES=sm_75_sm_80_sm_120_compute_120"
    defined = [told, f"-DDRIVER={driver}", f"-DRESULT={result}", *more]
    command = ["g++", "-shared", "-fPIC", "-fvisibility=hidden", *defined, "-I", str(folder)]
    subprocess.run([*command, "-x", "c++", str(SOURCE), "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize(
    "driver, result, expected",
    [(12080, "cudaSuccess", (12, 8)), (0, "cudaSuccess", None), (13000, "cudaErrorOther", None)],
)
def test_what_it_tells(tmp_path, driver, result, expected):
    assert cuda.read(compiled(tmp_path, driver, result)) == cuda.Library(
        code=((7, 5), (8, 0), (12, 0)), ptx=(12, 0), runtime=(13, 2), driver=expected
    )


def test_an_nvcc_later_than_its_runtime(tmp_path):
    """What PTX asks of a driver is a matter of the compiler."""
    nvcc = ("-D__CUDACC_VER_MAJOR__=13", "-D__CUDACC_VER_MINOR__=5")
    assert cuda.read(compiled(tmp_path, 13000, "cudaSuccess", *nvcc)).runtime == (13, 5)


def test_a_library_of_another_version(tmp_path):
    source = tmp_path / "old.cc"
    source.write_text('extern "C" int dcnv3_cuda_forward() { return 0; }\n')
    path = tmp_path / libraries.CUDA_CORE
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    with pytest.raises(OSError, match="of another version of keras_internimage"):
        cuda.read(path)


@pytest.mark.skipif(not toolchain.nvcc_paths(), reason="needs nvcc")
def test_nvcc_compiles_and_links_it(tmp_path):
    """By the commands of a build, but for the kernels, which take longer."""
    nvcc = toolchain.find_nvcc()
    library = libraries.cuda_core(toolchain.find_compiler(), nvcc)
    ((command, name),) = [pair for pair in library.objects if pair[1] == "cuda_info.o"]
    toolchain.run([*command, "-o", tmp_path / name], tmp_path)
    path = tmp_path / library.name
    toolchain.run([*library.link, tmp_path / name, "-o", path, *library.libraries], tmp_path)
    read = cuda.read(path)
    assert f"Build cuda_{read.runtime[0]}.{read.runtime[1]}" in nvcc.version
    assert (8, 0) in read.code and read.ptx == max(c for c in read.code if c <= (10, 0))
    # Without a driver nothing is raised, and nothing runs.
    if read.driver is None:
        assert "there is no NVIDIA driver" in read.why_not((8, 0))


@pytest.mark.parametrize(
    "capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
)
def test_gpus_that_it_has_code_for(capability):
    assert LIBRARY.why_not(capability) is None


@pytest.mark.parametrize("capability", [(5, 2), (7, 0), (7, 2)])
def test_gpus_that_are_too_old(capability):
    told = LIBRARY.why_not(capability)
    assert "compiled for the compute capabilities 7.5, 8.0, 9.0, 10.0" in told
    assert told.endswith("this GPU's compute capability is {}.{}".format(*capability))


def test_a_gpu_between_two_that_there_is_code_for():
    """Machine code runs on later minor versions alone, and PTX on later GPUs alone."""
    library = dataclasses.replace(LIBRARY, code=((8, 6), (10, 3)), ptx=(10, 3))
    assert library.why_not((8, 9)) is None
    for capability in ((8, 0), (9, 0), (10, 0)):
        assert "compiled for the compute capabilities 8.6, 10.3" in library.why_not(capability)


def test_a_driver_older_than_the_toolkit():
    told = dataclasses.replace(LIBRARY, driver=(12, 9)).why_not((8, 0))
    assert told.startswith("The kernels were compiled by CUDA 13.0, and the driver supports CUDA")
    assert "12.9 at most: a newer driver is needed, or `" in told and "build --cuda`" in told
    # An older minor version will do, but for what the driver has to compile.
    library = dataclasses.replace(LIBRARY, runtime=(13, 5), driver=(13, 0))
    assert library.why_not((8, 0)) is None and library.why_not((10, 3)) is None
    told = library.why_not((12, 0))
    assert "compute capability is 12.0, for which the driver compiles them" in told
    assert dataclasses.replace(library, driver=(13, 5)).why_not((12, 0)) is None
    assert dataclasses.replace(library, driver=(14, 0)).why_not((12, 0)) is None
