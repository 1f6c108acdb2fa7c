"""The native libraries: their names, and the commands that make them.

Every object is compiled by one command, and every library linked by one.
"""

import dataclasses
import hashlib
import os
import pathlib
import platform
import re
import sys

from . import toolchain
from .toolchain import KernelsUnavailable

BACKENDS = ("tensorflow", "jax", "torch")
SOURCES = pathlib.Path(__file__).resolve().parent

# On Windows the compiler is clang++ for Microsoft's C++ ("x86_64-pc-windows-msvc").
WINDOWS = sys.platform == "win32"
_MAC = sys.platform == "darwin"
_X86 = platform.machine() in ("x86_64", "AMD64", "amd64")
SUFFIX = ".dll" if WINDOWS else ".dylib" if _MAC else ".so"
_PREFIX = "" if WINDOWS else "lib"
CORE = f"{_PREFIX}dcnv3_core{SUFFIX}"
CUDA_CORE = f"{_PREFIX}dcnv3_cuda{SUFFIX}"

_SHARED_FLAGS = () if WINDOWS else ("-fPIC",)
_CORE_FLAGS = (
    *("-std=c++17", "-O3", *_SHARED_FLAGS, "-fno-math-errno", "-fno-trapping-math"),
    *("-fvisibility=hidden", "-Wall", "-Wextra"),
)
# The kernels are compiled once for each of these; the core chooses when it is loaded.
_AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c")
_ISAS = {
    "sse2": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (*_AVX512, "-mprefer-vector-width=512"),
}
_BINDING_FLAGS = ("-std=c++17", "-O2", *_SHARED_FLAGS, "-fvisibility=hidden")
_CUDA_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden")
_CUDA_ARCHITECTURES = (75, 80, 90, 100, 120)
# The latest whose PTX is kept, which drivers compile for GPUs that no machine code is for: not that
# of 120, since there are GPUs between the two, such as those of 110.
_CUDA_PTX = 100
# Of LibTorch's stable ABI: a library made for it also loads in later versions.
_TORCH_ABI = (2, 10)
# Of XLA's foreign function interface: that of the headers a wheel's binding is compiled with. Newer
# versions of XLA load it as well.
_XLA_FFI = (0, 1)


@dataclasses.dataclass(frozen=True)
class Library:
    """A shared library and how it is made.

    Attributes:
        name: of the file.
        objects: pairs of a command that lacks its output, and the object's name.
        link: the command that lacks objects, output and libraries.
        libraries: arguments that follow the objects.
        backend: whose binding it is; None for a library that bindings need.
        version: of the framework whose headers are compiled.
        advice: what can be done where a command fails.
        beside: names of further files that the link command writes, for other libraries to link.
    """

    name: str
    objects: tuple
    link: tuple
    libraries: tuple = ()
    backend: str | None = None
    version: str = ""
    advice: str = toolchain.ADVICE
    beside: tuple = ()


def digest(parts, length):
    """A hash, in hexadecimal digits."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        whole.update(b"%d " % len(data) + data)
    return whole.hexdigest()[:length]


def sources_key(cuda):
    """A hash of all that the libraries are made of, and of the machine they are made for."""
    return _key(cuda, *platform.libc_ver())


def packaged_key():
    """That of the libraries in a wheel, which serve more than one C library."""
    return _key("wheel")


def _key(*purpose):
    parts = [*purpose, platform.machine(), sys.platform]
    kinds = {".h", ".cc", ".cpp", ".cu", ".cuh", ".inl"}
    for path in sorted(path for path in SOURCES.rglob("*") if path.suffix in kinds):
        parts += [path.relative_to(SOURCES), path.read_bytes()]
    # The flags are in this file.
    return digest([*parts, pathlib.Path(__file__).read_bytes()], 16)


def needed_names(cuda):
    """The files that every binding needs beside itself."""
    return (CORE, CUDA_CORE) if cuda else (CORE,)


def binding_name(backend, cuda):
    """The file name of a binding, with the version of the framework that can load it.

    Raises:
        KernelsUnavailable: the framework is not installed, or too old.
    """
    version = toolchain.framework(backend).version
    if backend == "torch":
        version = _torch_abi(version)
    return f"dcnv3_{backend}-{version}{'-cuda' if cuda else ''}{SUFFIX}"


def _torch_abi(version):
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _TORCH_ABI:
        raise KernelsUnavailable(
            "torch must be 2.10 or newer for DCNv3's native kernels, which use its stable C++ "
            f"interface. Received: torch {version}"
        )
    return "abi{}.{}".format(*_TORCH_ABI)


def packaged_name(framework, cuda=False):
    """The file name of a binding in a wheel, where it serves all versions that it can.

    Raises:
        KernelsUnavailable: the framework is too old.
    """
    end = f"{'-cuda' if cuda else ''}{SUFFIX}"
    if framework.backend == "torch":
        return f"dcnv3_torch-{_torch_abi(framework.version)}{end}"
    if framework.backend == "jax":
        return "dcnv3_jax-ffi{}.{}{}".format(*_XLA_FFI, end)
    # TensorFlow's C++ interface is another one in each minor version, and in those between them.
    release = re.fullmatch(r"(\d+\.\d+)\.\d+(\+.*)?", framework.version)
    return f"dcnv3_tensorflow-{release[1] if release else framework.version}{end}"


def found_in(folder):
    """The names of the native libraries in a folder."""
    return sorted(path.name for path in folder.glob(f"*dcnv3_*{SUFFIX}"))


def _link(compiler, name):
    """The command that links a library which looks for others beside itself."""
    # For macOS and Windows it has compiled and linked, by another system's compiler, and not run.
    if WINDOWS:
        return (*compiler.command, "-shared")  # where a DLL lies, its own are looked for
    if _MAC:
        named = ("-dynamiclib", "-undefined", "dynamic_lookup", "-install_name", f"@rpath/{name}")
        return (*compiler.command, *named, "-Wl,-rpath,@loader_path")
    return (*compiler.command, "-shared", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-pthread")


def core(compiler):
    """The kernels for processors."""
    common = (*compiler.command, *_CORE_FLAGS, "-c")
    x86 = ("-DDCNV3_X86",) if _X86 else ()
    objects = [
        ((*common, *x86, SOURCES / "core" / f"{name}.cc"), f"{name}.o")
        for name in ("cpu", "cpu_convolution")
    ]
    # A fused product would move what lies at a threshold of suppression.
    exact = (*common, *x86, "-ffp-contract=off", SOURCES / "core" / "cpu_detection.cc")
    objects.append((exact, "cpu_detection.o"))
    for isa, flags in (_ISAS if _X86 else {"generic": ()}).items():
        command = (*common, *flags, f"-DDCNV3_ISA={isa}", SOURCES / "core" / "cpu_kernels.cc")
        objects.append((command, f"cpu_kernels.{isa}.o"))
    # Windows links the import library of a DLL: the linker writes it.
    beside = ("dcnv3_core.lib",) if WINDOWS else ()
    return Library(CORE, tuple(objects), _link(compiler, CORE), beside=beside)


def cuda_core(compiler, nvcc):
    """The kernels for NVIDIA GPUs."""
    known = toolchain.cuda_architectures(nvcc, _CUDA_ARCHITECTURES)
    code = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in known]
    ptx = max((number for number in known if number <= _CUDA_PTX), default=known[-1])
    code.append(f"-gencode=arch=compute_{ptx},code=compute_{ptx}")
    # A compiler that the user chose is also nvcc's.
    chosen = len(compiler.command) == 1 and os.environ.get("CXX")
    start = (*nvcc.command, *(("-ccbin", compiler.path) if chosen else ()))
    common = (*start, *_CUDA_FLAGS, *code, "--threads", "0", "-c")
    # The library can tell what code it holds.
    told = "_".join(f"sm_{number}" for number in known) + f"_compute_{ptx}"
    info = (*common, f"-DDCNV3_ARCHITECTURES={told}", SOURCES / "core" / "cuda_info.cu")
    kernels = ("cuda", "cuda_detection")
    objects = [((*common, SOURCES / "core" / f"{name}.cu"), f"{name}.o") for name in kernels]
    objects.append((info, "cuda_info.o"))
    # Frameworks bring CUDA runtimes of various versions: the one used here is inside the library.
    link = (*start, "-shared", "-cudart", "static", "-Xlinker", f"-soname,{CUDA_CORE}")
    folders = tuple(f"-L{folder}" for folder in toolchain.cuda_library_folders(nvcc))
    return Library(CUDA_CORE, tuple(objects), link, folders, advice=toolchain.CUDA_ADVICE)


def binding(backend, folder, compiler, nvcc=None):
    """The library that registers the kernels, which lie in `folder`, with a framework."""
    name = binding_name(backend, nvcc is not None)
    return binding_of(toolchain.framework(backend), name, folder, compiler, nvcc)


def binding_of(framework, name, folder, compiler, nvcc=None):
    """As `binding`, of a framework that need not be the installed one, under a given name."""
    backend = framework.backend
    flags, libraries = _FRAMEWORKS[backend](framework)
    libraries += ["-L", folder, "-ldcnv3_core"]
    if nvcc is not None:
        flags += ["-DDCNV3_CUDA", *(f"-I{path}" for path in toolchain.cuda_includes(nvcc))]
        libraries += ["-ldcnv3_cuda"]
        if backend == "tensorflow":
            flags += ["-DGOOGLE_CUDA=1"]
        if backend == "torch":
            if not framework.has_cuda():
                raise KernelsUnavailable(
                    "torch must be a build with CUDA for DCNv3's kernels with CUDA, which are "
                    f"linked with its libraries. Received: torch {framework.version}, without"
                )
            libraries += ["-ltorch_cuda"]
    source = SOURCES / backend / f"dcnv3_{backend}.cc"
    command = (*compiler.command, *_BINDING_FLAGS, *flags, f"-I{SOURCES / 'core'}", "-c", source)
    return Library(
        name,
        ((command, f"{name}.o"),),
        _link(compiler, name),
        tuple(libraries),
        backend,
        framework.version,
        toolchain.ADVICE if nvcc is None else toolchain.CUDA_ADVICE,
    )


def _tensorflow(framework):
    # Its headers warn by the hundred. The wheels for Linux use the new ABI of libstdc++, and those
    # for macOS specialize what new versions of libc++ forbid.
    abi = ["-Wno-invalid-specialization"] if _MAC else ["-D_GLIBCXX_USE_CXX11_ABI=1"]
    flags = ["-w", "-DEIGEN_MAX_ALIGN_BYTES=64", *abi, f"-I{framework.folder('include')}"]
    library = "-ltensorflow_framework.2" if _MAC else "-l:libtensorflow_framework.so.2"
    return flags, ["-L", framework.root, library]


def _jax(framework):
    return [f"-I{framework.folder('include')}"], []


def _torch(framework):
    target = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}{:012x}ull".format(*_TORCH_ABI, 0)
    flags = [target, "-DTORCH_STABLE_ONLY", f"-I{framework.folder('include')}"]
    return flags, ["-L", framework.folder("lib"), "-ltorch_cpu"]


_FRAMEWORKS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
