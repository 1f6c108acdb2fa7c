"""The processors' kernels through their C interface, each instruction set this machine has."""

import json
import pathlib
import platform

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_core import CoreError, expected, joined

pytestmark = pytest.mark.any_backend

DATA = pathlib.Path(__file__).parents[1] / "data" / "op"
CASES = json.loads((DATA / "cases.json").read_text())
X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = ("sse2", "avx2", "avx512") if X86 else ("generic",)
# Relative to the largest element: float32 sums of some tens of terms; float16's and bfloat16's
# own rounding on top.
TOLERANCE = {"float32": 4e-6, "float64": 1e-13}


def arrays(shape, out, groups, points, seed=0, spread=1.0):
    """Random inputs, joined offsets and masks, and upstream gradient, float32."""
    rng = np.random.default_rng(seed)
    offset = spread * rng.normal(size=(shape[0], *out, 2 * groups * points))
    mask = rng.normal(size=(shape[0], *out, groups * points))
    return (
        rng.normal(size=shape).astype("float32"),
        joined(offset, mask).astype("float32"),
        rng.normal(size=(shape[0], *out, shape[3])).astype("float32"),
    )


def error(actual, truth):
    assert actual.shape == truth.shape
    return np.abs(actual - truth).max(initial=0) / max(np.abs(truth).max(initial=0), 1e-30)


def check(core, inputs, offset_mask, upstream, dtype="float32", **options):
    tensors = [np.ascontiguousarray(a.astype(dtype)) for a in (inputs, offset_mask, upstream)]
    call = core.call(tensors[0], tensors[1], **options)
    results = core.forward(call, *tensors[:2]), *core.backward(call, tensors[2], *tensors[:2])
    truth = expected(*tensors, **options)
    for result, exact in zip(results, truth, strict=True):
        assert error(result, exact) < TOLERANCE[dtype]
    return results


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_reference(core, name, dtype):
    case = np.load(DATA / f"{name}.npz")
    check(
        core,
        case["input"],
        joined(case["offset"], case["mask"]),
        case["grad_output"],
        dtype,
        **CASES[name],
    )


@pytest.mark.parametrize("softmax", [None, "softmax"])
@pytest.mark.parametrize(
    ("depth", "kernel_size", "remove_center"),
    [(16, 3, False), (32, 3, False), (16, 3, True), (32, 5, False), (20, 3, False), (3, 2, False)],
)
def test_every_fast_path(core, depth, kernel_size, remove_center, softmax):
    padding = kernel_size // 2
    size = (7, 8) if kernel_size % 2 else (8, 9)
    out = tuple(n + 2 * padding - kernel_size + 1 for n in size)
    points = kernel_size**2 - remove_center
    check(
        core,
        *arrays((2, *size, 3 * depth), out, 3, points),
        groups=3,
        kernel_size=kernel_size,
        padding=padding,
        remove_center=remove_center,
        mask_activation=softmax,
    )


def half(array, dtype):
    """Round to a half type: its bits for the kernel, and the numbers that these stand for."""
    array = np.ascontiguousarray(array, "float32")
    if dtype == "float16":
        rounded = array.astype("float16")
        return rounded.view("uint16"), rounded.astype("float32")
    bits = array.view("uint32")
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bits.astype("uint16"), (bits << 16).astype("uint32").view("float32")


def unhalf(bits, dtype):
    if dtype == "float16":
        return bits.view("float16").astype("float32")
    return (bits.astype("uint32") << 16).view("float32")


@pytest.mark.parametrize("depth", [16, 5])
@pytest.mark.parametrize(("dtype", "ulp"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_types_lose_their_last_rounding_alone(core, dtype, ulp, depth):
    tensors = arrays((2, 6, 7, 2 * depth), (6, 7), 2, 9)
    bits, numbers = zip(*(half(a, dtype) for a in tensors), strict=True)
    options = {"groups": 2, "mask_activation": "softmax"}
    call = core.call(*bits[:2], dtype=dtype, **options)
    results = core.forward(call, *bits[:2]), *core.backward(call, bits[2], *bits[:2])
    for result, exact in zip(results, expected(*numbers, **options), strict=True):
        result = unhalf(result, dtype)
        assert (np.abs(result - exact) <= ulp * np.abs(exact) + 2e-6 * np.abs(exact).max()).all()


def test_float16_keeps_subnormal_and_infinite_numbers(core):
    inputs = np.array([6e-8, 1e-5, -3e-6, 65504, np.inf, -np.inf, 0, -2e-7], "float16")
    inputs = inputs.reshape(1, 2, 2, 2)
    offset_mask = np.zeros((1, 2, 2, 3), "float16")
    offset_mask[..., 2] = 1
    bits = inputs.view("uint16"), offset_mask.view("uint16")
    call = core.call(*bits, dtype="float16", groups=1, kernel_size=1, padding=0)
    output = unhalf(core.forward(call, *bits), "float16")
    # Each sample lies on a pixel, whose right and lower neighbours it has with weight zero.
    finite = np.isfinite(output)
    np.testing.assert_array_equal(output[finite], inputs.astype("float32")[finite])
    assert (~finite).sum() == 4


def test_splits_and_other_images_do_not_change_a_bit(core):
    for depth, groups, points in ((16, 5, 9), (7, 3, 9), (32, 2, 8)):
        tensors = arrays((3, 9, 7, groups * depth), (9, 7), groups, points)
        options = {
            "groups": groups,
            "remove_center": points == 8,
            "mask_activation": "softmax",
            "offset_scale": 0.7,
        }
        call = core.call(*tensors[:2], **options)
        whole = core.forward(call, *tensors[:2]), *core.backward(call, tensors[2], *tensors[:2])
        for parts in (2, 3, 11, 101):
            split = (
                core.forward(call, *tensors[:2], parts),
                *core.backward(call, tensors[2], *tensors[:2], parts),
            )
            for one, other in zip(whole, split, strict=True):
                np.testing.assert_array_equal(one, other)
        single = [np.ascontiguousarray(a[1:2]) for a in tensors]
        call = core.call(*single[:2], **options)
        alone = core.forward(call, *single[:2]), *core.backward(call, single[2], *single[:2])
        for one, other in zip(whole, alone, strict=True):
            np.testing.assert_array_equal(one[1:2], other)


HOSTILE = (np.nan, -np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 2.0**31, -(2.0**31), 2.0**24)


@pytest.mark.parametrize("depth", [16, 5])
def test_hostile_offsets_sample_nothing(core, depth):
    inputs, offset_mask, upstream = arrays((1, 5, 6, 2 * depth), (5, 6), 2, 9)
    clean = offset_mask.copy()
    rng = np.random.default_rng(1)
    hit = np.zeros(offset_mask.shape, bool)
    hit[..., :36] = rng.random((1, 5, 6, 36)) < 0.3
    offset_mask[hit] = rng.choice(HOSTILE, hit.sum())
    clean[hit] = -1e4  # far outside
    options = {"groups": 2, "mask_activation": "softmax"}
    call = core.call(inputs, offset_mask, **options)
    output = core.forward(call, inputs, offset_mask)
    grads = core.backward(call, upstream, inputs, offset_mask)
    truth = expected(inputs, clean, upstream, **options)
    for result, exact in zip((output, *grads), truth, strict=True):
        assert error(result, exact) < 4e-6
    assert (grads[1][hit] == 0).all()


@pytest.mark.parametrize("depth", [16, 5])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_stays_where_it_is(core, depth, bad):
    """A sample that lies outside has nothing of the border pixel next to it."""

    def same(result, exact):
        finite = np.isfinite(exact)
        assert finite.any() and not finite.all()
        np.testing.assert_array_equal(np.isfinite(result), finite)
        assert error(result[finite], exact[finite]) < 4e-6

    inputs, offset_mask, upstream = arrays((1, 5, 6, depth), (5, 6), 1, 9, spread=2.0)
    broken = inputs.copy()
    broken[0, 0, :, 1] = broken[0, :, 5, 0] = bad
    call = core.call(inputs, offset_mask, groups=1)
    results = (
        core.forward(call, broken, offset_mask),
        core.backward(call, upstream, broken, offset_mask)[1],
    )
    with np.errstate(invalid="ignore"):
        output, _, grad = expected(broken, offset_mask, upstream, groups=1)
    for result, exact in zip(results, (output, grad), strict=True):
        same(result, exact)

    upstream[0, 2, 3, 2] = bad
    with np.errstate(invalid="ignore"):
        truth = expected(inputs, offset_mask, upstream, groups=1)[1]
    same(core.backward(call, upstream, inputs, offset_mask)[0], truth)


@pytest.mark.parametrize(
    ("batch", "size", "kernel_size", "padding"),
    [
        (0, (4, 4), 3, 1),
        (1, (1, 1), 1, 0),
        (2, (1, 1), 3, 1),
        (1, (1, 40), 3, 1),
        (1, (40, 1), 3, 1),
        (1, (2, 2), 3, 5),
        (1, (1, 2), (1, 2), 0),
    ],
)
@pytest.mark.parametrize("depth", [16, 1])
def test_extreme_sizes(core, batch, size, kernel_size, padding, depth):
    kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    out = (size[0] + 2 * padding - kh + 1, size[1] + 2 * padding - kw + 1)
    check(
        core,
        *arrays((batch, *size, 2 * depth), out, 2, kh * kw, spread=3.0),
        groups=2,
        kernel_size=kernel_size,
        padding=padding,
        mask_activation="softmax",
    )


def test_more_points_than_a_block_holds(core):
    check(core, *arrays((1, 26, 25, 4), (2, 1), 2, 625), groups=2, kernel_size=25, padding=0)


def test_indices_beyond_32_bits(library):
    """Only the pixels that are read exist in memory."""
    height, width, channels = 40000, 40000, 2
    inputs = np.zeros((1, height, width, channels), "uint16")
    assert inputs.size > 2**31
    stride = 39998
    one = half(np.array([1.0, 2.0], "float32"), "bfloat16")[0]
    inputs[0, 1, 1] = inputs[0, 39999, 39999] = one
    offset_mask = np.zeros((1, 2, 2, 3), "float32")
    offset_mask[..., 2] = 1
    offset_mask[0, 1, 1, :2] = 0  # at (39998, 39998)
    offset_mask[0, 0, 0, :2] = 1
    offset_mask[0, 1, 1, :2] = 1
    offset_mask = half(offset_mask, "bfloat16")[0]
    call = library.call(
        inputs, offset_mask, dtype="bfloat16", groups=1, kernel_size=1, padding=0, strides=stride
    )
    output = unhalf(library.forward(call, inputs, offset_mask), "bfloat16")
    np.testing.assert_array_equal(output[0, 0, 0], [1, 2])
    np.testing.assert_array_equal(output[0, 1, 1], [1, 2])
    assert (output[0, 0, 1] == 0).all() and (output[0, 1, 0] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, r"multiple of `groups`.*inputs\.shape=\(1, 4, 5, 8\), groups=3"),
        ({"strides": 0}, r"`strides` .* must be positive.*strides=\(0, 0\)"),
        ({"padding": -1}, r"`padding` must not be negative.*padding=\(-1, -1\)"),
        ({"remove_center": True, "kernel_size": 2}, r"odd sizes.*kernel_size=\(2, 2\)"),
        ({"kernel_size": 9}, r"at least as large as the dilated kernel, \(9, 9\).*height=4"),
        ({"offset_scale": -1.0}, r"`offset_scale` must be positive.*offset_scale=-1"),
        ({"offset_scale": 1e30}, r"less than 2\^24 pixels.*offset_scale=1e\+30"),
        ({"offset_scale": float("nan")}, r"offset_scale=nan"),
        ({"strides": 2}, r"= \(1, 2, 3, 54\)\. Received: offset_mask\.shape=\(1, 4, 5, 54\)"),
    ],
)
def test_wrong_calls_say_what_must_hold(library, changes, message):
    inputs, offset_mask, _ = arrays((1, 4, 5, 8), (4, 5), 2, 9)
    with pytest.raises(CoreError, match=message):
        library.call(inputs, offset_mask, **{"groups": 2, **changes})


@st.composite
def hostile_calls(draw):
    small = st.integers(1, 4)
    pair = st.tuples(small, small)
    options = {
        "groups": draw(small),
        "kernel_size": draw(pair),
        "strides": draw(pair),
        "dilation_rate": draw(pair),
        "padding": draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
        "offset_scale": draw(st.sampled_from([1e-3, 0.7, 1.0, 2.0, 1e5])),
        "mask_activation": draw(st.sampled_from([None, "softmax"])),
    }
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 20))
        for k, d, p in zip(
            options["kernel_size"], options["dilation_rate"], options["padding"], strict=True
        )
    ]
    depth = draw(st.sampled_from([1, 3, 16, 17, 32, 40]))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    return draw(st.integers(0, 3)), size, depth, options, dtype, draw(st.integers(0, 2**16))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(hostile_calls())
def test_no_call_reads_or_writes_elsewhere(library, call):
    """Results are finite where they must be; `make sanitize` watches every access."""
    batch, size, depth, options, dtype, seed = call
    (kh, kw), (sh, sw) = options["kernel_size"], options["strides"]
    (dh, dw), (ph, pw) = options["dilation_rate"], options["padding"]
    out = (
        (size[0] + 2 * ph - dh * (kh - 1) - 1) // sh + 1,
        (size[1] + 2 * pw - dw * (kw - 1) - 1) // sw + 1,
    )
    groups = options["groups"]
    tensors = arrays((batch, *size, groups * depth), out, groups, kh * kw, seed, spread=5.0)
    inputs, offset_mask, upstream = (np.ascontiguousarray(a.astype(dtype)) for a in tensors)
    rng = np.random.default_rng(seed)
    offsets = offset_mask[..., : 2 * groups * kh * kw]
    hit = rng.random(offsets.shape) < 0.3
    offsets[hit] = rng.choice(HOSTILE, hit.sum())
    for isa in ISAS:
        if library.set_isa(isa):
            prepared = library.call(inputs, offset_mask, **options)
            output = library.forward(prepared, inputs, offset_mask)
            grads = library.backward(prepared, upstream, inputs, offset_mask)
            for result in (output, *grads):
                assert np.isfinite(result).all()
