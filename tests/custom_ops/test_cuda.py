"""The CUDA kernels, run on the processor by `cuda_emulation.h`, against the oracle.

What only a GPU can show is not tested here: speed, and atomics between blocks that run at once.
"""

import ctypes
import json
import pathlib
import shutil
import subprocess

import numpy as np
import oracle
import pytest
from native_core import DTYPES, Call, Status

from keras_internimage.custom_ops import toolchain

pytestmark = pytest.mark.any_backend

HERE = pathlib.Path(__file__).parent
CORE = HERE.parents[1] / "custom_ops" / "core"
DATA = HERE.parent / "data" / "op"
REFERENCE = json.loads((DATA / "cases.json").read_text())
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
        library = ctypes.CDLL(str(path))
        self.forward_function = library.dcnv3_cuda_forward
        self.backward_function = library.dcnv3_cuda_backward
        self.forward_function.restype = self.backward_function.restype = Status
        self.workspace_size = library.dcnv3_cuda_backward_workspace
        self.workspace_size.restype = ctypes.c_size_t

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


def build(folder, **constants):
    """The emulated library; `constants` replaces some that `cuda.cu` defines."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    for header in ("cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h"):
        (folder / header).write_text(f'#include "{HERE / "cuda_emulation.h"}"\n')
    source = (CORE / "cuda.cu").read_text()
    for name, value in constants.items():
        before, after = source.split(f"{name} = ")
        source = f"{before}{name} = {value}{after[min(map(after.index, ',;')) :]}"
    (folder / "cuda.cu").write_text(source)
    command = (
        f"{compiler} -std=c++20 -O1 -fno-strict-aliasing -fPIC -shared -fvisibility=hidden -Wall "
        f"-Wextra -Werror -Wno-unknown-pragmas -fsanitize=alignment "
        f"-fsanitize-undefined-trap-on-error -I{folder} -I{CORE} -x c++ cuda.cu -o library.so"
    )
    result = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return Kernels(folder / "library.so")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cuda"))


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


GEOMETRIES = {
    "plain": {},
    "stride 2": {"strides": 2},
    "dilation 2, scale 1.5": {"dilation_rate": 2, "padding": 2, "offset_scale": 1.5},
    "no centre": {"remove_center": True, "offset_scale": 0.7},
    "kernel 5": {"kernel_size": 5, "padding": 2, "groups": 1},
    "kernel 9 x 1": {"kernel_size": (9, 1), "padding": (4, 0)},
    "kernel 2 x 4": {"kernel_size": (2, 4), "strides": (2, 1), "padding": (0, 2), "groups": 3},
}


@pytest.mark.parametrize("softmax", [False, True], ids=["plain masks", "softmax"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(kernels, name, softmax):
    options = {"groups": 2, **GEOMETRIES[name]}
    arrays = random_arrays(**options)
    if softmax:
        options["mask_activation"] = "softmax"
    assert_agrees(kernels, arrays, **options)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("depth", [1, 3, 8, 12, 16, 32, 48, 72])
def test_dtypes_and_group_widths(kernels, dtype, depth):
    """Every number of lanes, whole and partial passes over the channels, odd numbers of groups."""
    options = {"groups": 3, "mask_activation": "softmax"}
    arrays = random_arrays(dtype, batch=1, size=(5, 4), groups=3, depth=depth)
    assert_agrees(kernels, arrays, dtype, **options)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_pointers_without_alignment(kernels, dtype):
    arrays = random_arrays(dtype, batch=1)
    shift = 4 if dtype == "float32" else 2
    assert_agrees(kernels, arrays, dtype, shift=shift, groups=2)


def test_large_logits(kernels):
    arrays = random_arrays(batch=1)
    arrays[2] *= 40
    arrays[2] = rounded(arrays[2], "float32")
    assert_agrees(kernels, arrays, groups=2, mask_activation="softmax")


@pytest.mark.parametrize("name", REFERENCE)
def test_reference(kernels, name):
    case = np.load(DATA / f"{name}.npz")
    tensors = case["input"], case["offset"], case["mask"]
    forward, backward = TOLERANCES["float32"]
    assert_close(kernels.forward(*tensors, **REFERENCE[name]), case["output"], forward)
    grads = kernels.backward(*tensors, case["grad_output"], **REFERENCE[name])
    for grad, of in zip(grads, ("input", "offset", "mask"), strict=True):
        assert_close(grad, case[f"grad_{of}"], backward)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("deterministic", [0, 1])
def test_hostile_offsets_sample_nothing(kernels, dtype, deterministic):
    arrays = random_arrays(dtype)
    hostile = arrays[1].reshape(-1)
    hostile[::7], hostile[1::11], hostile[2::13], hostile[3::17] = np.nan, np.inf, -np.inf, 1e30
    arrays[1] = rounded(arrays[1], dtype)
    assert_agrees(
        kernels, arrays, dtype, deterministic=deterministic, groups=2, mask_activation="softmax"
    )


def test_offsets_near_the_largest(kernels):
    """Positions that just fit into the arithmetic, and the first ones that do not."""
    arrays = random_arrays(batch=1)
    hostile = arrays[1].reshape(-1)
    for i, value in enumerate((2.0**24, -(2.0**24), 2.0**24 - 1, 1 - 2.0**24, 2.0**31, -3e9)):
        hostile[i::17] = value
    assert_agrees(kernels, arrays, groups=2)


def test_infinite_pixels_stay_where_they_are(kernels):
    arrays = random_arrays()
    inputs, offset, mask, upstream = arrays
    inputs[:, 0, :], inputs[:, :, -1] = np.inf, np.inf
    arrays[2], arrays[3] = np.abs(mask), np.abs(upstream)
    results = kernels.forward(*arrays[:3], groups=2), *kernels.backward(*arrays, groups=2)
    with np.errstate(invalid="ignore"):
        truths = (
            oracle.forward(*arrays[:3], groups=2),
            *oracle.gradients(*arrays, groups=2),
        )
    for result, truth in zip(results, truths, strict=True):
        finite = np.isfinite(truth)
        assert finite.sum() > truth.size / 10
        np.testing.assert_array_equal(result[~finite], truth[~finite])
        assert_close(result[finite], truth[finite], TOLERANCES["float32"][1])
    assert np.isinf(truths[0]).any() and np.isinf(truths[3]).any()


def test_positions_far_from_the_corner_keep_their_fraction(kernels):
    width = 5000
    inputs = np.zeros((1, 1, width, 1))
    inputs[0, 0, 1::2] = 1
    offset, mask = np.zeros((1, 1, width, 18)), np.zeros((1, 1, width, 9))
    offset[..., 2 * 4], mask[..., 4] = 0.3, 1  # the centre's dx
    output = kernels.forward(inputs, offset, mask, groups=1)[0, 0, :, 0]
    np.testing.assert_array_equal(output[0:-1:2], np.float32(0.3))
    np.testing.assert_array_equal(output[1:-1:2], 1 - np.float32(0.3))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("depth", [3, 16, 40])
def test_deterministic_gradient(kernels, dtype, depth):
    """Right, the same every time, and independent of the other images of the batch."""
    options = {"groups": 2, "mask_activation": "softmax", "offset_scale": 1.5}
    arrays = random_arrays(dtype, depth=depth)
    assert_agrees(kernels, arrays, dtype, deterministic=1, **options)
    grads = kernels.backward(*arrays, dtype=dtype, deterministic=1, **options)
    again = kernels.backward(*arrays, dtype=dtype, deterministic=1, **options)
    alone = kernels.backward(*(a[1:] for a in arrays), dtype=dtype, deterministic=1, **options)
    atomic = kernels.backward(*arrays, dtype=dtype, deterministic=0, **options)
    for first, second, image, other in zip(grads, again, alone, atomic, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first[1:], image)
        assert_close(first, other, 4e-6 if dtype == "float32" else TOLERANCES[dtype][1])


def test_grids_smaller_than_the_work(tmp_path):
    """The loops over images and blocks that large batches need."""
    kernels = build(tmp_path, kMaxGridX="2", kMaxGridY="3")
    for dtype in TOLERANCES:
        arrays = random_arrays(dtype, batch=7, size=(3, 4), depth=8)
        for deterministic in (0, 1):
            assert_agrees(kernels, arrays, dtype, deterministic=deterministic, groups=2)


def test_large_blocks(kernels):
    """Enough work for blocks of the full size, the last of them partly empty."""
    arrays = random_arrays("float16", batch=16, size=(23, 23), groups=16, depth=8, seed=1)
    options = {"groups": 16, "mask_activation": "softmax"}
    output = kernels.forward(*arrays[:3], dtype="float16", **options)
    assert_close(output, oracle.forward(*arrays[:3], **options), TOLERANCES["float16"][0])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_empty_batch(kernels, dtype):
    inputs, offset, mask, upstream = (a[:0] for a in random_arrays(dtype))
    assert kernels.forward(inputs, offset, mask, dtype=dtype, groups=2).shape == upstream.shape
    grads = kernels.backward(inputs, offset, mask, upstream, dtype=dtype, groups=2)
    assert [g.shape for g in grads] == [a.shape for a in (inputs, offset, mask)]


def test_what_is_refused(kernels):
    arrays = random_arrays("float64")
    with pytest.raises(ValueError, match="float32, float16 or bfloat16.*dtype=float64"):
        kernels.forward(*arrays[:3], dtype="float64", groups=2)
    with pytest.raises(ValueError, match="float32, float16 or bfloat16.*dtype=float64"):
        kernels.backward(*arrays, dtype="float64", groups=2)
    options = {"kernel_size": 23, "padding": 11}
    arrays = random_arrays(batch=1, size=(2, 2), groups=1, depth=4, **options)
    with pytest.raises(ValueError, match=r"512 points.*kernel_size=\(23, 23\)"):
        kernels.forward(*arrays[:3], groups=1, **options)


def test_the_largest_kernel(kernels):
    options = {"kernel_size": (16, 32), "padding": (8, 16), "groups": 1}
    assert_agrees(kernels, random_arrays(batch=1, size=(3, 2), depth=4, **options), **options)


def test_workspace_size(kernels):
    arrays = random_arrays()
    for dtype, size in (("float32", 0), ("float16", 4), ("bfloat16", 4)):
        call = make_call(arrays[0], arrays[1], dtype, groups=2)
        for deterministic in (0, 1):
            expected = size * arrays[0].size
            assert kernels.workspace_size(ctypes.byref(call), deterministic) == expected


@pytest.mark.skipif(not toolchain.nvcc_paths(), reason="needs nvcc")
@pytest.mark.parametrize("number", [pytest.param(75, marks=pytest.mark.slow), 90])
def test_nvcc_compiles_without_warnings(tmp_path, number):
    nvcc = toolchain.find_nvcc()
    code = f"-gencode arch=compute_{number},code=sm_{number}"
    command = f"{nvcc.path} -O3 -std=c++17 {code} -Xcompiler -fPIC,-Wall -c -o"
    result = subprocess.run(
        [*command.split(), str(tmp_path / "cuda.o"), str(CORE / "cuda.cu")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stdout + result.stderr
