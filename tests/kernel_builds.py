"""A small copy of custom_ops to build for real, with frameworks and compilers that are pretended.

The copy has the Python modules of custom_ops and sources of a few lines. Every process runs
without site-packages, so that the frameworks of the copy are the only ones.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

CUSTOM_OPS = pathlib.Path(__file__).resolve().parent.parent / "custom_ops"
COMPILER = next(filter(None, map(shutil.which, ["g++", "clang++", "c++"])), None)
TIMEOUT = 60

CORE = """
#include "dcnv3.h"
#ifdef DCNV3_X86
extern "C" int kernel_sse2(), kernel_avx2(), kernel_avx512();
int dcnv3_answer() { return kernel_sse2() + kernel_avx2() + kernel_avx512(); }
#else
extern "C" int kernel_generic();
int dcnv3_answer() { return kernel_generic(); }
#endif
"""
KERNELS = """
#define NAME_OF(isa) kernel_##isa
#define NAME(isa) NAME_OF(isa)
#ifdef __AVX512BW__
enum { kAnswer = 100 };
#elif defined(__AVX2__) && defined(__FMA__)
enum { kAnswer = 10 };
#else
enum { kAnswer = 1 };
#endif
extern "C" int NAME(DCNV3_ISA)() { return kAnswer; }
"""
HEADER = """
#define DCNV3_EXPORT __attribute__((visibility("default")))
extern "C" DCNV3_EXPORT int dcnv3_answer();
"""
BINDING = """
#include <framework.h>
#include "dcnv3.h"
#if !({condition})
#error "a flag is missing"
#endif
extern "C" DCNV3_EXPORT int answer() {{ return 1000 + dcnv3_answer(); }}
"""
# What the check after a build with CUDA asks of a framework. `import` of the others fails.
IMPORTABLE = {
    "torch": {
        "torch/__init__.py": """
            import ctypes, types
            ops = types.SimpleNamespace(load_library=ctypes.CDLL)
            def has(name, key): return key.lower() in {devices!r}
            _C = types.SimpleNamespace(_dispatch_has_kernel_for_dispatch_key=has)
        """,
    },
    "jax": {
        "jaxlib/__init__.py": "",
        "jax/__init__.py": """
            import types
            def register_ffi_target(name, handler, platform): pass
            ffi = types.SimpleNamespace(pycapsule=id, register_ffi_target=register_ffi_target)
        """,
    },
    "tensorflow": {
        "tensorflow/__init__.py": "import ctypes; load_op_library = ctypes.CDLL",
        "tensorflow/python/__init__.py": "",
        "tensorflow/python/framework/__init__.py": "",
        "tensorflow/python/framework/kernels.py": """
            import types
            names = {{"cpu": "CPU", "cuda": "GPU"}}
            def get_registered_kernels_for_op(name):
                kinds = [types.SimpleNamespace(device_type=names[d]) for d in {devices!r}]
                return types.SimpleNamespace(kernel=kinds)
        """,
    },
}
HANDLERS = """
#define HANDLERS(device) extern "C" DCNV3_EXPORT void keras_internimage_dcnv3_##device() {} \\
  extern "C" DCNV3_EXPORT void keras_internimage_dcnv3_backward_##device() {}
"""
CONDITIONS = {
    "torch": "TORCH_TARGET_VERSION == 0x020a000000000000ull && defined(TORCH_STABLE_ONLY)",
    "jax": "__cplusplus >= 201703L",
    "tensorflow": "EIGEN_MAX_ALIGN_BYTES == 64 && _GLIBCXX_USE_CXX11_ABI == 1",
}
PACKAGES = {"torch": "torch", "jax": "jaxlib", "tensorflow": "tensorflow"}
VERSIONS = {"torch": "2.13.0+cpu", "jax": "0.10.2", "tensorflow": "2.21.0"}

# Notes its arguments. With HANG it never ends what it began of the commands that contain it, and
# with KILLED it is as if memory ran out.
WRAPPER = """#!/bin/sh
case "$*" in *--version*) /bin/cat "{version}"; exit 0;; esac
echo "$*" >> "{calls}"
if [ -n "$HANG" ]; then case "$*" in *"$HANG"*)
  while [ "$1" != "-o" ]; do shift; done
  echo half > "$2"; echo "$2" > "{hanging}"; sleep 30;;
esac; fi
if [ -n "$KILLED" ]; then kill -9 $$; fi
exec "{compiler}" "$@"
"""
NVCC = """#!/bin/sh
case "$*" in
*--version*) echo "Build cuda_13.0"; exit 0;;
*--list-gpu-arch*) echo compute_75; echo compute_80; echo compute_90; exit 0;;
*--dryrun*) echo '#$ INCLUDES="-I/cuda/headers"'; exit 0;;
esac
echo "$*" >> "{calls}"
if [ -n "$NVCC_FAILS" ]; then echo "nvcc fatal: no such luck"; exit 1; fi
while [ "$1" != "-o" ]; do shift; done
echo 'extern "C" int cuda() {{ return 1; }}' | "{compiler}" -shared -fPIC -x c++ - -o "$2"
"""


class Copy:
    """The copy, its cache and its compiler in a temporary folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.sources = self.folder / "src" / "custom_ops"
        self.site = self.folder / "site"
        self.cache = self.folder / "cache"
        self.binaries = self.sources / "binaries"  # there is none but in a wheel
        self.nothing = self.folder / "nothing"  # a PATH without any program
        self.calls_file = self.folder / "calls"
        self.version_file = self.folder / "version"
        self.hanging = self.folder / "hanging"  # is there when a compiler hangs
        self.nothing.mkdir()
        self.sources.mkdir(parents=True)
        for path in CUSTOM_OPS.glob("*.py"):
            shutil.copy(path, self.sources)
        self.requirements = self.folder / "requirements"  # all that is installed beside frameworks
        self.requirements.mkdir()
        (package,) = importlib.util.find_spec("filelock").submodule_search_locations
        (self.requirements / "filelock").symlink_to(package)
        self.write("core/dcnv3.h", HEADER)
        self.write("core/cpu.cc", CORE)
        self.write("core/cpu_convolution.cc", "// a few lines\n")
        self.write("core/cpu_detection.cc", "// a few lines\n")
        self.write("core/cpu_kernels.cc", KERNELS)
        self.write("core/cuda.cu", "// a few lines\n")
        self.write("core/cuda_detection.cu", "// a few lines\n")
        self.write("core/cuda_info.cu", "// a few lines\n")
        for backend, condition in CONDITIONS.items():
            self.write(f"{backend}/dcnv3_{backend}.cc", BINDING.format(condition=condition))
        self.compiler = self.program("bin/g++", WRAPPER)
        self.version_file.write_text("g++ (Distribution 12.2.0-14) 12.2.0\nCopyright\n")

    def write(self, name, text):
        path = self.sources / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def program(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        names = {"version": self.version_file, "calls": self.calls_file, "hanging": self.hanging}
        path.write_text(text.format(compiler=COMPILER, **names))
        path.chmod(0o755)
        return path

    def install(self, *backends, version=None):
        """Pretend that frameworks are installed; importing one fails."""
        for backend in backends:
            package = self.site / PACKAGES[backend]
            for folder in ("include", "lib"):
                (package / folder).mkdir(parents=True, exist_ok=True)
            (package / "__init__.py").write_text("raise RuntimeError('imported for a build')\n")
            (package / "include" / "framework.h").write_text("")
            for name in ("lib/libtorch_cpu.so", "libtensorflow_framework.so.2"):
                self.empty_library(package / name)
            for old in self.site.glob(f"{PACKAGES[backend]}-*.dist-info"):
                shutil.rmtree(old)
            version = version or VERSIONS[backend]
            metadata = self.site / f"{PACKAGES[backend]}-{version}.dist-info" / "METADATA"
            metadata.parent.mkdir()
            metadata.write_text(f"Name: {PACKAGES[backend]}\nVersion: {version}\n")
            version = None
        return self

    def pack(self):
        """Put libraries for what is installed where a wheel has them, and empty the cache."""
        output = self.folder / "packed"
        status, _, err = self.command("build", "--output", output)
        assert status == 0, err
        self.command("clean")
        self.binaries.mkdir()
        shutil.copy(output / "libdcnv3_core.so", self.binaries)
        for backend in PACKAGES:
            for path in output.glob(f"dcnv3_{backend}-*"):
                expression = f"build.libraries.packaged_name(toolchain.framework({backend!r}))"
                shutil.copy(path, self.binaries / self.evaluate(expression))
        key = self.evaluate("build.libraries.packaged_key()")
        (self.binaries / "manifest.json").write_text(json.dumps({"key": key}))
        self.calls_file.unlink()

    def importable(self, *backends, devices=("cpu", "cuda")):
        """Installed frameworks can be imported, and libraries register kernels for `devices`."""
        for backend in backends:
            for name, text in IMPORTABLE[backend].items():
                path = self.site / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(textwrap.dedent(text).format(devices=devices))
            if backend == "jax":
                handlers = HANDLERS + "\n".join(f"HANDLERS({device})" for device in devices)
                binding = BINDING.format(condition=CONDITIONS["jax"])
                self.write("jax/dcnv3_jax.cc", f"{binding}{handlers}\n")
        return self

    def empty_library(self, path):
        command = [COMPILER, "-shared", "-x", "c++", os.devnull, "-o", str(path)]
        subprocess.run(command, check=True, timeout=TIMEOUT)

    def calls(self):
        """What the compilers were called with, but for their versions."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def built(self):
        """Everything in the cache but the lock, by name."""
        paths = self.cache.glob("*/*") if self.cache.is_dir() else ()
        return sorted(path.name for path in paths)

    def start(self, *arguments, **environment):
        """A Python process of its own process group; None removes a variable."""
        inherited = {key: value for key, value in os.environ.items() if not _chooses(key)}
        variables = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(
                map(str, (self.sources.parent, self.site, self.requirements))
            ),
            "KERAS_INTERNIMAGE_CACHE": str(self.cache),
            "CUDA_HOME": "",
            "CXX": str(self.compiler),
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, "-S", *map(str, arguments)],
            env={key: str(value) for key, value in variables.items() if value is not None},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, **environment):
        """The exit status, standard output and standard error of a Python process."""
        with self.start(*arguments, **environment) as process:
            out, err = process.communicate(timeout=TIMEOUT)
        return process.returncode, out, err

    def evaluate(self, expression, **environment):
        """What an expression of `build`, `cache`, `ctypes` prints; the process must succeed."""
        status, out, err = self.run("-c", PRELUDE + f"print({expression})", **environment)
        assert status == 0, err
        return out.strip()

    def refusal(self, expression, **environment):
        """The message of the KernelsUnavailable which an expression raises."""
        code = f"try:\n print({expression})\nexcept build.KernelsUnavailable as error:\n"
        status, out, err = self.run("-c", PRELUDE + code + " sys.exit(str(error))", **environment)
        assert status == 1 and not out, (out, err)
        assert "Traceback" not in err, err
        return err.strip()

    def command(self, *arguments, **environment):
        """`run` of the command line."""
        return self.run("-m", "custom_ops", *arguments, **environment)

    def answer(self, library):
        """What the binding at a path returns: 1000 and the answer of the core beside it."""
        return int(self.evaluate(f"ctypes.CDLL({str(library)!r}).answer()"))


PRELUDE = "import ctypes, sys; from custom_ops import build, cache, toolchain\n"


def _chooses(key):
    """Whether a variable of the tests' own environment would choose something here."""
    return key.startswith(("KERAS_INTERNIMAGE", "CUDA", "NVCC", "XDG", "CXX", "PYTHON", "CPLUS"))
