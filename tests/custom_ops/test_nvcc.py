"""NVIDIA's compiler: where it is found, what it must be, and what happens where it fails."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from kernel_builds import COMPILER, NVCC, TIMEOUT, Copy

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed"),
]

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATHS = "toolchain.nvcc_paths()"
FIND = "toolchain.find_nvcc().path"
JAX = "build.find_or_build('jax', without_cuda=lambda error: print(error, file=sys.stderr))"
CPU, CUDA = "dcnv3_jax-0.10.2.so", "dcnv3_jax-0.10.2-cuda.so"


@pytest.fixture
def copy(tmp_path):
    """With JAX for GPUs. Where CUDA lies by default is a folder of the copy."""
    made = Copy(tmp_path).install("jax")
    (made.site / "jax_cuda13_plugin").mkdir()
    text = (made.sources / "toolchain.py").read_text()
    before = 'CUDA = "/usr/local/cuda"'
    assert before in text
    made.write("toolchain.py", text.replace(before, f'CUDA = "{tmp_path}/default"'))
    return made


def without_nvcc(copy, **changes):
    """An environment where only the copy's folders have one, and what the compiler calls."""
    for name in ("as", "ld"):
        tool = copy.folder / "tools" / name
        if not tool.exists():
            tool.parent.mkdir(exist_ok=True)
            tool.symlink_to(shutil.which(name))
    return {"PATH": copy.folder / "tools", "CUDA_HOME": None, "CUDA_PATH": None, **changes}


def of_version(number):
    """A compiler that says which one it is, and nothing else."""
    return NVCC.replace("Build cuda_13.0", f"Build cuda_{number}.r{number}/compiler.1_0")


def install_wheels(copy, version="13"):
    """As NVIDIA's wheels lay it out."""
    folder = copy.site / "nvidia" / f"cu{version}"
    for name in ("libcudart_static.a", "libcudadevrt.a"):
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        (folder / "lib" / name).write_text("")
    return copy.program(folder / "bin" / "nvcc", NVCC)


def test_the_order_of_looking(copy):
    wheels = [install_wheels(copy, version) for version in ("9", "14", "13")]
    names = ("home", "path", "on_path", "default")
    home, path, on_path, default = (copy.program(f"{name}/bin/nvcc", NVCC) for name in names)
    environment = {
        "CUDA_HOME": home.parent.parent,
        "CUDA_PATH": path.parent.parent,
        "PATH": on_path.parent,
    }
    order = [home, path, on_path, default, wheels[1], wheels[2], wheels[0]]
    assert copy.evaluate(PATHS, **environment) == str([str(nvcc) for nvcc in order])
    assert copy.evaluate(FIND, **environment) == str(home)
    del environment["CUDA_HOME"], order[0]
    assert copy.evaluate(PATHS, **environment) == str([str(nvcc) for nvcc in order])


def test_the_wheels_are_found_and_linked(copy):
    nvcc = install_wheels(copy)
    assert copy.evaluate(FIND, **without_nvcc(copy)) == str(nvcc)
    path = copy.evaluate("build.find_or_build('jax')", **without_nvcc(copy))
    assert os.path.basename(path) == CUDA
    (link,) = [call for call in copy.calls() if "-soname,libdcnv3_cuda" in call]
    assert f"-L{nvcc.parent.parent}/lib" in link.split()


def test_a_toolkit_is_linked_from_where_it_has_its_libraries(copy):
    nvcc = copy.program("home/bin/nvcc", NVCC)
    folders = "[str(f) for f in toolchain.cuda_library_folders(toolchain.find_nvcc())]"
    environment = without_nvcc(copy, CUDA_HOME=nvcc.parent.parent)
    assert copy.evaluate(folders, **environment) == "[]"  # nvcc alone knows
    (copy.folder / "home/lib64").mkdir()
    (copy.folder / "home/lib64/libcudart_static.a").write_text("")
    assert copy.evaluate(folders, **environment) == str([f"{copy.folder}/home/lib64"])


def test_without_nvcc_the_ways_out_are_named(copy):
    told = copy.refusal("build.find_or_build('jax', cuda=True)", **without_nvcc(copy))
    assert "compiled by nvcc. Received: no nvcc in $CUDA_HOME/bin" in told
    ways = ["cuda-toolkit[nvcc,cccl]", "jax[cuda13]", "For CUDA 12, pip has none", "conda"]
    for way in (*ways, "keras-internimage-cu12", "build --cuda"):
        assert way in told
    # Nobody asked for it: then the kernels for processors are built, without a word.
    status, out, err = copy.run("-c", PRELUDE + f"print({JAX})", **without_nvcc(copy))
    assert status == 0 and os.path.basename(out.strip()) == CPU
    assert "nvcc" not in err and "with g++ 12.2 (once" in err


PRELUDE = "import sys; from custom_ops import build, toolchain\n"


def test_an_nvcc_that_is_too_old(copy):
    old = copy.program("old/bin/nvcc", of_version("12.0"))
    environment = without_nvcc(copy, CUDA_HOME=old.parent.parent)
    told = copy.refusal(FIND, **environment)
    assert f"Received: nvcc 12.0, {old}. nvcc 12.1 or newer is needed" in told
    new = install_wheels(copy)
    assert copy.evaluate(FIND, **environment) == str(new)
    copy.program("old/bin/nvcc", of_version("12.1"))
    assert copy.evaluate(FIND, **environment) == str(old)


def test_what_nvcc_lacks_is_no_advice_about_the_cpp_compiler(copy):
    nvcc = copy.program("home/bin/nvcc", NVCC)
    environment = {"CUDA_HOME": nvcc.parent.parent, "NVCC_FAILS": "1"}
    told = copy.refusal("build.find_or_build('jax', cuda=True)", **environment)
    assert "nvcc fatal: no such luck" in told and str(nvcc) in told
    assert "build-essential" not in told and "nvcc 12.1 or newer is needed" in told
    assert told.endswith("build --cuda")
    again = copy.refusal("build.find_or_build('jax', cuda=True)", **environment)
    assert again.endswith("custom_ops build --cuda` tries again.")
    # What does not need it fails as ever.
    copy.write("core/cpu.cc", "#error broken core\n")
    told = copy.refusal("build.find_or_build('jax', cuda=False)")
    assert "build-essential" in told and told.endswith("custom_ops build")


def test_a_failed_nvcc_leaves_the_processors_kernels(copy):
    nvcc = copy.program("home/bin/nvcc", NVCC)
    environment = {"CUDA_HOME": nvcc.parent.parent, "NVCC_FAILS": "1"}
    status, out, err = copy.run("-c", PRELUDE + f"print({JAX})", **environment)
    assert status == 0, err
    path = out.strip()
    assert os.path.basename(path) == CPU and copy.answer(path) > 1000
    assert err.count("no such luck") == 1

    # That is remembered, for CUDA alone.
    calls = copy.calls()
    status, out, err = copy.run("-c", PRELUDE + f"print({JAX})", **environment)
    assert (status, out.strip()) == (0, path)
    assert "remembered" in err and copy.calls() == calls
    assert copy.evaluate("build.state('jax')", **environment) == f"(PosixPath({path!r}), None)"
    assert "no such luck" in copy.evaluate("build.state('jax', True)", **environment)
    assert copy.evaluate("build.state('jax', False)[1]", **environment) == "None"
    status, out, err = copy.command("status", **environment)
    lines = out.splitlines()
    assert status == 0 and lines[1] == f"jax         compiled on this machine, {path}"
    assert lines[2].startswith("            for NVIDIA GPUs: A command that builds")
    assert "no such luck" in out

    # Built again by hand, it is taken.
    copy.importable("jax").command("build", "--cuda", **{**environment, "NVCC_FAILS": None})
    assert copy.evaluate("build.find_or_build('jax')", **environment).endswith(CUDA)


def test_an_nvcc_that_does_not_run_leaves_the_processors_kernels(copy):
    nvcc = copy.program("home/bin/nvcc", "#!/bin/sh\nexit 1\n")
    environment = {"CUDA_HOME": nvcc.parent.parent}
    status, out, err = copy.run("-c", PRELUDE + f"print({JAX})", **environment)
    assert status == 0 and os.path.basename(out.strip()) == CPU, err
    assert f"{nvcc} --version" in err and "nvcc 12.1 or newer is needed" in err


def test_a_failed_core_is_no_matter_of_cuda(copy):
    nvcc = copy.program("home/bin/nvcc", NVCC)
    copy.write("core/cpu.cc", "#error broken core\n")
    told = copy.refusal(JAX, CUDA_HOME=nvcc.parent.parent)
    assert "broken core" in told and "build-essential" in told


def test_architectures_that_nvcc_does_not_know_are_left_out(copy):
    listed = "echo compute_75; echo compute_80; echo compute_90"
    assert listed in NVCC
    known = "echo compute_80; echo compute_100; echo compute_110; echo compute_120"
    nvcc = copy.program("home/bin/nvcc", NVCC.replace(listed, known))
    copy.evaluate("build.find_or_build('jax', cuda=True)", CUDA_HOME=nvcc.parent.parent)
    (told,) = [call for call in copy.calls() if "cuda_info.cu" in call]
    # The PTX is one that GPUs of 110 can use, too.
    named = "-DDCNV3_ARCHITECTURES=sm_80_sm_100_sm_120_compute_100 "
    assert named in told and "_75" not in told


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_what_was_built_is_loaded_and_its_kernels_are_counted(copy, backend):
    nvcc = copy.program("home/bin/nvcc", NVCC)
    environment = {"CUDA_HOME": nvcc.parent.parent}
    copy.install(backend).importable(backend, devices=("cpu",))
    (copy.site / "torch/lib").mkdir(parents=True, exist_ok=True)
    (copy.site / "torch/lib/libtorch_cuda.so").write_text("")
    copy.empty_library(copy.site / "torch/lib/libtorch_cuda.so")
    command = ("build", "--cuda", "--backend", backend)
    status, out, err = copy.command(*command, **environment)
    assert status == 1 and not out and "Traceback" not in err
    assert f"must load in {backend} and register kernels for cpu and cuda. Received: " in err
    copy.importable(backend)
    status, out, err = copy.command(*command, **environment)
    assert status == 0 and out.strip().endswith("-cuda.so"), err
    # A library that cannot be loaded is told with what the framework says.
    copy.importable(backend)
    binding = copy.sources / backend / f"dcnv3_{backend}.cc"
    binding.write_text(
        binding.read_text() + 'extern "C" void nowhere();\nint x = (nowhere(), 1);\n'
    )
    status, out, err = copy.command(*command, **environment)
    assert status == 1 and "undefined symbol: nowhere" in err and "exit status 1" in err


def test_make_looks_where_the_build_looks(copy, tmp_path):
    """`make bench-devices` with nvcc in $CUDA_HOME alone."""
    nvcc = copy.program("home/bin/nvcc", NVCC)
    calls = tmp_path / "python_calls"
    python = copy.program(
        "python",
        f"""#!/bin/sh
case "$1" in -c) exec {sys.executable} "$@";; esac
echo "$*" >> {calls}
""",
    )
    path = os.pathsep.join(["/usr/bin", "/bin"])
    environment = {"PATH": path, "CUDA_HOME": str(nvcc.parent.parent), "PYTHON": str(python)}
    command = ["make", "-C", str(ROOT), "bench-devices"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.returncode == 0, result.stderr
    assert calls.read_text().splitlines() == [
        "-m keras_internimage.custom_ops build --backend jax --cuda",
        "benchmarks/jax_devices.py",
    ]
