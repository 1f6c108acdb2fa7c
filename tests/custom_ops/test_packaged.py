"""The libraries that a wheel brings, with sources of a few lines: when they are the ones taken."""

import json
import os
import shutil

import pytest
from kernel_builds import COMPILER, NVCC, Copy

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed"),
]

JAX = "build.find_or_build('jax')"
TENSORFLOW = "build.find_or_build('tensorflow')"
NAMES = {
    "torch": "dcnv3_torch-abi2.10.so",
    "jax": "dcnv3_jax-ffi0.1.so",
    "tensorflow": "dcnv3_tensorflow-2.21.so",
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("packed")).install(*NAMES)
    copy.pack()
    return copy


@pytest.fixture
def copy(packed):
    """The packed copy as it was, whatever the test before did to it."""
    manifest = packed.binaries / "manifest.json"
    text = manifest.read_text()
    packed.calls_file.unlink(missing_ok=True)
    yield packed
    manifest.write_text(text)
    (packed.sources / "core/new.inl").unlink(missing_ok=True)
    shutil.rmtree(packed.cache, ignore_errors=True)
    shutil.rmtree(packed.site / "jax_cuda13_plugin", ignore_errors=True)
    packed.install(*NAMES)


@pytest.fixture
def elsewhere(copy):
    """A machine without a compiler and without a home folder."""
    return {"CXX": None, "PATH": copy.nothing, "KERAS_INTERNIMAGE_CACHE": "/proc/none"}


def test_found_without_compiler_and_cache(copy, elsewhere):
    assert sorted(os.listdir(copy.binaries)) == sorted(
        [*NAMES.values(), "libdcnv3_core.so", "manifest.json"]
    )
    for backend, name in NAMES.items():
        path = copy.evaluate(f"build.find_or_build({backend!r})", **elsewhere)
        assert path == str(copy.binaries / name)
        assert copy.answer(path) > 1000
        assert copy.evaluate(f"build.find({backend!r})", **elsewhere) == path
    core = str(copy.binaries / "libdcnv3_core.so")
    assert copy.evaluate("build.core_library()", **elsewhere) == core
    origin = f"build.origin({JAX})"
    assert copy.evaluate(origin, **elsewhere) == "from the installed wheel"
    status, out, _ = copy.command("status", **elsewhere)
    assert status == 0
    place = copy.binaries / NAMES["jax"]
    assert out.splitlines()[1] == f"jax         from the installed wheel, {place}"
    # With a compiler neither: nothing is compiled, and what is in the cache is not looked for.
    status, out, err = copy.command("build", "--backend", "jax")
    assert status == 0 and out.startswith(str(copy.cache))
    assert err.splitlines()[-1] == f"The library from the installed wheel comes before it: {place}"
    calls = copy.calls()
    assert copy.evaluate(JAX) == str(copy.binaries / NAMES["jax"])
    assert copy.calls() == calls


def test_the_users_folder_comes_first(copy, tmp_path):
    shutil.copy(copy.binaries / "libdcnv3_core.so", tmp_path)
    shutil.copy(copy.binaries / NAMES["jax"], tmp_path / "dcnv3_jax-0.10.2.so")
    mine = {"KERAS_INTERNIMAGE_KERNEL_PATH": tmp_path}
    assert copy.evaluate(JAX, **mine) == str(tmp_path / "dcnv3_jax-0.10.2.so")
    origin = copy.evaluate(f"build.origin({JAX})", **mine)
    assert origin == "from the folder of KERAS_INTERNIMAGE_KERNEL_PATH"
    (tmp_path / "libdcnv3_core.so").unlink()
    assert "without libdcnv3_core.so" in copy.refusal(JAX, **mine)


def test_those_of_other_sources_are_not_taken(copy, elsewhere):
    copy.write("core/new.inl", "// included by a kernel\n")
    told = copy.refusal(JAX, **{**elsewhere, "KERAS_INTERNIMAGE_CACHE": copy.cache})
    assert "no g++, clang++ or c++ in PATH" in told
    assert f"must be made of the sources beside them. Received: {copy.binaries}, made of" in told
    path = copy.evaluate(JAX)
    assert path.startswith(str(copy.cache)) and copy.calls()
    assert copy.evaluate(f"build.origin({JAX})") == "compiled on this machine"


def test_which_versions_they_serve(copy, elsewhere):
    """TensorFlow's of one minor version, PyTorch's and JAX's from one on."""
    elsewhere = {**elsewhere, "KERAS_INTERNIMAGE_CACHE": copy.cache}
    served = {
        "tensorflow": ("2.21.0", "2.21.3", "2.21.0+nv26.1"),
        "jax": ("0.6.0", "0.12.0.1"),
        "torch": ("2.10.0", "2.15.0+cu130"),
    }
    for backend, versions in served.items():
        for version in versions:
            copy.install(backend, version=version)
            path = copy.evaluate(f"build.find_or_build({backend!r})", **elsewhere)
            assert path == str(copy.binaries / NAMES[backend])
    for version, minor in (("2.22.0", "2.22"), ("2.21.0.dev20260101", "2.21.0.dev20260101")):
        copy.install("tensorflow", version=version)
        told = copy.refusal(TENSORFLOW, **elsewhere)
        assert f"has no dcnv3_tensorflow-{minor}.so, for tensorflow {version}." in told
        assert "Found there: dcnv3_jax-ffi0.1.so, dcnv3_tensorflow-2.21.so, dcnv3_t" in told
        assert copy.evaluate("build.find('tensorflow')", **elsewhere) == "None"
    assert copy.evaluate(TENSORFLOW).endswith("/dcnv3_tensorflow-2.21.0.dev20260101.so")
    copy.install("torch", version="2.9.1")
    assert "torch must be 2.10" in copy.refusal("build.find_or_build('torch')", **elsewhere)


def test_a_build_where_they_will_not_do(copy, elsewhere):
    """For a library that the framework refuses, and for GPUs, which the wheel has none for."""
    path = copy.evaluate("build.find_or_build('jax', refused=[build.packaged.FOLDER])")
    assert path.startswith(str(copy.cache))
    nvcc = copy.program("cuda/bin/nvcc", NVCC)
    environment = {"CUDA_HOME": nvcc.parent.parent, "PATH": f"{nvcc.parent}:{os.environ['PATH']}"}
    (copy.site / "jax_cuda13_plugin").mkdir()
    assert copy.evaluate(JAX, **environment).endswith("/dcnv3_jax-0.10.2-cuda.so")
    # Without nvcc JAX for GPUs has the kernels for processors.
    shutil.rmtree(copy.cache)
    without = f"setattr(toolchain, 'CUDA', '') or {JAX}"
    elsewhere = {**elsewhere, "KERAS_INTERNIMAGE_CACHE": copy.cache}
    assert copy.evaluate(without, **elsewhere) == str(copy.binaries / NAMES["jax"])
    # Neither will nvcc do without a C++ compiler.
    elsewhere["PATH"] = nvcc.parent
    assert copy.evaluate(JAX, **elsewhere) == str(copy.binaries / NAMES["jax"])


def test_a_manifest_that_cannot_be_read(copy, elsewhere):
    manifest = copy.binaries / "manifest.json"
    for text in ("{", "{}", "[]"):
        manifest.write_text(text)
        told = copy.refusal(JAX, **{**elsewhere, "KERAS_INTERNIMAGE_CACHE": copy.cache})
        assert "The manifest of the wheel's libraries must be readable" in told
    manifest.write_text(json.dumps({"key": "another"}))
    assert copy.evaluate(JAX).startswith(str(copy.cache))


# ---- for NVIDIA GPUs: packages of their own ----

CUDA_NAME = "dcnv3_jax-ffi0.1-cuda.so"


@pytest.fixture
def for_gpus(copy, elsewhere):
    """JAX for GPUs, and a function that installs a package for them; `elsewhere` has a cache."""
    (copy.site / "jax_cuda13_plugin").mkdir()
    elsewhere["KERAS_INTERNIMAGE_CACHE"] = copy.cache
    elsewhere["CUDA_HOME"] = elsewhere["CUDA_PATH"] = None
    made = []

    def install(major=12, key=None):
        folder = copy.site / f"keras_internimage_cu{major}"
        shutil.copytree(copy.binaries, folder)
        made.append(folder)
        (folder / "__init__.py").touch()
        shutil.copy(copy.binaries / "libdcnv3_core.so", folder / "libdcnv3_cuda.so")
        (folder / NAMES["jax"]).rename(folder / CUDA_NAME)
        if key is not None:
            (folder / "manifest.json").write_text(json.dumps({"key": key}))
        return folder

    yield install
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


WITHOUT_TOOLKIT = f"setattr(toolchain, 'CUDA', '') or {JAX}"


def test_the_wheel_for_gpus_is_taken_where_the_framework_computes_there(copy, elsewhere, for_gpus):
    assert copy.evaluate(WITHOUT_TOOLKIT, **elsewhere) == str(copy.binaries / NAMES["jax"])
    folder = for_gpus()
    path = copy.evaluate(WITHOUT_TOOLKIT, **elsewhere)
    assert path == str(folder / CUDA_NAME) and copy.answer(path) > 1000
    origin = f"build.origin({JAX})"
    assert copy.evaluate(origin, **elsewhere) == "from the installed wheel keras-internimage-cu12"
    assert copy.evaluate("build.why_no_cuda('jax')", **elsewhere) == "None"
    status, out, _ = copy.command("status", **elsewhere)
    told = f"jax         from the installed wheel keras-internimage-cu12, {folder / CUDA_NAME}"
    assert status == 0 and told in out.splitlines()
    # It comes before an nvcc, and after the user's folder.
    nvcc = copy.program("cuda/bin/nvcc", NVCC)
    assert copy.evaluate(JAX, CUDA_HOME=nvcc.parent.parent) == path and not copy.calls()
    told = copy.refusal(JAX, KERAS_INTERNIMAGE_KERNEL_PATH=copy.nothing)
    assert "KERAS_INTERNIMAGE_KERNEL_PATH must name a folder" in told
    # Where it was refused, there is the one for processors.
    instead = f"build.find_or_build('jax', refused=[pathlib.Path({str(folder)!r})])"
    prelude = f"(globals().update(pathlib=__import__('pathlib')), {instead})[1]"
    without = f"setattr(toolchain, 'CUDA', '') or {prelude}"
    assert copy.evaluate(without, **elsewhere) == str(copy.binaries / NAMES["jax"])
    # A framework for processors has no use for it.
    shutil.rmtree(copy.site / "jax_cuda13_plugin")
    assert copy.evaluate(JAX, **elsewhere) == str(copy.binaries / NAMES["jax"])


def test_of_two_wheels_for_gpus_the_one_for_older_drivers(copy, elsewhere, for_gpus):
    later, earlier = for_gpus(13), for_gpus(12)
    assert copy.evaluate(JAX, **elsewhere) == str(earlier / CUDA_NAME)
    (earlier / "manifest.json").write_text(json.dumps({"key": "another"}))
    assert copy.evaluate(JAX, **elsewhere) == str(later / CUDA_NAME)


def test_a_wheel_for_gpus_that_will_not_do_says_why(copy, elsewhere, for_gpus):
    folder = for_gpus(key="another")
    found = "setattr(toolchain, 'CUDA', '') or build.find_or_build('jax', cuda=True)"
    told = copy.refusal(found, **elsewhere)
    assert "sources of the installed keras-internimage. Received: " + str(folder) in told
    assert copy.evaluate(WITHOUT_TOOLKIT, **elsewhere) == str(copy.binaries / NAMES["jax"])
    shutil.rmtree(folder)
    folder = for_gpus()
    (folder / "libdcnv3_cuda.so").unlink()
    assert "has no libdcnv3_cuda.so, for jax" in copy.refusal(found, **elsewhere)
