"""Builds into dist/ the wheel with DCNv3's CUDA kernels: for NVIDIA GPUs, without a compiler.

It is named for the major version of CUDA of the nvcc that compiles it, which is what it asks of the
driver: keras-internimage-cu12 or -cu13. Where there is no nvcc, there is no such wheel. `make
wheels` runs this file after build.py; `CUDA_HOME` names another nvcc.

It has the core with CUDA, the CUDA runtime within it, and the bindings: a binding for GPUs asks for
more of its framework than the one in the wheel for processors, so it comes along with the core.
Nothing in it is a framework's. No GPU and no driver are needed to build it.
"""

import argparse
import ctypes
import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile

import build as wheels
from custom_ops import build, cache, libraries, packaged, toolchain

# What a process has or the system gives; no CUDA library is among them.
SYSTEM = re.compile(r"(libc|libm|libpthread|libdl|librt|libgcc_s|libstdc\+\+|ld-linux[-\w]*)\.so\.")
GLIBC = (2, 28)
# Where glibc had, up to 2.33, what is in its main library now.
FORMER_LIBRARIES = (("pthread_", "pthread", 0), ("sem_", "pthread", 0), ("dl", "dl", 2))
FORMER_LIBRARIES += (("shm_", "rt", 1),)
# What the binding asks of PyTorch's CUDA library, whose wheel need not be downloaded for it.
OF_TORCH_CUDA = "aoti_torch_get_current_cuda_stream"


# ---- the libraries ----


def cuda_major(nvcc):
    """The major version of an nvcc's CUDA."""
    return int(re.search(r"cuda_(\d+)\.", nvcc.version)[1])


def former_symbols(text):
    """`{library: {version: [symbols]}}` of what glibc had elsewhere, by `objdump -T` of libc.so.6.

    A symbol that moved has its old version, too, for programs that were linked before it moved.
    """
    found = {}
    for version, symbol in re.findall(r"\(GLIBC_([\d.]+)\)\s+(\w+)$", text, re.M):
        if tuple(map(int, version.split("."))) > GLIBC:
            continue
        for start, library, number in FORMER_LIBRARIES:
            if symbol.startswith(start):
                versions = found.setdefault(f"lib{library}.so.{number}", {})
                versions.setdefault(f"GLIBC_{version}", []).append(symbol)
    return found


def stand_ins(folder, compiler):
    """Libraries to link with instead of the system's, so that an older glibc will do.

    The CUDA runtime is an archive: it is linked to the versions of symbols that the machine's glibc
    has, and no header can choose others, as compat.h does for what is compiled here.
    """
    path = toolchain.run([*compiler.command, "-print-file-name=libc.so.6"]).strip()
    text = toolchain.run(["objdump", "-T", path])
    for name, versions in former_symbols(text).items():
        _stand_in(folder, compiler, name, versions)
    return folder


def _stand_in(folder, compiler, name, versions):
    """A library of a name that has symbols and no more; `versions` as in `former_symbols`."""
    symbols = sorted({symbol for found in versions.values() for symbol in found})
    # Each under its oldest version: what was linked when there was no other.
    first = {}
    for version in sorted(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)]):
        for symbol in versions[version]:
            first.setdefault(symbol, version)
    script = folder / f"{name}.map"
    script.write_text(
        "\n".join(
            f"{version} {{ global: {'; '.join(s for s in symbols if first[s] == version)}; }};"
            for version in versions
            if version in first.values()
        )
    )
    source = folder / f"{name}.c"
    source.write_text("\n".join(f"void {symbol}(void) {{}}" for symbol in symbols))
    flags = ("-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w", f"-Wl,-soname,{name}")
    linked = folder / f"{name.partition('.so')[0]}.so"
    command = [*compiler.command, *flags, f"-Wl,--version-script,{script}", "-x", "c", source]
    toolchain.run([*command, "-o", linked])


def torch_cuda(framework, compiler):
    """PyTorch with a stand-in for its CUDA library beside those of its wheel for processors."""
    path = framework.folder("lib") / "libtorch_cuda.so"
    if not path.is_file():
        source = path.with_suffix(".c")
        source.write_text(f"void {OF_TORCH_CUDA}(void) {{}}\n")
        flags = ("-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{path.name}", "-x", "c")
        toolchain.run([*compiler.command, *flags, source, "-o", path])
    return framework


def compression(nvcc):
    """nvcc's options for machine code that is compressed the most: a fifth of its size.

    Every driver of CUDA 13 can read it, some of CUDA 12 cannot.
    """
    return ("--compress-mode=size",) if cuda_major(nvcc) >= 13 else ()


def compile_libraries(folder, nvcc):
    """The folder with the wheel's libraries, below `folder`; what is there is not built again."""
    os.environ[cache.VARIABLE] = str(folder / "kernels")
    plain = toolchain.find_compiler()
    frameworks = [wheels.framework(source, folder / "frameworks") for source in wheels.SOURCES]
    for each in frameworks:
        if each.backend == "torch":
            torch_cuda(each, plain)
    made_with = wheels.compiler()
    script = pathlib.Path(__file__).read_text()
    tools = [*made_with.command, made_with.path, made_with.version, nvcc.path, nvcc.version, script]
    target = cache.folder(libraries.packaged_key(), libraries.digest(tools, 8))
    former = folder / "former"
    former.mkdir(exist_ok=True)
    cuda_core = libraries.cuda_core(plain, nvcc)
    smallest = compression(nvcc)
    links = ("-Xlinker", "-s", "-Xlinker", "-z", "-Xlinker", "defs", "-Xlinker", "--as-needed")
    cuda_core = dataclasses.replace(
        cuda_core,
        objects=tuple(((*command, *smallest), name) for command, name in cuda_core.objects),
        link=(*cuda_core.link, *links),
        libraries=(f"-L{stand_ins(former, plain)}", *cuda_core.libraries),
    )
    planned = [libraries.core(made_with), cuda_core]
    for each in frameworks:
        name = libraries.packaged_name(each, cuda=True)
        planned.append(libraries.binding_of(each, name, target, made_with, nvcc))
    build.complete(target, planned, made_with, nvcc)
    return target


# ---- what they ask for, and what they hold ----


def check(path):
    """A line on a library with the CUDA kernels; raises SystemExit where it is not as it must be.

    Where there is no cuobjdump, the line says that nobody has looked at the machine code.

    Args:
        path: of the library, which is loaded: that must work where there is no driver.
    """
    needed = re.findall(r"NEEDED\s+(\S+)", toolchain.run(["objdump", "-p", path]))
    strange = [name for name in needed if not SYSTEM.match(name)]
    if strange:
        raise SystemExit(f"{path.name} must need the system alone. Received: {', '.join(strange)}")
    library = ctypes.CDLL(str(path))
    library.dcnv3_cuda_code.restype = ctypes.c_char_p
    *told, last = re.findall(r"_(\d+)", library.dcnv3_cuda_code().decode())
    told, last = [f"sm_{number}" for number in told], f"sm_{last}"
    line = f"{', '.join(told)}, PTX of {last}"
    tool = cuobjdump()
    if tool is None:
        return f"{line}: NOT CHECKED, for there is no cuobjdump (pip install nvidia-cuda-cuobjdump)"
    listed = toolchain.run([tool, "--list-elf", "--list-ptx", path])
    code = set(re.findall(r"\.(sm_\d+)\.cubin", listed))
    ptx = set(re.findall(r"\.(sm_\d+)\.ptx", listed))
    if not set(told) <= code or ptx != {last}:
        raise SystemExit(
            f"{path.name} must hold what it tells: {told}, PTX of {last}. "
            f"Received: {sorted(code)}, PTX of {sorted(ptx)}"
        )
    return line


def cuobjdump():
    """Lists a library's machine code; it is beside nvcc, in NVIDIA's wheel, or on PATH. Or None."""
    folders = [os.path.dirname(path) for path in toolchain.nvcc_paths()]
    folders += [os.path.join(folder, "bin") for folder in toolchain.cuda_wheels()]
    paths = [os.path.join(folder, "cuobjdump") for folder in folders]
    return next(filter(None, map(shutil.which, [*paths, "cuobjdump"])), None)


# ---- the wheel ----

INIT = '"""DCNv3\'s kernels for NVIDIA GPUs; keras_internimage finds them here. CUDA {major}."""\n'
SETUP = """
[metadata]
name = keras-internimage-cu{major}
version = {version}
description = CUDA {major} kernels of keras-internimage, compiled
license = Apache-2.0
[options]
python_requires = >=3.11
packages = {package}
install_requires = keras-internimage=={version}
[options.package_data]
{package} = *
"""


def assemble(folder, binaries, major, version):
    """The wheel of a folder's libraries, built in `folder`, for this machine's own system."""
    package = f"keras_internimage_cu{major}"
    inside = folder / "source" / package
    inside.mkdir(parents=True)
    for name in libraries.found_in(binaries):
        shutil.copy(binaries / name, inside)
    (inside / "__init__.py").write_text(INIT.format(major=major))
    manifest = json.dumps({"key": libraries.packaged_key()})
    (inside / packaged.MANIFEST).write_text(f"{manifest}\n")
    values = {"major": major, "version": version, "package": package}
    (folder / "source" / "setup.cfg").write_text(SETUP.format(**values))
    wheels.backend("build_wheel", folder, folder / "source")
    return wheels.for_this_platform(wheels.newest(folder, "*-none-any.whl"), folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=wheels.ROOT / "dist")
    parser.add_argument("--build", type=pathlib.Path, default=wheels.ROOT / "build" / "wheels")
    arguments = parser.parse_args()
    if not toolchain.nvcc_paths():
        print("There is no nvcc, and so no wheel with CUDA kernels.")
        return
    nvcc = toolchain.find_nvcc()
    major = cuda_major(nvcc)
    output, folder = arguments.output.absolute(), arguments.build.absolute()
    output.mkdir(parents=True, exist_ok=True)
    (folder / "frameworks").mkdir(parents=True, exist_ok=True)
    text = (wheels.ROOT / "keras_internimage" / "__init__.py").read_text()
    version = re.search(r'^__version__ = "(.+)"', text, re.M)[1]
    binaries = compile_libraries(folder, nvcc)
    held = check(binaries / libraries.CUDA_CORE)
    with tempfile.TemporaryDirectory() as temporary:
        made = assemble(pathlib.Path(temporary), binaries, major, version)
        repaired = wheels.repair(made, output)
    print(f"{repaired} ({repaired.stat().st_size / 1e6:.2f} MB): {held}")


if __name__ == "__main__":
    main()
