"""The operator against the reference numbers, and its manners: dtypes, shapes, errors."""

import contextlib
import json
import pathlib

import keras
import numpy as np
import oracle
import pytest
from gradients import relative_error, to_numpy, value_and_grads

from keras_internimage.ops import dcnv3

DATA = pathlib.Path(__file__).parents[1] / "data" / "op"
CASES = json.loads((DATA / "cases.json").read_text())
FORWARD, GRADIENT = 4e-6, 2e-5

pytestmark = pytest.mark.usefixtures("implementation")


def arrays(groups=2, depth=4, size=(5, 6), batch=2, points=9, out=None, seed=0):
    """Random `inputs, offset, mask, grad_output`."""
    rng = np.random.default_rng(seed)
    out = out or size
    return (
        rng.normal(size=(batch, *size, groups * depth)).astype("float32"),
        rng.normal(size=(batch, *out, groups * points * 2)).astype("float32"),
        rng.normal(size=(batch, *out, groups * points)).astype("float32"),
        rng.normal(size=(batch, *out, groups * depth)).astype("float32"),
    )


@pytest.mark.parametrize("name", CASES)
def test_reference(name):
    case = np.load(DATA / f"{name}.npz")
    output, grads = value_and_grads(
        lambda *tensors: dcnv3(*tensors, **CASES[name]),
        [case["input"], case["offset"], case["mask"]],
        case["grad_output"],
    )
    assert relative_error(output, case["output"]) < FORWARD
    for grad, of in zip(grads, ("input", "offset", "mask"), strict=True):
        assert relative_error(grad, case[f"grad_{of}"]) < GRADIENT, of


@pytest.mark.any_backend
@pytest.mark.parametrize("name", CASES)
def test_the_oracle_agrees_with_the_reference(name):
    case = np.load(DATA / f"{name}.npz")
    tensors = case["input"], case["offset"], case["mask"]
    assert relative_error(oracle.forward(*tensors, **CASES[name]), case["output"]) < 1e-6
    grads = oracle.gradients(*tensors, case["grad_output"], **CASES[name])
    for grad, of in zip(grads, ("input", "offset", "mask"), strict=True):
        assert relative_error(grad, case[f"grad_{of}"]) < 1e-6, of


@pytest.mark.parametrize("remove_center", [False, True])
def test_softmax_inside(remove_center):
    options = {"groups": 2, "mask_activation": "softmax", "remove_center": remove_center}
    *tensors, upstream = arrays(points=9 - remove_center)
    tensors[2] *= 8
    output, grads = value_and_grads(lambda *t: dcnv3(*t, **options), tensors, upstream)
    assert relative_error(output, oracle.forward(*tensors, **options)) < FORWARD
    for grad, expected in zip(grads, oracle.gradients(*tensors, upstream, **options), strict=True):
        assert relative_error(grad, expected) < GRADIENT


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3), ("float64", 1e-12)]
)
def test_other_dtypes(dtype, tolerance):
    """Half types lose their own rounding and no more; float64 is computed in float64."""
    *tensors, upstream = arrays(depth=16)
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float64 only where the user enables it")
    tensors = [keras.ops.convert_to_tensor(t, dtype=dtype) for t in tensors]
    rounded = [
        keras.ops.convert_to_numpy(
            keras.ops.cast(t, "float64" if dtype == "float64" else "float32")
        )
        for t in tensors
    ]
    upstream = to_numpy(keras.ops.convert_to_tensor(upstream, dtype=dtype))
    fn = lambda *t: dcnv3(*t, groups=2, offset_scale=2.0)  # noqa: E731
    assert keras.backend.standardize_dtype(fn(*tensors).dtype) == dtype
    output, grads = value_and_grads(fn, tensors, upstream)
    expected = oracle.forward(*rounded, groups=2, offset_scale=2.0)
    assert relative_error(output, expected) < tolerance
    truth = oracle.gradients(*rounded, upstream, groups=2, offset_scale=2.0)
    for grad, expected in zip(grads, truth, strict=True):
        assert relative_error(grad, expected) < tolerance


def test_half_inputs_with_float32_positions():
    inputs, offset, mask, _ = arrays()
    half = keras.ops.convert_to_tensor(inputs, dtype="bfloat16")
    output = dcnv3(half, offset, mask, groups=2)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    truth = oracle.forward(to_numpy(half), offset, mask, groups=2)
    assert relative_error(to_numpy(output), truth) < 8e-3


def test_positions_do_not_lose_precision_far_from_the_corner():
    """The same offsets give the same fractions at the end of a long row as at its start."""
    width, points = 5000, 9
    ramp = np.arange(width, dtype="float32").reshape(1, 1, width, 1)
    offset = np.zeros((1, 1, width, 2 * points), "float32")
    offset[..., 2 * 4] = 0.3  # the centre's dx
    mask = np.zeros((1, 1, width, points), "float32")
    mask[..., 4] = 1
    step = np.zeros_like(ramp)
    step[0, 0, 1::2] = 1
    output = to_numpy(dcnv3(step, offset, mask, groups=1))[0, 0, :, 0]
    fraction = np.float32(0.3)
    np.testing.assert_array_equal(output[0:-1:2], fraction)
    np.testing.assert_array_equal(output[1:-1:2], 1 - fraction)


@pytest.mark.any_backend
def test_symbolic_shapes_run_nothing(monkeypatch):
    from keras_internimage.ops import dispatch

    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", [])
    output = dcnv3(
        keras.KerasTensor((None, 640, None, 64), dtype="bfloat16"),
        keras.KerasTensor((4, None, None, 72)),
        keras.KerasTensor((None, None, 5, 36)),
        groups=4,
        strides=2,
    )
    assert output.shape == (4, 320, 5, 64)
    assert output.dtype == "bfloat16"


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (2, 5, 6)}, r"`inputs` must have rank 4.*Received: inputs.shape=\(2, 5, 6\)"),
        ({"inputs": (2, 5, 6, 9)}, r"multiple of `groups`. Received: .*\(2, 5, 6, 9\), groups=2"),
        ({"inputs": (2, 5, 6, None)}, r"known multiple of `groups`"),
        ({"offset": (2, 5, 6, 18)}, r"`offset` .*groups \* points \* 2.*\(2, 5, 6, 36\). Received"),
        ({"offset": (2, 5, 7, 36)}, r"`offset` .*\(2, 5, 6, 36\). Received: .*\(2, 5, 7, 36\)"),
        ({"offset": (3, 5, 6, 36)}, r"`offset` .*\(2, 5, 6, 36\). Received: .*\(3, 5, 6, 36\)"),
        (
            {"mask": (2, 5, 6, 36)},
            r"`mask` .*\(2, 5, 6, 18\). Received: mask.shape=\(2, 5, 6, 36\)",
        ),
        ({"mask": (2, 5, 6, None)}, r"last size of `mask` must be known, 18"),
        ({"strides": 2}, r"`offset` must have the shape .*\(2, 3, 3, 36\)"),
        ({"kernel_size": 9}, "at least the dilated kernel's, 9. Received: height=5"),
        ({"groups": 3}, "multiple of `groups`.*groups=3"),
        ({"mask_activation": "relu"}, "`mask_activation` must be one of .*'relu'"),
        ({"remove_center": None}, "`remove_center` must be a boolean"),
    ],
)
def test_errors_say_what_must_hold(change, message):
    shapes = {"inputs": (2, 5, 6, 8), "offset": (2, 5, 6, 36), "mask": (2, 5, 6, 18)}
    options = {"groups": 2}
    for name, value in change.items():
        (shapes if name in shapes else options)[name] = value
    with pytest.raises(ValueError, match=message):
        dcnv3(*(keras.KerasTensor(shape) for shape in shapes.values()), **options)
    if not any(None in shape for shape in shapes.values()):
        with pytest.raises(ValueError, match=message):
            dcnv3(*(np.zeros(shape, "float32") for shape in shapes.values()), **options)


@pytest.mark.any_backend
@pytest.mark.parametrize("name", ["inputs", "offset", "mask"])
def test_integer_tensors_are_refused(name):
    tensors = dict(zip(("inputs", "offset", "mask"), arrays(), strict=False))
    tensors[name] = tensors[name].astype("int32")
    with pytest.raises(ValueError, match=rf"`{name}` must have one of.*{name}.dtype=int32"):
        dcnv3(**tensors, groups=2)


def test_empty_batch():
    *tensors, upstream = arrays(batch=0)
    output, grads = value_and_grads(
        lambda *t: dcnv3(*t, groups=2, implementation="portable"), tensors, upstream
    )
    assert output.shape == upstream.shape == (0, 5, 6, 8)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


def test_one_pixel_image():
    inputs, offset, mask, _ = arrays(size=(1, 1))
    expected = oracle.forward(inputs, offset, mask, groups=2)
    assert relative_error(to_numpy(dcnv3(inputs, offset, mask, groups=2)), expected) < FORWARD


HOSTILE = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31, 2.0**24, 1e5, -1e5]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_hostile_offsets_sample_nothing(scale):
    """Not finite or far away: nothing is sampled, the gradients are finite, neighbours intact."""
    *tensors, upstream = arrays(batch=1)
    offset = tensors[1].reshape(-1)
    places = np.random.default_rng(1).permutation(offset.size)[: 8 * len(HOSTILE)]
    offset[places] = HOSTILE * 8
    options = {"groups": 2, "offset_scale": scale}
    output, grads = value_and_grads(lambda *t: dcnv3(*t, **options), tensors, upstream)
    assert relative_error(output, oracle.forward(*tensors, **options)) < FORWARD
    truth = oracle.gradients(*tensors, upstream, **options)
    for grad, expected in zip(grads, truth, strict=True):
        assert np.isfinite(grad).all()
        assert relative_error(grad, expected) < GRADIENT
    assert (grads[1].reshape(-1)[places] == 0).all()


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("pixel", [(0, 0), (4, 5), (2, 3)])
def test_a_bad_pixel_reaches_only_what_samples_it(value, pixel):
    inputs, offset, mask, _ = arrays()
    inputs[0][pixel] = value
    with np.errstate(invalid="ignore"):
        expected = oracle.forward(inputs, offset, mask, groups=2)
    output = to_numpy(dcnv3(inputs, offset, mask, groups=2))
    finite = np.isfinite(expected)
    assert not finite.all() and finite.any()
    np.testing.assert_array_equal(np.isfinite(output), finite)
    assert relative_error(output[finite], expected[finite]) < FORWARD


def test_the_same_bits_every_time():
    """On a CPU, forward and backward, and in PyTorch for any number of threads."""
    *tensors, upstream = arrays(size=(24, 24), depth=8)
    runs = []
    for threads in (1, 2, 3):
        with _torch_threads(threads):
            output, grads = value_and_grads(lambda *t: dcnv3(*t, groups=2), tensors, upstream)
        runs.append([output, *grads])
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, again)


@contextlib.contextmanager
def _torch_threads(threads):
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 5])
def test_images_in_pieces(batch, monkeypatch):
    """What is split up to stay in the cache is put together again."""
    if keras.backend.backend() == "torch":
        from keras_internimage.ops.portable import torch as portable_torch

        monkeypatch.setattr(portable_torch, "_SAMPLES", {"cpu": 200})
        monkeypatch.setattr(portable_torch, "_FLOATS", {"cpu": 1000})
    elif keras.backend.backend() == "jax":
        from keras_internimage.ops.portable import jax as portable_jax

        monkeypatch.setattr(portable_jax, "_FLOATS", 5000)
    *tensors, upstream = arrays(size=(19, 8), batch=batch)
    output, grads = value_and_grads(lambda *t: dcnv3(*t, groups=2), tensors, upstream)
    assert relative_error(output, oracle.forward(*tensors, groups=2)) < FORWARD
    truth = oracle.gradients(*tensors, upstream, groups=2)
    for grad, expected in zip(grads, truth, strict=True):
        assert relative_error(grad, expected) < GRADIENT
