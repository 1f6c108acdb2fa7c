"""Finding and building the native libraries, with sources of a few lines."""

import json
import os
import platform
import shutil

import pytest
from kernel_builds import COMPILER, NVCC, VERSIONS, Copy

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed"),
]

NAMES = {
    "torch": "dcnv3_torch-abi2.10.so",
    "jax": "dcnv3_jax-0.10.2.so",
    "tensorflow": "dcnv3_tensorflow-2.21.0.so",
}
BACKENDS = tuple(NAMES)
X86 = platform.machine() in ("x86_64", "AMD64")
ANSWER = 1111 if X86 else 1001
JAX = "build.find_or_build('jax')"
RETRY = "python -m keras_internimage.custom_ops build"


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def without_compiler(copy):
    return {"CXX": None, "PATH": copy.nothing}


@pytest.mark.parametrize("backend", BACKENDS)
def test_built_once_and_found_afterwards(copy, backend):
    copy.install(backend)
    code = f"import sys; from custom_ops import build; print(build.find_or_build({backend!r}))"
    status, out, err = copy.run("-c", code)
    assert status == 0, err
    first, last = err.splitlines()
    assert first == (
        f"keras_internimage: building the DCNv3 kernels for {backend} with g++ 12.2 "
        "(once per installation) ..."
    )
    assert last.startswith("keras_internimage: the DCNv3 kernels are built (")
    path = out.strip()
    assert os.path.basename(path) == NAMES[backend]
    assert copy.built() == [NAMES[backend], "libdcnv3_core.so"]
    assert copy.answer(path) == ANSWER
    calls = copy.calls()
    assert copy.run("-c", code) == (0, out, "")
    # Neither does it need the compiler any more.
    assert copy.run("-c", code, **without_compiler(copy)) == (0, out, "")
    assert copy.evaluate(f"build.find({backend!r})", **without_compiler(copy)) == path
    assert copy.calls() == calls


def test_importing_and_looking_build_nothing(copy):
    copy.install(*BACKENDS)
    assert copy.evaluate("[build.find(name) for name in build.BACKENDS]") == str([None] * 3)
    assert copy.evaluate("build.state('jax')") == "(None, None)"
    assert not copy.calls() and not copy.cache.exists()


def test_objects_of_the_core(copy):
    core = copy.evaluate("build.core_library()")
    assert copy.built() == ["libdcnv3_core.so"]
    assert copy.evaluate(f"ctypes.CDLL({core!r}).dcnv3_answer()") == str(ANSWER - 1000)
    kernels = [call for call in copy.calls() if "cpu_kernels.cc" in call]
    assert len(kernels) == (3 if X86 else 1)
    for call in kernels:
        assert "-O3" in call and "-fno-math-errno" in call and "-fvisibility=hidden" in call
        if X86:
            assert ("-mavx512vl" in call) == ("=avx512 " in call)
            assert ("-mavx2" in call) == ("=avx2 " in call)
    # What decides by a threshold multiplies and adds in two steps, on any processor.
    (exact,) = [call for call in copy.calls() if "cpu_detection.cc" in call]
    assert "-ffp-contract=off" in exact and "-mavx" not in exact
    # A binding that is built later takes the core that is there.
    copy.install("jax").evaluate(JAX)
    assert kernels == [call for call in copy.calls() if "cpu_kernels.cc" in call]


def test_a_changed_source_or_compiler_is_a_new_library(copy):
    copy.install("jax")
    first = copy.evaluate(JAX)
    copy.write("core/new.inl", "// included by a kernel\n")
    second = copy.evaluate(JAX)
    copy.write("core/new.inl", "// included by a Kernel\n")
    third = copy.evaluate(JAX)
    copy.version_file.write_text("g++ (Distribution) 13.1.0\n")
    fourth = copy.evaluate(JAX)
    assert len({first, second, third, fourth}) == 4
    # Without a compiler the latest one of these sources will do.
    os.utime(os.path.dirname(third), (1, 1))
    assert copy.evaluate(JAX, **without_compiler(copy)) == fourth
    copy.write("core/new.inl", "// included by a kernel\n")
    assert copy.evaluate(JAX, **without_compiler(copy)) == second


def test_a_failed_build_is_told_and_remembered(copy):
    copy.install("jax")
    lines = "".join(f"#warning line {number}\n" for number in range(40))
    copy.write("jax/dcnv3_jax.cc", lines + "#error no such luck\n")
    told = copy.refusal(JAX)
    assert "no such luck" in told and "line 3\n" not in told
    assert "exit status 1" in told and "-c " in told and "dcnv3_jax.cc -o" in told
    assert "build-essential" in told and RETRY in told
    (record,) = [name for name in copy.built() if name.endswith(".json")]
    assert copy.built() == [record, "libdcnv3_core.so"]

    calls = copy.calls()
    again = copy.refusal(JAX)
    # The first one begins with the line on the build.
    assert again.splitlines()[:-1] == told.splitlines()[1:]
    assert again.endswith(f"This is remembered from an earlier attempt; `{RETRY}` tries again.")
    assert "no such luck" in copy.evaluate("build.state('jax')")
    assert copy.calls() == calls

    status, _, err = copy.command("build", "--backend", "jax")
    assert status == 1 and "no such luck" in err and "remembered" not in err
    assert "Traceback" not in err and len(copy.calls()) > len(calls)


def test_a_failure_is_one_of_a_version_of_the_framework(copy):
    """Also where the library, once it is built, serves several versions."""
    torch = "build.find_or_build('torch')"
    copy.install("torch")
    copy.write("torch/dcnv3_torch.cc", "#error no such luck\n")
    copy.refusal(torch)
    assert "remembered" in copy.refusal(torch)
    copy.install("torch", version="2.14.0")
    assert "remembered" not in copy.refusal(torch)


def test_the_command_forgets_a_failure_that_is_over(copy):
    copy.install("jax")
    (copy.site / "jaxlib/include/framework.h").write_text("#error a broken installation\n")
    copy.refusal(JAX)
    copy.install("jax")
    assert "remembered" in copy.refusal(JAX)
    status, out, err = copy.command("build", "--backend", "jax")
    assert status == 0, err
    assert copy.evaluate(JAX) == out.strip() and copy.answer(out.strip()) == ANSWER
    assert copy.built() == [NAMES["jax"], "libdcnv3_core.so"]


def test_a_core_that_fails_is_remembered_for_all(copy):
    copy.install("jax", "torch")
    copy.write("core/cpu.cc", "#error broken core\n")
    assert "broken core" in copy.refusal(JAX)
    calls = copy.calls()
    assert "broken core" in copy.refusal("build.find_or_build('torch')")
    assert copy.calls() == calls
    assert all(name.endswith(".json") for name in copy.built())


def test_a_compiler_that_the_system_killed_is_not_remembered(copy):
    copy.install("jax")
    assert "exit status -9" in copy.refusal(JAX, KILLED="1")
    assert copy.built() == []
    assert copy.answer(copy.evaluate(JAX)) == ANSWER


def test_no_compiler(copy):
    copy.install("jax")
    told = copy.refusal(JAX, **without_compiler(copy))
    assert "no g++, clang++ or c++ in PATH" in told and "build-essential" in told
    assert "in PATH" in copy.evaluate("build.state('jax')", **without_compiler(copy))
    assert not copy.cache.exists()
    told = copy.refusal(JAX, CXX="/no/such/c++ -m64")
    assert "Received: CXX=/no/such/c++ -m64" in told
    assert copy.answer(copy.evaluate(JAX)) == ANSWER
    # CXX may have arguments, and without it PATH is searched.
    folder = f"{copy.compiler.parent}{os.pathsep}{os.environ['PATH']}"
    calls = len(copy.calls())
    assert copy.evaluate("toolchain.find_compiler().path", CXX=None, PATH=folder) == str(
        copy.compiler
    )
    told = copy.evaluate("toolchain.find_compiler()", CXX=f"env {copy.compiler}")
    assert f"command=('env', '{copy.compiler}')" in told and len(copy.calls()) == calls


def test_a_cache_that_cannot_be_written(copy):
    copy.install("jax")
    occupied = copy.folder / "file"
    occupied.write_text("")
    told = copy.refusal(JAX, KERAS_INTERNIMAGE_CACHE=occupied / "cache")
    assert "must be writable" in told and str(occupied / "cache") in told
    assert "KERAS_INTERNIMAGE_CACHE" in told and not copy.calls()


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"KERAS_INTERNIMAGE_CACHE": "/chosen"}, "/chosen"),
        ({"KERAS_INTERNIMAGE_CACHE": "~/chosen", "HOME": "/home/me"}, "/home/me/chosen"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/keras_internimage/kernels"),
        ({"HOME": "/home/me"}, "/home/me/.cache/keras_internimage/kernels"),
    ],
)
def test_the_place_of_the_cache(copy, variables, expected):
    variables = {"KERAS_INTERNIMAGE_CACHE": None, **variables}
    assert copy.evaluate("cache.root()", **variables) == expected


def test_nothing_is_built_on_windows(copy):
    copy.install("jax")
    code = "import sys; sys.platform = 'win32'\nfrom custom_ops import build, libraries\n"
    status, _, err = copy.run("-c", code + JAX)
    assert status == 1 and "on Linux and macOS only" in err and not copy.calls()
    status, out, err = copy.run("-c", code + "print(libraries.CORE)")
    assert status == 0 and out.strip() == "dcnv3_core.dll", err


def test_frameworks_that_will_not_do(copy):
    told = copy.refusal("build.find_or_build('torch')")
    assert "torch must be installed" in told and "no package torch" in told
    status, _, err = copy.command("build", "--backend", "torch")
    assert (status, err.strip()) == (1, told) and not copy.calls()
    copy.install("torch", version="2.9.1")
    assert "Received: torch 2.9.1" in copy.refusal("build.find_or_build('torch')")
    copy.install("torch", version="2.10.0")
    assert copy.evaluate("build.find_or_build('torch')").endswith(NAMES["torch"])
    copy.install("jax")
    shutil.rmtree(copy.site / "jaxlib" / "include")
    assert "jax 0.10.2 without" in copy.refusal(JAX)
    status, _, err = copy.run("-c", "from custom_ops import build; build.find('theano')")
    assert status == 1 and "ValueError: backend must be one of" in err


def test_libraries_that_are_shipped(copy):
    copy.install("jax")
    shipped = copy.folder / "shipped"
    status, out, err = copy.command("build", "--output", shipped)
    assert status == 0, err
    assert out.splitlines() == [str(shipped / NAMES["jax"])]
    assert sorted(os.listdir(shipped)) == [NAMES["jax"], "libdcnv3_core.so"]
    calls = copy.calls()
    elsewhere = {
        **without_compiler(copy),
        "KERAS_INTERNIMAGE_KERNEL_PATH": shipped,
        "KERAS_INTERNIMAGE_CACHE": "/proc/none",
    }
    assert copy.evaluate(JAX, **elsewhere) == str(shipped / NAMES["jax"])
    assert copy.evaluate("build.core_library()", **elsewhere) == str(shipped / "libdcnv3_core.so")
    assert copy.answer(shipped / NAMES["jax"]) == ANSWER

    # It comes before the cache, which is not tried where the version is another one.
    here = {"KERAS_INTERNIMAGE_KERNEL_PATH": shipped}
    assert copy.evaluate("build.find('jax')", **here) == str(shipped / NAMES["jax"])
    copy.install("jax", version="0.11.0")
    told = copy.refusal(JAX, **here)
    assert f"{shipped}, without dcnv3_jax-0.11.0.so;" in told
    assert f"found there: {NAMES['jax']}, libdcnv3_core.so" in told
    assert copy.evaluate("build.find('jax')", **here) == "None"
    assert copy.calls() == calls

    copy.install("jax")
    (shipped / "libdcnv3_core.so").unlink()
    assert "without libdcnv3_core.so;" in copy.refusal(JAX, **here)
    told = copy.refusal(JAX, KERAS_INTERNIMAGE_KERNEL_PATH="/no/such/folder")
    assert "found there: none" in told


def test_an_output_that_cannot_be_written(copy):
    copy.install("jax")
    output = copy.folder / "file"
    output.write_text("")
    status, _, err = copy.command("build", "--output", output)
    assert status == 1 and str(output) in err and "--output" in err and "Traceback" not in err
    assert not copy.calls()


def test_the_command_builds_for_all_that_are_installed(copy):
    status, _, err = copy.command("build")
    assert status == 1 and "must be installed. Received: none" in err
    copy.install(*BACKENDS)
    status, out, err = copy.command("build")
    assert status == 0, err
    assert sorted(map(os.path.basename, out.split())) == sorted(NAMES.values())
    assert err.count("building") == 1 and "for tensorflow and jax and torch with" in err
    assert sum("cpu.cc" in call for call in copy.calls()) == 1
    # It really builds each time.
    copy.command("build", "--backend", "torch")
    assert sum("cpu.cc" in call for call in copy.calls()) == 2
    assert copy.command("build", "--backend", "theano")[0] == 2


def test_one_binding_that_fails_does_not_stop_the_others(copy):
    copy.install(*BACKENDS)
    copy.install("torch", version="2.8.0")
    copy.write("jax/dcnv3_jax.cc", "#error broken binding\n")
    shipped = copy.folder / "shipped"
    status, out, err = copy.command("build", "--output", shipped)
    assert status == 1 and not out
    assert "broken binding" in err and "Received: torch 2.8.0" in err and "Traceback" not in err
    assert sorted(os.listdir(shipped)) == [NAMES["tensorflow"], "libdcnv3_core.so"]
    assert copy.answer(shipped / NAMES["tensorflow"]) == ANSWER


def test_status_and_clean(copy):
    copy.install("jax", "torch")
    (copy.cache / "mine").mkdir(parents=True)
    path = copy.evaluate(JAX)
    calls = copy.calls()
    status, out, err = copy.command("status")
    lines = out.splitlines()
    assert status == 0 and not err and copy.calls() == calls
    assert lines[0].startswith("tensorflow  unavailable: tensorflow must be installed")
    assert lines[1] == f"jax         compiled on this machine, {path}"
    assert lines[2].startswith("torch       not built yet") and lines[2].endswith("g++ 12.2")
    assert lines[3] == f"cache       {copy.cache}"
    assert copy.command("clean")[:2] == (0, f"{copy.cache}: 1 build removed\n")
    assert os.listdir(copy.cache / "mine") == [] and copy.built() == []
    assert copy.evaluate("build.find('jax')") == "None"


def test_cuda(copy):
    copy.install("jax").importable("jax")
    nvcc = copy.program("cuda/bin/nvcc", NVCC)
    environment = {"CUDA_HOME": nvcc.parent.parent, "PATH": f"{nvcc.parent}:{os.environ['PATH']}"}
    # The installed framework decides, where the caller does not.
    assert copy.evaluate(JAX, **environment).endswith(NAMES["jax"])
    (copy.site / "jax_cuda13_plugin").mkdir()
    name = "dcnv3_jax-0.10.2-cuda.so"
    path = copy.evaluate(JAX, **environment)
    assert os.path.basename(path) == name and copy.answer(path) == ANSWER
    assert {name, "libdcnv3_cuda.so", NAMES["jax"]} <= set(copy.built())
    (compiled,) = [call for call in copy.calls() if "cuda.cu" in call]
    (told,) = [call for call in copy.calls() if "cuda_info.cu" in call]
    assert "-DDCNV3_ARCHITECTURES=sm_75_sm_80_sm_90_compute_90 " in told
    assert "-gencode=arch=compute_75,code=sm_75" in compiled
    assert "-gencode=arch=compute_80,code=sm_80" in compiled
    assert "-gencode=arch=compute_90,code=compute_90" in compiled and "_100" not in compiled
    assert "-Xcompiler -fPIC,-fvisibility=hidden" in compiled
    (binding,) = [call for call in copy.calls() if "-DDCNV3_CUDA" in call]
    assert "-I/cuda/headers" in binding
    shipped = copy.folder / "shipped"
    status, _, err = copy.command("build", "--cuda", "--output", shipped, **environment)
    assert status == 0, err
    assert sorted(os.listdir(shipped)) == [name, "libdcnv3_core.so", "libdcnv3_cuda.so"]
    elsewhere = {**without_compiler(copy), "KERAS_INTERNIMAGE_KERNEL_PATH": shipped}
    assert copy.evaluate(JAX, **elsewhere) == str(shipped / name)


def test_cuda_with_each_framework(copy):
    copy.install(*BACKENDS).importable(*BACKENDS)
    nvcc = copy.program("cuda/bin/nvcc", NVCC)
    environment = {"CUDA_HOME": nvcc.parent.parent, "PATH": f"{nvcc.parent}:{os.environ['PATH']}"}
    command = ("build", "--cuda", "--backend")
    status, _, err = copy.command(*command, "torch", **environment)
    assert status == 1 and "torch must be a build with CUDA" in err
    shutil.copy(copy.site / "torch/lib/libtorch_cpu.so", copy.site / "torch/lib/libtorch_cuda.so")
    status, out, err = copy.command(*command, "all", **environment)
    assert status == 0, err
    assert [copy.answer(path) for path in out.split()] == [ANSWER] * 3
    assert all(path.endswith("-cuda.so") for path in out.split())
    compiled = [call for call in copy.calls() if "-DDCNV3_CUDA" in call]
    assert len(compiled) == 3
    assert all(("-DGOOGLE_CUDA=1" in call) == ("tensorflow.cc" in call) for call in compiled)
    assert sum("-ltorch_cuda" in call for call in copy.calls()) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_whether_a_framework_has_cuda(copy, backend):
    copy.install(backend)
    has = f"toolchain.framework({backend!r}).has_cuda()"
    told = copy.site / "tensorflow/python/platform/build_info.py"
    told.parent.mkdir(parents=True)
    told.write_text("build_info = dict([('is_cuda_build', False), ('is_rocm_build', True)])")
    assert copy.evaluate(has) == "False"
    told.write_text("build_info = dict([('is_cuda_build', True), ('is_rocm_build', False)])")
    (copy.site / "jax_cuda12_plugin").mkdir()
    (copy.site / "torch/lib").mkdir(parents=True, exist_ok=True)
    (copy.site / "torch/lib/libtorch_cuda.so").write_text("")
    assert copy.evaluate(has) == "True"


def test_the_version_of_a_distribution_of_another_name(copy):
    copy.install("tensorflow")
    folder = copy.site / f"tensorflow-{VERSIONS['tensorflow']}.dist-info"
    other = folder.rename(copy.site / "tf_nightly-2.22.0.dist-info")
    (other / "METADATA").write_text("Name: tf-nightly\nVersion: 2.22.0\n")
    assert "metadata" in copy.refusal("build.find_or_build('tensorflow')")
    (other / "top_level.txt").write_text("tensorflow\n")
    assert copy.evaluate("toolchain.framework('tensorflow').version") == "2.22.0"


def test_an_unreadable_record_is_no_failure(copy):
    copy.install("jax")
    copy.write("core/cpu.cc", "#error broken core\n")
    copy.refusal(JAX)
    (record,) = copy.cache.glob("*/*.json")
    assert "broken core" in json.loads(record.read_text())["message"]
    record.write_text("{")
    assert "remembered" not in copy.refusal(JAX)
