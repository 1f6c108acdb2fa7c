"""Compiles and links a wheel's libraries for another system than this one; nothing is run.

`python wheels/cross.py macos-arm64` (or windows-amd64, linux-aarch64) goes through build.py's
commands. For Linux the compiler is Debian's (package g++-aarch64-linux-gnu). For the others it is
Zig's (`pip install ziglang`), which has the headers and libraries of those systems. What a job
there does with its own compiler may still differ: for Windows, Zig has no headers of Microsoft's
C++ and takes MinGW's, and for macOS it links libc++ in. The frameworks' headers and import
libraries are those of their own wheels for that system.
"""

import argparse
import contextlib
import os
import pathlib
import platform
import shutil
import sys
import tempfile

import filelock  # noqa: F401 (it asks for the system, too)

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from custom_ops import toolchain  # noqa: E402

# sys.platform, platform.machine(), the compiler, and what is said to its linker besides.
ZIG = f"{sys.executable} -m ziglang c++ --target="
SYSTEMS = {
    "macos-arm64": ("darwin", "arm64", f"{ZIG}aarch64-macos.11.0", ()),
    # clang for Microsoft's C++ writes the import library unasked.
    "windows-amd64": (
        *("win32", "AMD64", f"{ZIG}x86_64-windows-gnu"),
        ("-Wl,--out-implib,dcnv3_core.lib",),
    ),
    "linux-aarch64": ("linux", "aarch64", "aarch64-linux-gnu-g++", ()),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "wheels")
    arguments = parser.parse_args()
    name, machine, command, more = SYSTEMS[arguments.system]
    # What is looked for while the system is still this one.
    os.environ["CXX"] = command
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        found = toolchain.find_compiler()  # Zig leaves a file where it is asked
    objdump = shutil.which("llvm-objdump")
    # The modules below ask these two, when they are imported, which system they are for.
    sys.platform, platform.machine = name, lambda: machine

    import build as wheels
    from custom_ops import libraries

    toolchain.find_compiler = lambda: found
    if name != "linux":  # its flags are for the system's own compiler
        wheels.compiler = lambda: found
    wheels.objdump = lambda: objdump
    link = libraries._link
    libraries._link = lambda compiler, name: (*link(compiler, name), *more)
    folder = arguments.build.absolute() / arguments.system
    (folder / "frameworks").mkdir(parents=True, exist_ok=True)
    made = wheels.compile_libraries(folder)
    for library in libraries.found_in(made):
        if name == "linux":
            print(f"{library}: compiled and linked")
            continue
        wheels.check_needed(made / library)
        print(f"{library}: needs {', '.join(wheels.needed(made / library))}")


if __name__ == "__main__":
    main()
