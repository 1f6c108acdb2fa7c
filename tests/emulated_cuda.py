"""The CUDA kernels for NumPy arrays, as `custom_ops/cuda_emulation.h` runs them on processors."""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import oracle
import pytest
from native_core import DTYPES, Call, Status

HERE = pathlib.Path(__file__).parent
CORE = HERE.parent / "custom_ops" / "core"
EMULATION = HERE / "custom_ops"
SOURCES = ("cuda.cu", "cuda_detection.cu")
# Largest difference from the oracle, relative to the largest value: of outputs, of gradients.
TOLERANCES = {"float32": (4e-6, 2e-5), "float16": (1e-3, 1e-3), "bfloat16": (8e-3, 8e-3)}
DEFAULTS = {"kernel_size": 3, "strides": 1, "padding": 1, "dilation_rate": 1}
DEFAULTS |= {"offset_scale": 1.0, "remove_center": False}
MARGIN = 64  # bytes around an array that must stay as they are


class Buffer:
    """An array in "device" memory: bits of `dtype`, `shift` bytes past an aligned address."""

    def __init__(self, array, dtype, shift=0):
        self.dtype = dtype
        bits = encode(array, dtype)
        self.memory = np.full(2 * MARGIN + bits.nbytes + 64, 0xFF, np.uint8)
        self.start = MARGIN + -(self.memory.ctypes.data + MARGIN) % 64 + shift
        self.bits = self.memory[self.start : self.start + bits.nbytes].view(bits.dtype)
        self.bits = self.bits.reshape(bits.shape)
        self.bits[...] = bits

    @property
    def pointer(self):
        return ctypes.c_void_p(self.bits.ctypes.data)

    def read(self):
        """The values as float64, after a look at what lies around them."""
        outside = np.delete(self.memory, np.s_[self.start : self.start + self.bits.nbytes])
        assert (outside == 0xFF).all(), "written outside an array"
        return decode(self.bits, self.dtype)


def encode(array, dtype):
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # to infinity, as it should
            return np.asarray(array, dtype)
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def decode(bits, dtype):
    if dtype == "bfloat16":
        bits = (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float64)


def rounded(array, dtype):
    return decode(encode(array, dtype), dtype)


class Kernels:
    """The library's functions for NumPy arrays."""

    def __init__(self, path):
        self.library = library = ctypes.CDLL(str(path))
        self.forward_function = library.dcnv3_cuda_forward
        self.backward_function = library.dcnv3_cuda_backward
        self.forward_function.restype = self.backward_function.restype = Status
        self.workspace_size = library.dcnv3_cuda_backward_workspace
        self.workspace_size.restype = ctypes.c_size_t
        self.set_order, self.set_dry = library.emulation_set_order, library.emulation_set_dry
        self.take_sectors_function = library.emulation_take_sectors
        self.blocks, self.shared_bytes = library.emulation_blocks, library.emulation_shared_bytes
        self.blocks.restype = self.shared_bytes.restype = ctypes.c_size_t

    def take_sectors(self):
        """Of the atomic additions since the last call: instructions, sectors, most of one."""
        counts = (ctypes.c_size_t * 3)()
        self.take_sectors_function(counts)
        return tuple(counts)

    def forward(self, inputs, offset, mask, dtype="float32", shift=0, **options):
        call = make_call(inputs, offset, dtype, **options)
        tensors = buffers(dtype, shift, inputs, join(offset, mask))
        shape = (call.batch, call.out_height, call.out_width, call.channels)
        output = Buffer(np.full(shape, -7.0), dtype, shift)
        pointers = [t.pointer for t in (*tensors, output)]
        check(self.forward_function(ctypes.byref(call), *pointers, None))
        return output.read()

    def backward(
        self, inputs, offset, mask, upstream, dtype="float32", deterministic=0, shift=0, **options
    ):
        call = make_call(inputs, offset, dtype, **options)
        tensors = buffers(dtype, shift, upstream, inputs, join(offset, mask))
        grads = buffers(
            dtype, shift, np.full(inputs.shape, -7.0), np.full(join(offset, mask).shape, -7.0)
        )
        size = self.workspace_size(ctypes.byref(call), deterministic)
        workspace = Buffer(np.full(size // 4, -7.0), "float32")
        pointers = [t.pointer for t in (*tensors, *grads, workspace)]
        check(self.backward_function(ctypes.byref(call), *pointers, deterministic, None))
        workspace.read()
        grad_inputs, grad_joined = (grad.read() for grad in grads)
        return grad_inputs, *np.split(grad_joined, [offset.shape[-1]], axis=-1)


def join(offset, mask):
    return np.concatenate([offset, mask], axis=-1)


def buffers(dtype, shift, *arrays):
    return [Buffer(array, dtype, shift) for array in arrays]


def make_call(inputs, offset, dtype, *, groups, mask_activation=None, **geometry):
    geometry = {**DEFAULTS, **geometry}
    kernel, strides, padding, dilation = (
        (value, value) if isinstance(value, int) else tuple(value)
        for value in (
            geometry[name] for name in ("kernel_size", "strides", "padding", "dilation_rate")
        )
    )
    return Call(
        DTYPES[dtype],
        *kernel,
        *strides,
        *padding,
        *dilation,
        groups,
        geometry["remove_center"],
        mask_activation == "softmax",
        geometry["offset_scale"],
        *inputs.shape,
        *offset.shape[1:3],
        kernel[0] * kernel[1] - geometry["remove_center"],
    )


def check(status):
    if status.code:
        raise ValueError(status.message.decode())


def build(folder, architecture=800, core=CORE, **constants):
    """The emulated library; `constants` replaces some that the kernels' sources define.

    It is kept in the cache of the tests' kernels, by all that it is made of: compiling takes as
    long as hundreds of these tests, and every process would do it.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    for header in ("cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h"):
        (folder / header).write_text(f'#include "{EMULATION / "cuda_emulation.h"}"\n')
    sources = {name: (core / name).read_text() for name in (*SOURCES, "cuda_host.cuh")}
    for name, value in constants.items():
        (of,) = [file for file, source in sources.items() if f" {name} = " in source]
        before, after = sources[of].split(f" {name} = ")
        sources[of] = f"{before} {name} = {value}{after[min(map(after.index, ',;')) :]}"
    for name, source in sources.items():
        (folder / name).write_text(source)
    # The thread sanitizer's calls before each access are the emulation's; its library stays out.
    flags = (
        f"-std=c++20 -O1 -fno-strict-aliasing -fPIC -fvisibility=hidden -Wall -Wextra "
        f"-Werror -Wno-unknown-pragmas -ffp-contract=off -fsanitize=alignment,thread "
        f"-fsanitize-undefined-trap-on-error -D__CUDA_ARCH__={architecture}"
    )
    kept = (
        pathlib.Path(os.environ["KERAS_INTERNIMAGE_CACHE"])
        / "emulated"
        / _digest(
            [_run([compiler, "--version"], folder), flags, *sources.values()],
            [*core.iterdir(), *EMULATION.glob("*.h")],
        )
    )
    library = kept.with_suffix(".so")
    if not library.exists():
        command = [compiler, *flags.split(), f"-I{folder}", f"-I{core}", "-x", "c++", "-c"]
        for name in SOURCES:
            _run([*command, name, "-o", f"{name}.o"], folder)
        objects = [f"{name}.o" for name in SOURCES]
        _run([compiler, "-shared", *objects, "-o", "library.so"], folder)
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as beside:
            shutil.copy(folder / "library.so", beside)
            os.replace(pathlib.Path(beside) / "library.so", library)
    # A copy: a library that is loaded twice from one place has the same variables both times.
    shutil.copy(library, folder / "library.so")
    return Kernels(folder / "library.so")


def _run(command, folder):
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _digest(texts, files):
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode() + b"\0")
    for path in sorted(files):
        if path.is_file():
            found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:32]


@contextlib.contextmanager
def dry(kernels):
    """Within it, launches are only looked at."""
    kernels.set_dry(1)
    try:
        yield
    finally:
        kernels.set_dry(0)


def random_arrays(
    dtype="float32", batch=2, size=(6, 7), groups=2, depth=16, spread=2.0, seed=0, **geometry
):
    """`inputs, offset, mask, grad_output`, rounded to `dtype`."""
    geometry = {**DEFAULTS, **geometry}
    rng = np.random.default_rng(seed)
    out = oracle.output_size(*size, **geometry)
    kernel = geometry["kernel_size"]
    points = len(oracle.point_list(kernel, geometry["remove_center"]))
    shapes = (
        (*size, groups * depth),
        (*out, groups * points * 2),
        (*out, groups * points),
        (*out, groups * depth),
    )
    arrays = [rng.normal(size=(batch, *shape)) for shape in shapes]
    arrays[1] *= spread
    return [rounded(array, dtype) for array in arrays]


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


def assert_agrees(kernels, arrays, dtype="float32", shift=0, deterministic=0, **options):
    *tensors, upstream = arrays
    forward, backward = TOLERANCES[dtype]
    output = kernels.forward(*tensors, dtype=dtype, shift=shift, **options)
    assert_close(output, oracle.forward(*tensors, **options), forward)
    grads = kernels.backward(
        *arrays, dtype=dtype, shift=shift, deterministic=deterministic, **options
    )
    expected = oracle.gradients(*arrays, **options)
    for grad, truth in zip(grads, expected, strict=True):
        assert_close(grad, truth, backward)
