"""What the kernels are built with and built for: the compilers and the installed frameworks."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess

COMMAND = "python -m keras_internimage.custom_ops"
ADVICE = (
    "A C++17 compiler such as g++ 9 or newer is needed: on Debian and Ubuntu the package "
    "build-essential, on Fedora gcc-c++, on macOS the command line tools (xcode-select "
    f"--install). The variable CXX chooses a compiler. Then: {COMMAND} build"
)
LAST_LINES = 15
CUDA = "/usr/local/cuda"
# The first whose headers have atomic additions of four floats, which the backward kernel uses.
OLDEST_NVCC = (12, 1)
CUDA_ADVICE = (
    "nvcc {}.{} or newer is needed, of a CUDA version that the driver supports, and a C++ compiler "
    "that this nvcc accepts (the variable CXX chooses one). For CUDA 13, pip installs it: "
    'pip install "cuda-toolkit[nvcc,cccl]>=13"; jax[cuda13] brings it. For CUDA 12, pip has none: '
    "it is in NVIDIA's CUDA toolkit and in conda's package cuda-nvcc, and CUDA_HOME names the "
    "folder. Where a package keras-internimage-cu12 is published, it needs no nvcc. "
    "Then: {} build --cuda"
).format(*OLDEST_NVCC, COMMAND)


class KernelsUnavailable(RuntimeError):
    """There are no native kernels; the message says why, and what can be done."""


class CommandFailed(KernelsUnavailable):
    """A command of the build failed.

    Attributes:
        lasting: whether the same command will fail again; not where memory or disk ran out.
    """

    def __init__(self, message, lasting):
        super().__init__(message)
        self.lasting = lasting


@dataclasses.dataclass(frozen=True)
class Compiler:
    """A command such as `("ccache", "g++")`, where it lies, and the line that tells its version."""

    command: tuple
    path: str
    version: str

    @property
    def name(self):
        """For people: `g++ 12.2`."""
        number = re.search(r"\d+\.\d+", re.sub(r"\(.*?\)", "", self.version))
        program = [part for part in self.command if not part.startswith("-")][-1]
        return f"{os.path.basename(program)} {number[0] if number else ''}".rstrip()


def find_compiler():
    """The C++ compiler: $CXX, else the first of g++, clang++ and c++.

    Raises:
        KernelsUnavailable: there is none, or it does not run.
    """
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["g++", "clang++", "c++"]:
        command = tuple(shlex.split(name))
        path = shutil.which(command[0]) if command else None
        if path is not None:
            lines = run([*command, "--version"]).splitlines()
            return Compiler(command, os.path.realpath(path), lines[0] if lines else "")
    received = f"CXX={chosen}, which is no program" if chosen else "no g++, clang++ or c++ in PATH"
    raise KernelsUnavailable(
        f"DCNv3's native kernels need a C++ compiler. Received: {received}. {ADVICE}"
    )


def nvcc_paths():
    """Where NVIDIA's compiler lies: by $CUDA_HOME, $CUDA_PATH, PATH, by default, and by pip."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    wheels = [str(folder) for folder in cuda_wheels()]
    places = [*(os.path.join(home, "bin", "nvcc") for home in homes if home), "nvcc"]
    places += [os.path.join(folder, "bin", "nvcc") for folder in (CUDA, *wheels) if folder]
    return list(dict.fromkeys(filter(None, map(shutil.which, places))))


def cuda_wheels():
    """The folders that NVIDIA's wheels share, such as `nvidia/cu13`, the latest version first."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations if spec else None) or ()
    found = [path for root in roots for path in pathlib.Path(root).glob("cu[0-9]*")]
    return sorted(found, key=lambda path: int(re.sub(r"\D", "", path.name)), reverse=True)


def find_nvcc():
    """NVIDIA's compiler, the first of `nvcc_paths()` that is new enough.

    Raises:
        KernelsUnavailable: there is none, or it does not run.
    """
    received = []
    for path in nvcc_paths():
        lines = run([path, "--version"], advice=CUDA_ADVICE).strip().splitlines()
        found = Compiler((path,), os.path.realpath(path), lines[-1] if lines else "")
        number = re.search(r"cuda_(\d+)\.(\d+)", found.version)
        if number is None or tuple(map(int, number.groups())) >= OLDEST_NVCC:
            return found
        received.append(f"nvcc {number[1]}.{number[2]}, {path}")
    nowhere = f"no nvcc in $CUDA_HOME/bin, $CUDA_PATH/bin, PATH, {CUDA}/bin or NVIDIA's wheels"
    raise KernelsUnavailable(
        "DCNv3's kernels for NVIDIA GPUs must be compiled by nvcc. "
        f"Received: {', '.join(received) or nowhere}. {CUDA_ADVICE}"
    )


def cuda_architectures(nvcc, wanted):
    """Those of `wanted`, such as 80 for sm_80, that this nvcc compiles for."""
    told = run([*nvcc.command, "--list-gpu-arch"], advice=CUDA_ADVICE)
    known = set(re.findall(r"compute_(\d+)\b", told))
    found = [number for number in wanted if str(number) in known]
    if not found:
        raise KernelsUnavailable(
            f"nvcc must know one of the architectures {', '.join(map(str, wanted))}. "
            f"Received: nvcc={nvcc.path}, which knows {', '.join(sorted(known, key=int))}"
        )
    return found


def cuda_includes(nvcc):
    """Where the CUDA headers lie, as nvcc itself would look for them."""
    dry = [*nvcc.command, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", "unused.o"]
    lines = [line for line in run(dry, advice=CUDA_ADVICE).splitlines() if "INCLUDES=" in line]
    return re.findall(r'"-I([^"]+)"', "\n".join(lines))


def cuda_library_folders(nvcc):
    """Where the libraries lie that nvcc links; empty where only nvcc itself knows.

    The wheels have them in `lib`, where the nvcc of some looks in `lib64`.
    """
    root = pathlib.Path(nvcc.path).parent.parent
    folders = [root / name for name in ("lib64", "lib")]
    return [folder for folder in folders if (folder / "libcudart_static.a").is_file()]


def run(command, cwd=None, advice=ADVICE):
    """What a command prints, on both streams.

    Args:
        command: the program and its arguments.
        cwd: the folder to run it in.
        advice: what can be done where it fails.

    Raises:
        CommandFailed: it cannot be started or fails. The message has the command and the end of
            what it printed.
    """
    command = [str(part) for part in command]
    try:
        result = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise CommandFailed(_failure(command, str(error), "", advice), lasting=False) from error
    if result.returncode:
        # A driver says on its compiler's behalf that the system killed it.
        passing = result.returncode < 0 or re.search(
            r"Killed|Terminated|No space left on device|out of memory|Cannot allocate memory",
            result.stdout,
        )
        status = f"exit status {result.returncode}"
        message = _failure(command, status, result.stdout, advice)
        raise CommandFailed(message, lasting=not passing)
    return result.stdout


def _failure(command, status, output, advice):
    lines = [f"  {line}" for line in output.rstrip().splitlines()[-LAST_LINES:]]
    failed = f"A command that builds DCNv3's native kernels failed ({status}):"
    return "\n".join([failed, f"  {shlex.join(command)}", *lines, advice])


@dataclasses.dataclass(frozen=True)
class Framework:
    """An installed framework: its version and the folder of its package."""

    backend: str
    version: str
    root: pathlib.Path

    def has_cuda(self):
        """Whether this build of the framework computes on NVIDIA GPUs; nothing is imported."""
        if self.backend == "torch":
            return any((self.root / "lib").glob("libtorch_cuda.*"))
        if self.backend == "jax":
            return any(self.root.parent.glob("jax_cuda*_plugin"))
        told = self.root / "python" / "platform" / "build_info.py"
        return told.is_file() and "'is_cuda_build', True" in told.read_text()

    def folder(self, name):
        """A folder of the package that a build needs."""
        path = self.root / name
        if not path.is_dir():
            raise KernelsUnavailable(
                f"{self.backend} must be installed with its C++ headers and libraries. "
                f"Received: {self.backend} {self.version} without {path}"
            )
        return path


# The package that has a backend's C++ headers, and the distributions that install it.
_PACKAGES = {
    "tensorflow": ("tensorflow", ("tensorflow", "tensorflow-cpu")),
    "jax": ("jaxlib", ("jaxlib",)),
    "torch": ("torch", ("torch",)),
}


def framework(backend):
    """The installed `Framework` of a backend, found without importing it.

    Raises:
        KernelsUnavailable: it is not installed.
    """
    package, distributions = _PACKAGES[backend]
    spec = importlib.util.find_spec(package)
    # A folder of that name without an __init__.py is something else.
    if spec is None or spec.origin is None:
        raise KernelsUnavailable(
            f"{backend} must be installed for DCNv3's native kernels for {backend}. "
            f"Received: no package {package}"
        )
    return Framework(backend, _version(package, distributions), pathlib.Path(spec.origin).parent)


def _version(package, distributions):
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # Slower, as it reads what every distribution installed.
    names = importlib.metadata.packages_distributions().get(package)
    if not names:
        raise KernelsUnavailable(
            f"{package} must be installed with its metadata, which tells the version. "
            "Received: a package without"
        )
    return importlib.metadata.version(names[0])
