"""Convolutions through their C interface, with each instruction set there is."""

import ctypes

import numpy as np
import pytest
from native_core import CoreError, pointer, ranges, run

pytestmark = pytest.mark.any_backend


class Convolution(ctypes.Structure):
    """`dcnv3_convolution` of `convolution.h`."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in "batch height width channels filters".split()],
        ("relu", ctypes.c_int32),
    ]


def number(core, name, call):
    function = getattr(core.library, f"dcnv3_cpu_convolution_{name}")
    function.restype = ctypes.c_int64
    return function(ctypes.byref(call))


def convolve(core, x, kernel, bias, relu=False, parts=1):
    call = Convolution(*x.shape, kernel.shape[3], relu)
    run(core, "convolution_prepare", ctypes.byref(call))
    workspace = np.full(number(core, "workspace", call), np.nan, "float32")
    for bounds in ranges(number(core, "kernel_tasks", call), parts):
        arrays = (pointer(kernel), pointer(workspace))
        run(core, "cpu_convolution_kernel", ctypes.byref(call), *arrays, *bounds)
    output = np.full((*x.shape[:3], kernel.shape[3]), 113, "float32")
    for bounds in ranges(number(core, "tasks", call), parts):
        arrays = map(pointer, (x, workspace, bias, output))
        run(core, "cpu_convolution", ctypes.byref(call), *arrays, *bounds)
    return output


def plain(x, kernel, bias, dtype="float64"):
    """The sum, of a matrix product for each entry of the kernel."""
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    taps = np.ndindex(3, 3)
    return bias + sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in taps)


def case(images, height, width, channels, filters):
    rng = np.random.default_rng(0)
    shapes = ((images, height, width, channels), (3, 3, channels, filters), (filters,))
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


# Sides that tiles fill and do not, fewer pixels than a tile has, channels and filters that vectors
# and blocks of them fill and do not, and more tiles than are computed together.
CASES = [
    (2, 8, 12, 64, 64),
    (1, 9, 13, 37, 33),
    (3, 1, 1, 5, 1),
    (1, 2, 30, 1, 70),
    (2, 43, 45, 16, 40),
    (1, 5, 6, 700, 32),
]


@pytest.mark.parametrize("sizes", CASES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_definition(core, sizes):
    x, kernel, bias = case(*sizes)
    expected = plain(x, kernel, bias)
    found = convolve(core, x, kernel, bias)
    # In units of rounding a number of the outputs' size; it grows as sums of random steps do.
    bound = 2.0**-24 * (9 * sizes[3] + 1) ** 0.5 * (16 * sizes[3] ** 0.5 + 100)
    assert abs(found - expected).max() < bound
    found = convolve(core, x, kernel, bias, relu=True)
    assert abs(found - np.maximum(expected, 0)).max() < bound
    assert (found == 0).any() and not np.signbit(found).any()


def test_rounding_is_of_the_size_of_the_plain_sums(core):
    """With the points of the usual algorithm, 1 and 2, it would be several times that."""
    x, kernel, bias = case(1, 24, 24, 256, 64)
    expected = plain(x, kernel, bias)
    found = (convolve(core, x, kernel, bias), plain(x, kernel, bias, "float32"))
    own, other = (((y - expected) ** 2).mean() ** 0.5 for y in found)
    assert own < 4 * other


def test_bits_do_not_depend_on_the_split_or_the_batch(core):
    x, kernel, bias = case(3, 43, 45, 40, 70)
    whole = convolve(core, x, kernel, bias)
    assert number(core, "tasks", Convolution(*x.shape, 70)) > 3
    for parts in (2, 3, 7):
        np.testing.assert_array_equal(convolve(core, x, kernel, bias, parts=parts), whole)
    alone = np.ascontiguousarray(x[1:2])
    np.testing.assert_array_equal(convolve(core, alone, kernel, bias), whole[1:2])


def test_what_is_not_a_number_stays_in_its_tiles(core):
    """No pixel further than a tile sees it, and ReLU does not make a zero of it."""
    x, kernel, bias = case(1, 16, 16, 8, 8)
    clean = convolve(core, x, kernel, bias, relu=True)
    x[0, 9, 9] = np.nan
    found = convolve(core, x, kernel, bias, relu=True)
    assert np.isnan(found[0, 8:11, 8:11]).all()
    far = np.ones((16, 16), bool)
    far[7:12, 7:12] = far[4:12, 8:12] = far[8:12, 4:12] = far[4:12, 4:12] = False
    np.testing.assert_array_equal(found[0][far], clean[0][far])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 0, 5, 3, 2), "height=0, width=5"),
        ((1, 1 << 20, 1 << 20, 3, 2), "2\\^31 - 1 pixels"),
        ((-1, 4, 5, 3, 2), "batch=-1"),
        ((1, 4, 5, 0, 2), "channels=0, filters=2"),
        ((1, 4, 5, 3, 0), "filters=0"),
    ],
)
def test_refusals(library, sizes, message):
    with pytest.raises(CoreError, match=message):
        run(library, "convolution_prepare", ctypes.byref(Convolution(*sizes, 0)))
