"""The CUDA kernels, run on the processor by `cuda_emulation.h`, against the oracle.

What only a GPU can show is not tested here: speed, and atomics between blocks that run at once.
"""

import json
import pathlib

import numpy as np
import oracle
import pytest
from emulated_cuda import TOLERANCES, assert_agrees, assert_close, random_arrays, rounded

pytestmark = pytest.mark.any_backend

DATA = pathlib.Path(__file__).parents[1] / "data" / "op"
REFERENCE = json.loads((DATA / "cases.json").read_text())
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
def test_all_samples_inside_and_threads_to_spare(kernels, small_grids, dtype):
    """Where nothing is tested for corners, sites past the last one must add nothing."""
    options = {"groups": 2, "padding": 0, "strides": 2}
    arrays = random_arrays(dtype, size=(8, 8), **options)
    arrays[1] = rounded(np.abs(arrays[1]) % 0.9, dtype)
    for library in (kernels, small_grids):
        assert_agrees(library, arrays, dtype, **options)


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
