"""RoIAlign's CUDA kernels, run on the processor by `cuda_emulation.h`, against the oracle.

What only a GPU can show, speed, is not tested here.
"""

import contextlib
import ctypes

import detection_oracle
import numpy as np
import pytest
from emulated_cuda import TOLERANCES, Buffer, assert_close, check, dry, rounded
from native_core import DTYPES, Regions, Status

pytestmark = pytest.mark.any_backend

SIZES, STRIDES = ((9, 13), (5, 7)), (4.0, 8.0)


def make_call(sizes, strides, boxes, channels, dtype, bins):
    call = Regions(DTYPES[dtype], len(sizes), bins, *boxes.shape[:2], channels)
    for k, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        call.heights[k], call.widths[k], call.strides[k] = *size, stride
    return ctypes.byref(call)


def function(kernels, name):
    found = getattr(kernels.library, f"dcnv3_cuda_{name}")
    found.restype = Status
    return found


def pointers(buffers):
    return (ctypes.c_void_p * len(buffers))(*[b.pointer.value for b in buffers])


def align(kernels, maps, boxes, levels, dtype="float32", bins=3, strides=STRIDES, shift=0):
    sizes = [x.shape[1:3] for x in maps]
    call = make_call(sizes, strides, boxes, maps[0].shape[3], dtype, bins)
    tensors = [Buffer(x, dtype, shift) for x in maps]
    places = Buffer(boxes, "float32", 4), Buffer(levels, "int32", 4)
    output = Buffer(np.full((*levels.shape, bins, bins, maps[0].shape[3]), -7.0), dtype, shift)
    arguments = (pointers(tensors), *(b.pointer for b in (*places, output)), None)
    check(function(kernels, "roi_align")(call, *arguments))
    return output.read()


def gradients(
    kernels, sizes, boxes, levels, upstream, dtype="float32", bins=3, strides=STRIDES, shift=0
):
    call = make_call(sizes, strides, boxes, upstream.shape[-1], dtype, bins)
    tensors = Buffer(upstream, dtype, shift), Buffer(boxes, "float32", 4), Buffer(levels, "int32")
    shapes = [(len(boxes), *size, upstream.shape[-1]) for size in sizes]
    grads = [Buffer(np.full(shape, -7.0), dtype, shift) for shape in shapes]
    arguments = (*(b.pointer for b in tensors), pointers(grads), None)
    check(function(kernels, "roi_align_backward")(call, *arguments))
    return [g.read() for g in grads]


def expected(maps, boxes, levels, upstream, bins=3, strides=STRIDES):
    """The oracle's output and gradients."""
    output, grads = np.zeros(upstream.shape), [np.zeros(x.shape) for x in maps]
    for n, r in np.ndindex(*levels.shape):
        level = levels[n, r]
        if not 0 <= level < len(maps) or not np.isfinite(boxes[n, r]).all():
            continue
        size = maps[level].shape[1:3]
        matrix = detection_oracle.roi_align_matrix(size, boxes[n, r], strides[level], bins)
        output[n, r] = np.einsum("ijyx,yxc->ijc", matrix, maps[level][n])
        grads[level][n] += np.einsum("ijyx,ijc->yxc", matrix, upstream[n, r])
    return output, grads


def case(dtype="float32", channels=8, images=2, bins=3, regions=9, seed=0):
    """Boxes inside and outside, on both maps and on none."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-15, 45, (images, regions, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(25, (images, regions, 2))], 2)
    boxes[:, 0] = [0, 0, 52, 36]
    boxes[:, 1, 2:] = boxes[:, 1, :2]  # no extent
    levels = rng.integers(0, 2, boxes.shape[:2]).astype("int32")
    levels[:, 2] = (-1, 2)[:images]
    maps = [rng.normal(size=(images, *size, channels)) for size in SIZES]
    upstream = rng.normal(size=(*levels.shape, bins, bins, channels))
    maps, upstream = [rounded(x, dtype) for x in maps], rounded(upstream, dtype)
    return maps, rounded(boxes, "float32"), levels, upstream


def assert_agrees(kernels, maps, boxes, levels, upstream, dtype="float32", shift=0, **options):
    truth, truths = expected(maps, boxes, levels, upstream, **options)
    output = align(kernels, maps, boxes, levels, dtype, shift=shift, **options)
    assert_close(output, truth, TOLERANCES[dtype][0])
    sizes = [x.shape[1:3] for x in maps]
    grads = gradients(kernels, sizes, boxes, levels, upstream, dtype, shift=shift, **options)
    for grad, truth in zip(grads, truths, strict=True):
        assert_close(grad, truth, TOLERANCES[dtype][1])


@pytest.mark.parametrize("channels", [3, 8, 37, 264])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_definition(kernels, dtype, channels):
    """Packs and single channels, in whole and partial passes of a warp."""
    regions = 9 if channels < 264 else 4
    assert_agrees(kernels, *case(dtype, channels, regions=regions), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_pointers_without_alignment(kernels, dtype):
    shift = 4 if dtype == "float32" else 2
    assert_agrees(kernels, *case(dtype, images=1), dtype, shift=shift)


@pytest.mark.parametrize("bins", [1, 7, 17])
def test_more_pixels_and_bins_than_lanes(kernels, bins):
    """Bins that cover up to 40 pixels of an axis, and more bins than an axis has lanes."""
    rng = np.random.default_rng(1)
    maps = [rounded(rng.normal(size=(1, 21, 40, 4)), "float32")]
    boxes = np.array([[[-3, 2, 43, 19], [0.3, 0.1, 39.7, 20.9], [12, 3, 13.5, 17]]])
    boxes = rounded(boxes, "float32")
    upstream = rounded(rng.normal(size=(1, 3, bins, bins, 4)), "float32")
    levels = np.zeros((1, 3), "int32")
    assert_agrees(kernels, maps, boxes, levels, upstream, bins=bins, strides=(1.0,))


def test_positions_far_from_the_corner_keep_their_fraction(kernels):
    """Also in bins that begin far in front of the map."""
    width = 3000
    maps = [np.arange(width, dtype=float).reshape(1, 1, width, 1) % 2]
    boxes = np.array([[[2905.3, 0.5, 2905.6, 1.5], [-9000.25, 0.5, 2000.0, 1.5]]], "float32")
    levels = np.zeros((1, 2), "int32")
    upstream = np.ones((1, 2, 2, 2, 1))
    boxes = boxes.astype(float)
    truth, truths = expected(maps, boxes, levels, upstream, 2, (1.0,))
    output = align(kernels, maps, boxes, levels, bins=2, strides=(1.0,))
    np.testing.assert_allclose(output, truth, rtol=2e-6, atol=1e-7)
    (grad,) = gradients(kernels, [(1, width)], boxes, levels, upstream, bins=2, strides=(1.0,))
    np.testing.assert_allclose(grad, truths[0], rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_boxes_that_give_zeros(kernels, dtype):
    """Not finite, reversed, too far: zeros, and no gradient."""
    maps, boxes, levels, upstream = case(dtype)
    hostile = [(0, np.nan), (2, np.inf), (0, -np.inf), (3, 1e30), (1, -1e30)]
    hostile += [(2, 2.0**27), (0, -(2.0**27))]
    boxes[0, 2:] = [3, 4, 30, 25]
    for k, (side, value) in enumerate(hostile):
        boxes[0, 2 + k, side] = value
    boxes[1, 3], levels[0, 2:] = [30, 20, 10, 5], 0
    output = align(kernels, maps, boxes, levels, dtype)
    finite = boxes.copy()
    finite[0, 2 : 2 + len(hostile)], finite[1, 3] = 0, 0
    truth, truths = expected(maps, finite, levels, upstream)
    assert_close(output, truth, TOLERANCES[dtype][0])
    assert not output[0, 2 : 2 + len(hostile)].any() and truth.any()
    for grad, true in zip(
        gradients(kernels, SIZES, boxes, levels, upstream, dtype), truths, strict=True
    ):
        assert_close(grad, true, TOLERANCES[dtype][1])


def test_infinite_numbers_stay_where_they_are(kernels):
    maps, boxes, levels, upstream = case()
    maps[0][:, 0], maps[1][:, :, -1] = np.inf, np.inf
    upstream[:, :, 0] = np.inf
    sizes = [x.shape[1:3] for x in maps]
    found = align(kernels, maps, boxes, levels), *gradients(kernels, sizes, boxes, levels, upstream)
    ones = [np.isinf(x).astype(float) for x in maps], np.isinf(upstream).astype(float)
    touched, gradient = expected(ones[0], boxes, levels, ones[1])
    for numbers, infinite in zip(found, (touched, *gradient), strict=True):
        np.testing.assert_array_equal(np.isfinite(numbers), infinite == 0)
        assert 0.05 < np.isinf(numbers).mean() < 0.9


@pytest.mark.parametrize("order", [1, 2], ids=["descending", "rotated"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_order_of_threads(kernels, dtype, order):
    """Other orders of threads, warps and blocks, and other images, change no bit."""
    maps, boxes, levels, upstream = case(dtype)

    def results(maps, boxes, levels, upstream):
        sizes = [x.shape[1:3] for x in maps]
        output = align(kernels, maps, boxes, levels, dtype)
        return output, *gradients(kernels, sizes, boxes, levels, upstream, dtype)

    first = results(maps, boxes, levels, upstream)
    with in_order(kernels, order):
        other = results(maps, boxes, levels, upstream)
    alone = results([x[1:] for x in maps], boxes[1:], levels[1:], upstream[1:])
    for a, b, c in zip(first, other, alone, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[1:], c)


@contextlib.contextmanager
def in_order(kernels, order):
    kernels.set_order(order)
    try:
        yield
    finally:
        kernels.set_order(0)


def test_grids_smaller_than_the_work(small_grids):
    assert_agrees(small_grids, *case(images=2, channels=3))


def test_nothing_to_do(kernels):
    maps, boxes, levels, upstream = case()
    assert align(kernels, maps, boxes[:, :0], levels[:, :0]).size == 0
    for grad in gradients(kernels, SIZES, boxes[:, :0], levels[:, :0], upstream[:, :0]):
        assert grad.size and not grad.any()
    nothing = [x[:0] for x in maps], boxes[:0], levels[:0]
    assert align(kernels, *nothing).size == 0
    assert all(g.size == 0 for g in gradients(kernels, SIZES, *nothing[1:], upstream[:0]))


def test_what_is_refused(kernels):
    maps, boxes, levels, upstream = case()
    with pytest.raises(ValueError, match="float32, float16 or bfloat16.*dtype=float64"):
        align(kernels, maps, boxes, levels, "float64")
    with pytest.raises(ValueError, match="float32, float16 or bfloat16.*dtype=float64"):
        gradients(kernels, SIZES, boxes, levels, upstream, "float64")
    call = make_call(SIZES, STRIDES, boxes, 64, "float32", 40000)
    nothing = pointers([]), None, None, None, None
    with pytest.raises(ValueError, match=r"less than 2\^31.*C=64, output_size=40000"), dry(kernels):
        check(function(kernels, "roi_align")(call, *nothing))
