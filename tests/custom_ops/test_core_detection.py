"""RoIAlign and suppression through their C interface, with each instruction set there is."""

import ctypes

import detection_oracle
import numpy as np
import pytest
from native_core import DTYPES, CoreError, Regions, pointer, ranges, run

pytestmark = pytest.mark.any_backend

SIZES, STRIDES = ((9, 13), (5, 7)), (4.0, 8.0)
BINS = 3
TOLERANCE = {"float32": 4e-6, "float64": 1e-13, "float16": 2e-3}


def regions(maps, boxes, bins=BINS, **changes):
    call = Regions(
        dtype=DTYPES[str(maps[0].dtype)],
        levels=len(maps),
        bins=bins,
        batch=boxes.shape[0],
        regions=boxes.shape[1],
        channels=maps[0].shape[3],
    )
    for k, (x, stride) in enumerate(zip(maps, STRIDES, strict=False)):
        call.heights[k], call.widths[k], call.strides[k] = *x.shape[1:3], stride
    for name, value in changes.items():
        setattr(call, name, value)
    return call


def pointers(arrays):
    return (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])


def align(core, maps, boxes, levels, parts=1):
    call = regions(maps, boxes)
    run(core, "roi_align_prepare", ctypes.byref(call))
    output = np.full((*levels.shape, BINS, BINS, maps[0].shape[3]), 113, maps[0].dtype)
    for bounds in ranges(levels.size, parts):
        arrays = (pointers(maps), *map(pointer, (boxes, levels, output)))
        run(core, "cpu_roi_align", ctypes.byref(call), *arrays, *bounds)
    return output


def gradients(core, maps, boxes, levels, upstream, parts=1):
    call = regions(maps, boxes)
    tasks = core.library.dcnv3_cpu_roi_align_backward_tasks
    tasks.restype = ctypes.c_int64
    grads = [np.full_like(x, 113) for x in maps]
    for bounds in ranges(tasks(ctypes.byref(call)), parts):
        arrays = (*map(pointer, (upstream, boxes, levels)), pointers(grads))
        run(core, "cpu_roi_align_backward", ctypes.byref(call), *arrays, *bounds)
    return grads


def case(dtype, channels, images=2):
    """Boxes inside and outside, on both maps and on none."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(-15, 45, (images, 9, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(25, (images, 9, 2))], 2)
    boxes[:, 0] = [0, 0, 52, 36]
    boxes[:, 1, 2:] = boxes[:, 1, :2]  # no extent
    boxes = boxes.astype("float64" if dtype == "float64" else "float32")
    levels = rng.integers(0, 2, boxes.shape[:2]).astype("int32")
    levels[:, 2] = (-1, 2)[:images]
    maps = [rng.normal(size=(images, *size, channels)).astype(dtype) for size in SIZES]
    upstream = rng.normal(size=(*levels.shape, BINS, BINS, channels)).astype(dtype)
    return maps, boxes, levels, upstream


@pytest.mark.parametrize("channels", [3, 37, 150])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_definition(core, dtype, channels):
    maps, boxes, levels, upstream = case(dtype, channels)
    output = align(core, maps, boxes, levels)
    grads = gradients(core, maps, boxes, levels, upstream)
    expected, expected_grads = np.zeros(output.shape), [np.zeros(x.shape) for x in maps]
    for n, r in np.ndindex(*levels.shape):
        level = levels[n, r]
        if level not in (0, 1):
            continue
        matrix = detection_oracle.roi_align_matrix(SIZES[level], boxes[n, r], STRIDES[level], BINS)
        expected[n, r] = np.einsum("ijyx,yxc->ijc", matrix, maps[level][n].astype(float))
        expected_grads[level][n] += np.einsum("ijyx,ijc->yxc", matrix, upstream[n, r].astype(float))
    assert abs(output - expected).max() < TOLERANCE[dtype] * abs(expected).max()
    for a, b in zip(grads, expected_grads, strict=True):
        assert abs(a - b).max() < TOLERANCE[dtype] * abs(b).max()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bits_do_not_depend_on_the_split_or_the_batch(core, dtype):
    maps, boxes, levels, upstream = case(dtype, 70)
    output = align(core, maps, boxes, levels)
    grads = gradients(core, maps, boxes, levels, upstream)
    for parts in (2, 3, 7):
        np.testing.assert_array_equal(align(core, maps, boxes, levels, parts), output)
        for a, b in zip(gradients(core, maps, boxes, levels, upstream, parts), grads, strict=True):
            np.testing.assert_array_equal(a, b)
    alone = [np.ascontiguousarray(x[1:]) for x in (*maps, boxes, levels, upstream)]
    maps, (boxes, levels, upstream) = alone[:2], alone[2:]
    np.testing.assert_array_equal(align(core, maps, boxes, levels), output[1:])
    for a, b in zip(gradients(core, maps, boxes, levels, upstream), grads, strict=True):
        np.testing.assert_array_equal(a, b[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 7}, "dtype=7"),
        ({"levels": 0}, "1 to 16 maps. Received: 0"),
        ({"levels": 17}, "Received: 17"),
        ({"bins": 0}, "output_size=0"),
        ({"channels": 0}, "0 channels"),
        ({"heights": (ctypes.c_int64 * 16)(0, 5)}, "height=0, width=13"),
        ({"widths": (ctypes.c_int64 * 16)(1 << 28, 5)}, "2\\^31"),
        ({"strides": (ctypes.c_double * 16)(4, -8)}, "Strides must be positive. Received: -8"),
        ({"strides": (ctypes.c_double * 16)(float("nan"), 8)}, "Strides"),
    ],
)
def test_refusals(library, changes, message):
    maps, boxes, *_ = case("float32", 2)
    with pytest.raises(CoreError, match=message):
        run(library, "roi_align_prepare", ctypes.byref(regions(maps, boxes, **changes)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [0, 20, 400])
def test_suppression(library, dtype, count):
    """More boxes than are compared at once; some scores that do not count, and equal ones."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (400, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (400, 2))], 1).astype(dtype)
    scores = rng.integers(0, 100, 400).astype(dtype)
    scores[::7], scores[1::7] = -np.inf, np.nan
    classes = rng.integers(-1, 2, 400).astype("int32")
    index, valid = np.full(count, 113, "int32"), np.full(count, 113, "uint8")
    arguments = (*map(pointer, (boxes, scores, classes)), ctypes.c_int64(400))
    results = (ctypes.c_int64(count), pointer(index), pointer(valid))
    run(library, "cpu_nms", DTYPES[dtype], *arguments, ctypes.c_double(0.4), *results)
    expected = detection_oracle.nms(boxes.astype(float), scores.astype(float), classes, 0.4)
    assert 64 < len(expected) < 300
    assert index[valid == 1].tolist() == expected[:count]
    assert valid.sum() == min(count, len(expected)) and not index[valid == 0].any()


def test_suppression_of_half_types_is_refused(library):
    with pytest.raises(CoreError, match="must be float32 or float64. Received: dtype=3"):
        nothing = (None, None, None, ctypes.c_int64(0), ctypes.c_double(0.5), ctypes.c_int64(0))
        run(library, "cpu_nms", DTYPES["float16"], *nothing, None, None)
