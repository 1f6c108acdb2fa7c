"""A wheel that brings the native kernels: it runs them where there is no compiler."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import pytest

from keras_internimage.ops import native

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


@pytest.fixture(scope="module")
def wheels():
    """The module of `make wheels`."""
    spec = importlib.util.spec_from_file_location("build_wheels", ROOT / "wheels" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


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
    answer = json.loads(run(python, CHECK, env=environment, cwd=folder).splitlines()[-1])
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


# ---- the versions of the frameworks: they are downloaded, gigabytes of them for PyTorch ----

NEWEST = {"torch": "torch", "jax": "jax", "tensorflow": "tensorflow-cpu"}
# The oldest ones that the package supports, or that have what the kernels need; and of TensorFlow
# the first and the last of each minor version, but for the newest.
VERSIONS = {
    "torch": ("torch==2.10.0",),
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
