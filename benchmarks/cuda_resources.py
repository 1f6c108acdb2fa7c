"""What the CUDA kernels take of a GPU, for each architecture: no GPU is needed, only nvcc.

    python benchmarks/cuda_resources.py [--architectures 80 90] [--kernels forward] [--nvcc PATH]
        [--source custom_ops/core/cuda.cu] [--loops]

One row a kernel: registers of a thread, bytes that it spills (stored, loaded), shared memory of a
block, and instructions. Kernels are named by their template arguments: element type, numbers of a
vector, lanes of a site, points (0: any number); for the ordered one, the corners of a lane. Shared
memory is that of a block of 256 threads at nine points, of the ordered one that of the largest
tiles.

Instructions are counted in what nvcc writes, 16 bytes each, without the padding. With `--loops`
also those of each kernel's loops are, which needs `cuobjdump` on PATH (`pip install
nvidia-cuda-cuobjdump`, or a whole toolkit): from the outermost to the innermost.
"""

import argparse
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from custom_ops import toolchain  # noqa: E402

SOURCE = ROOT / "custom_ops" / "core" / "cuda.cu"
TYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
NAME = re.compile(rf"\d+([a-z_]+)I({'|'.join(TYPES)})((?:Li\d+E)*)E")
USED = re.compile(
    r"Function properties for (\S+)\s+\d+ bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers"
)
NOP = 0x918  # the lowest 12 bits of an instruction say which it is
INSTRUCTION = 16  # bytes, since sm_70
LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", re.M)
THREADS, POINTS, SLOT, ORDERED_WARPS = 256, 9, 24, 4


def compiled(nvcc, source, architecture, folder):
    """`{mangled name: (registers, stored, loaded)}`, and the path of the machine code."""
    path = folder / f"sm_{architecture}.cubin"
    command = [nvcc, "-O3", "-std=c++17", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v"]
    result = subprocess.run(
        [*command, str(source), "-o", str(path)], capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(f"nvcc must compile {source}. Received: {result.stderr}")
    used = {
        name: (int(registers), int(stored), int(loaded))
        for name, stored, loaded, registers in USED.findall(result.stderr)
    }
    return used, path


def sections(data):
    """`(name, bytes)` of the sections of an ELF file of 64 bits, as a cubin is one."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    entries = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    strings = entries[names][4]
    for name, kind, _, _, offset, length in entries:
        start = strings + name
        text = data[start : data.index(b"\0", start)].decode()
        yield text, b"" if kind == 8 else data[offset : offset + length]  # 8: not in the file


def instructions(data):
    """`{mangled name: number of instructions}`."""
    found = {}
    for name, code in sections(data):
        if name.startswith(".text."):
            words = (int.from_bytes(code[i : i + 2], "little") for i in range(0, len(code), 16))
            found[name.removeprefix(".text.")] = sum(word & 0xFFF != NOP for word in words)
    return found


def loops(path):
    """`{mangled name: [instructions of a loop]}`, from the branches that go back."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        raise RuntimeError("`--loops` needs cuobjdump on PATH. Received: none")
    text = subprocess.run([tool, "-sass", str(path)], capture_output=True, text=True, check=True)
    found = {}
    for part in text.stdout.split("Function : ")[1:]:
        lines = [(int(at, 16), name, rest) for at, name, rest in LINE.findall(part)]
        lengths = {}
        for at, name, rest in lines:
            target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
            if target and int(target[1], 16) < at:
                start = int(target[1], 16)
                lengths[start] = sum(start <= other <= at for other, *_ in lines)
        found[part.split()[0]] = sorted(lengths.values(), reverse=True)
    return found


def described(mangled):
    """`(kernel, element type, template arguments)`, or None for what is none of ours."""
    match = NAME.search(mangled)
    if match is None:
        return None
    return match[1].removesuffix("_kernel"), TYPES[match[2]], re.findall(r"Li(\d+)E", match[3])


def shared_memory(kernel, arguments):
    """Bytes of a block, which are asked for at the launch; see `cuda.cu`."""
    if kernel in ("forward", "backward"):
        return THREADS // int(arguments[1]) * POINTS * SLOT
    if kernel == "ordered" and arguments:
        channels = {"4": 32, "2": 16, "1": 8}[arguments[0]]
        return ORDERED_WARPS * (8 * 8 * channels * 4 + 32 * SLOT + 4 * 32 * 4)
    return 0


def rows(nvcc, source, architecture, with_loops=False):
    """`(kernel, dtype, arguments, registers, stored, loaded, shared, instructions, loops)`."""
    with tempfile.TemporaryDirectory() as folder:
        used, path = compiled(nvcc, source, architecture, pathlib.Path(folder))
        counts = instructions(path.read_bytes())
        lengths = loops(path) if with_loops else {}
    found = []
    for name, resources in used.items():
        what = described(name)
        if what is not None:
            shared = shared_memory(what[0], what[2])
            found.append((*what, *resources, shared, counts[name], lengths.get(name, [])))
    return sorted(found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", nargs="+", default=["80", "90"])
    parser.add_argument("--kernels", default="", help="a part of the kernels' names")
    parser.add_argument("--source", type=pathlib.Path, default=SOURCE)
    parser.add_argument("--nvcc", help="default: the one that a build of the kernels takes")
    parser.add_argument("--loops", action="store_true")
    arguments = parser.parse_args()
    try:
        nvcc = arguments.nvcc or toolchain.find_nvcc().path
    except toolchain.KernelsUnavailable as error:
        parser.error(str(error))
    for architecture in arguments.architectures:
        print(f"\nsm_{architecture}")
        print("| kernel | registers | spills | shared | instructions | loops |")
        print("| --- | ---: | ---: | ---: | ---: | --- |")
        found = rows(nvcc, arguments.source, architecture, arguments.loops)
        for kernel, dtype, numbers, registers, stored, loaded, shared, count, lengths in found:
            if arguments.kernels in kernel:
                name = f"{kernel} {dtype} {' '.join(numbers)}".rstrip()
                spills = f"{stored}, {loaded}" if stored or loaded else "none"
                loop = ", ".join(map(str, lengths))
                print(f"| {name} | {registers} | {spills} | {shared} | {count} | {loop} |")


if __name__ == "__main__":
    main()
