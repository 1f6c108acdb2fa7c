"""A wheel that brings the native kernels: it runs them where there is no compiler."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import pytest

from keras_internimage.custom_ops import toolchain
from keras_internimage.ops import native
from keras_internimage.ops.native import cuda

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKEND = keras.backend.backend()
CHECK = ROOT / "wheels" / "check.py"


def run(*arguments, timeout=600, **options):
    result = subprocess.run(
        [str(argument) for argument in arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, ROOT / "wheels" / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheels():
    """The module of `make wheels`."""
    return load("build_wheels", "build.py")


@pytest.fixture(scope="module")
def cuda_wheels(wheels):
    """That of the wheel with CUDA kernels, which imports the other by the name it has as a file."""
    before = sys.modules.get("build")
    sys.modules["build"] = wheels
    try:
        return load("build_cuda_wheel", "cuda_wheel.py")
    finally:
        if before is None:
            del sys.modules["build"]
        else:
            sys.modules["build"] = before


def without_compiler(folder, backend, **variables):
    """An environment with a PATH of one program, Python, and with an empty cache."""
    path = folder / "path"
    path.mkdir()
    (path / "python").symlink_to(sys.executable)
    kept = ("HOME", "TMPDIR", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "TF_CPP_MIN_LOG_LEVEL")
    # What JAX compiles is kept from one run to the next, as in the other tests.
    kept += tuple(name for name in os.environ if name.startswith("JAX_"))
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": str(path),
        "KERAS_BACKEND": backend,
        "KERAS_INTERNIMAGE_CACHE": str(folder / "cache"),
        **variables,
    }


def checked(python, environment, folder):
    """What `wheels/check.py` prints, where the wheel's libraries were the ones that ran."""
    printed = run(python, CHECK, "--wheel", env=environment, cwd=folder)
    answer = json.loads(printed.splitlines()[-1])
    assert answer["native"] == "C++ and CUDA kernels, from the installed wheel"
    assert answer["compilers"] == [] and not (folder / "cache").exists()
    return answer


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """The package of a wheel that is put together as by `make wheels`, with libraries built here.

    What is built for this machine alone is what differs: the compiler's flags for older systems.
    """
    from keras_internimage.custom_ops import build, libraries, packaged, toolchain

    if reason := native.Native().why_not():
        pytest.skip(f"the kernels do not run here: {reason}")
    folder = tmp_path_factory.mktemp("wheels")
    library = build.find_or_build(BACKEND, cuda=False)
    binaries = folder / packaged.FOLDER.name
    binaries.mkdir()
    shutil.copy(library.parent / libraries.CORE, binaries)
    name = libraries.packaged_name(toolchain.framework(BACKEND))
    shutil.copy(library, binaries / name)
    copy = folder / "copy"
    for part in ("keras_internimage", "custom_ops", "weights_convert"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / part, copy)
    wheels.backend("build_wheel", folder, copy)
    wheel = wheels.assemble(wheels.newest(folder, "*.whl"), binaries, folder)
    assert "-py3-none-linux_" in wheel.name
    target = folder / "installed"
    run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"),
        *("--target", target, wheel),
    )
    return target


@pytest.mark.skipif(sys.platform != "linux", reason="wheels are built on Linux")
def test_the_kernels_of_a_wheel_run_without_a_compiler(installed, tmp_path):
    environment = without_compiler(tmp_path, BACKEND, PYTHONPATH=str(installed))
    answer = checked(sys.executable, environment, tmp_path)
    assert answer["package"] == str(installed / "keras_internimage")
    # Were the sources others, the libraries would not be used.
    with open(installed / "keras_internimage/custom_ops/core/dcnv3.h", "a") as file:
        file.write("// changed\n")
    command = (sys.executable, "-m", "keras_internimage.custom_ops", "status")
    lines = run(*command, env=environment, cwd=tmp_path)
    assert "need a C++ compiler" in lines and "must be made of the sources beside" in lines
    assert "from the installed wheel" not in lines


# ---- the wheel with CUDA kernels ----


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("version", "options"),
    [("cuda_12.9.r12.9/compiler.36037853_0", ()), ("cuda_13.0.r13.0/1", ("--compress-mode=size",))],
)
def test_code_is_compressed_as_every_driver_of_the_version_can_read(cuda_wheels, version, options):
    nvcc = toolchain.Compiler(("nvcc",), "/opt/nvcc", version)
    assert cuda_wheels.compression(nvcc) == options


@pytest.mark.any_backend
def test_symbols_that_glibc_moved_are_linked_where_they_were(cuda_wheels):
    """As `objdump -T` writes them: old versions in brackets, the present one without."""
    text = """
0000000000084510 g    DF .text  0000000000000043 (GLIBC_2.2.5) pthread_key_create
0000000000084510 g    DF .text  0000000000000043  GLIBC_2.34  pthread_key_create
0000000000083ec0 g    DF .text  000000000000000c (GLIBC_2.3.4) dlmopen
0000000000083ec0 g    DF .text  000000000000000c (GLIBC_2.30) pthread_cond_clockwait
0000000000083ec0 g    DF .text  000000000000000c (GLIBC_2.2.5) shm_open
0000000000083ec0 g    DF .text  000000000000000c (GLIBC_2.2.5) memcpy
"""
    assert cuda_wheels.former_symbols(text) == {
        "libpthread.so.0": {"GLIBC_2.2.5": ["pthread_key_create"]},
        "libdl.so.2": {"GLIBC_2.3.4": ["dlmopen"]},
        "librt.so.1": {"GLIBC_2.2.5": ["shm_open"]},
    }


LISTED = """
ELF file    1: {0}.1.sm_75.cubin
ELF file    2: {0}.2.sm_120.cubin
PTX file    1: {0}.1.sm_{1}.ptx
"""


@pytest.mark.any_backend
def test_what_the_cuda_library_holds_is_checked_or_said_not_to_be(
    cuda_wheels, tmp_path, monkeypatch
):
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("needs g++")
    source = tmp_path / "told.cc"
    told = "sm_75_sm_120_compute_100"
    source.write_text(f'extern "C" const char* dcnv3_cuda_code() {{ return "{told}"; }}\n')
    library = tmp_path / "libdcnv3_cuda.so"
    run(compiler, "-shared", "-fPIC", source, "-o", library)
    tool = tmp_path / "cuobjdump"
    monkeypatch.setattr(cuda_wheels, "cuobjdump", lambda: tool)
    line = "sm_75, sm_120, PTX of sm_100"
    for ptx in (100, 120):
        (tmp_path / "listed").write_text(LISTED.format(library.name, ptx))
        tool.write_text(f'#!/bin/sh\ncat "{tmp_path}/listed"\n')
        tool.chmod(0o755)
        if ptx == 100:
            assert cuda_wheels.check(library) == line
            continue
        with pytest.raises(SystemExit, match="must hold what it tells.*Received.*PTX of .*sm_120"):
            cuda_wheels.check(library)
    monkeypatch.setattr(cuda_wheels, "cuobjdump", lambda: None)
    assert cuda_wheels.check(library).startswith(f"{line}: NOT CHECKED, for there is no cuobjdump")


@pytest.mark.slow
@pytest.mark.any_backend
@pytest.mark.skipif(not toolchain.nvcc_paths(), reason="needs nvcc")
def test_the_wheel_with_cuda_kernels(wheels, cuda_wheels, tmp_path):
    """It is built; auditwheel checks it. What it holds loads where there is no driver."""
    major = cuda_wheels.cuda_major(toolchain.find_nvcc())
    printed = run(
        sys.executable, ROOT / "wheels" / "cuda_wheel.py", "--output", tmp_path, timeout=3000
    )
    (wheel,) = tmp_path.glob(f"keras_internimage_cu{major}-*-py3-none-manylinux_2_28_*.whl")
    assert printed.splitlines()[-1].startswith(str(wheel)) and "PTX of sm_" in printed
    target = tmp_path / "installed"
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet")
    run(*install, "--target", target, wheel)
    (metadata,) = target.glob("*.dist-info/METADATA")
    assert "Requires-Dist: keras-internimage==" in metadata.read_text()
    folder = target / f"keras_internimage_cu{major}"
    names = {path.name for path in folder.iterdir()}
    bindings = {"dcnv3_torch-abi2.10-cuda.so", "dcnv3_jax-ffi0.1-cuda.so"}
    bindings |= {f"dcnv3_tensorflow-2.{minor}-cuda.so" for minor in (18, 19, 20, 21)}
    libs = {"libdcnv3_core.so", "libdcnv3_cuda.so", "manifest.json", "__init__.py"}
    assert names - {"__pycache__"} == bindings | libs
    library = folder / "libdcnv3_cuda.so"
    assert "sm_75, sm_80, " in cuda_wheels.check(library)
    assert wheel.stat().st_size <= wheels.LARGEST
    needed = subprocess.run(["objdump", "-T", library], capture_output=True, text=True).stdout
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", needed)}
    assert max(versions) <= (2, 28)
    read = cuda.read(library)
    assert read.runtime[0] == major
    if read.driver is None:
        assert "there is no NVIDIA driver" in read.why_not((8, 0))
    # The look-up takes it, as the installed package's own.
    code = f"""if True:
        import pathlib
        from keras_internimage.custom_ops import build, packaged
        found = packaged.find({BACKEND!r}, cuda=True)
        print(found, build.origin(found), sep="\\n")"""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    out = run(sys.executable, "-c", code, env=environment, cwd=ROOT).splitlines()
    assert out[-2].startswith(str(folder))
    assert out[-1] == f"from the installed wheel keras-internimage-cu{major}"
    if cuda_wheels.cuobjdump() is None:
        pytest.skip("all but the machine code in the library was checked: there is no cuobjdump")


# ---- other systems ----


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "system, names, wrong",
    [
        ("darwin", ["@rpath/beside.dylib", "/usr/lib/libc++.1.dylib"], "/opt/lib/libomp.dylib"),
        ("win32", ["beside.dll", "torch_cpu.dll", "VCRUNTIME140.dll"], "libstdc++-6.dll"),
    ],
)
def test_what_a_library_of_another_system_may_need(
    wheels, tmp_path, monkeypatch, system, names, wrong
):
    monkeypatch.setattr(wheels.sys, "platform", system)
    (tmp_path / names[0].removeprefix("@rpath/")).touch()
    monkeypatch.setattr(wheels, "needed", lambda path: names)
    wheels.check_needed(tmp_path / "library")
    monkeypatch.setattr(wheels, "needed", lambda path: [*names, wrong])
    with pytest.raises(SystemExit, match="must need its framework and the system"):
        wheels.check_needed(tmp_path / "library")


@pytest.mark.slow
@pytest.mark.any_backend
@pytest.mark.parametrize(
    "system, bindings",
    [("linux-aarch64", 6), ("macos-arm64", 6), ("windows-amd64", 2)],
)
def test_the_libraries_of_other_systems_compile_and_link(system, bindings):
    if system.startswith("linux"):
        if shutil.which("aarch64-linux-gnu-g++") is None:
            pytest.skip("needs the compiler of Debian's package g++-aarch64-linux-gnu")
    elif importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs Zig's compiler: pip install ziglang")
    elif shutil.which("llvm-objdump") is None:
        pytest.skip("needs llvm-objdump, which checks what the libraries need")
    printed = run(sys.executable, ROOT / "wheels" / "cross.py", system, timeout=3000)
    assert len(re.findall(r"^dcnv3_(?:torch|jax|tensorflow)-\S+: ", printed, re.M)) == bindings


# ---- the versions of the frameworks: they are downloaded, gigabytes of them for PyTorch ----

NEWEST = {"torch": "torch", "jax": "jax", "tensorflow": "tensorflow-cpu"}
# The oldest ones that the package supports, or that have what the kernels need; of PyTorch also the
# one of requirements/, and of TensorFlow the first and last of each minor version but the newest.
VERSIONS = {
    "torch": ("torch==2.10.0", "torch==2.13.0"),
    "jax": ("jax==0.6.0",),
    "tensorflow": tuple(
        f"tensorflow-cpu=={version}"
        for version in ("2.18.0", "2.18.1", "2.19.0", "2.19.1", "2.20.0")
    ),
}
MATRIX = [(backend, name) for backend, names in VERSIONS.items() for name in names]
MATRIX += list(NEWEST.items())


def python_for(requirement):
    """The newest versions of JAX and PyTorch are for newer versions of Python."""
    newest = "==" not in requirement and requirement != NEWEST["tensorflow"]
    names = ("python3.13", "python3.12") if newest else ()
    found = (shutil.which(name) for name in names)
    return next(
        (path for path in found if path and subprocess.run([path, "-V"]).returncode == 0),
        sys.executable,
    )


@pytest.fixture(scope="module")
def distributions(wheels):
    """The folder of `make wheels`, which is run: it builds what is not there."""
    run(sys.executable, ROOT / "wheels" / "build.py")
    return ROOT / "dist"


@pytest.mark.slow
@pytest.mark.any_backend
@pytest.mark.parametrize("backend, requirement", MATRIX)
def test_every_version_runs_the_kernels(wheels, distributions, tmp_path, backend, requirement):
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    run(python_for(requirement), "-m", "venv", environment)
    wheel = wheels.newest(distributions, "*-py3-none-manylinux*.whl")
    run(python, "-m", "pip", "install", "--quiet", wheel, requirement, timeout=3000)
    answer = checked(python, without_compiler(tmp_path, backend), tmp_path)
    assert answer["package"].startswith(str(environment))
