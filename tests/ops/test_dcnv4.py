"""The operator of DCNv4 against the reference numbers, in the official packing."""

import json
import pathlib

import keras
import numpy as np
import pytest
from gradients import relative_error, to_numpy, value_and_grads

from keras_internimage.ops import dcnv4
from keras_internimage.ops.dcnv4 import channels, packing

DATA = pathlib.Path(__file__).parents[1] / "data" / "dcnv4"
CASES = json.loads((DATA / "cases.json").read_text())
FORWARD, GRADIENT = 4e-6, 2e-5

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.mark.parametrize("name", CASES)
def test_reference(name):
    case, options = np.load(DATA / f"{name}.npz"), CASES[name]
    output, (to_inputs, to_points) = value_and_grads(
        lambda *tensors: dcnv4(*tensors, **options),
        [case["input"], case["offset_mask"]],
        case["grad_output"],
    )
    assert relative_error(output, case["output"]) < FORWARD
    assert relative_error(to_inputs, case["grad_input"]) < GRADIENT
    expected = case["grad_offset_mask"]
    points = 9 - options["remove_center"]
    used = packing(options["groups"], points)
    unused = np.setdiff1d(np.arange(expected.shape[-1]), used)
    assert not to_points[..., unused].any() and not expected[..., unused].any()
    if name == "on_border":
        # Where a sample lies exactly at -1 the official derivative by the offset is zero, ours
        # that to the right. The masks' gradients are the same.
        used = used[2 * options["groups"] * points :]
    assert relative_error(to_points[..., used], expected[..., used]) < GRADIENT


@pytest.mark.any_backend
def test_packing():
    """Two groups of three points: dx and dy of each, then the masks, group after group."""
    names = [f"{axis}{g}{p}" for g in range(2) for p in range(3) for axis in "xy"]
    official = names[:6] + ["m00", "m01", "m02"] + names[6:] + ["m10", "m11", "m12"]
    masks = [f"m{g}{p}" for g in range(2) for p in range(3)]
    assert [official[i] for i in packing(2, 3)] == names + masks
    assert [channels(groups, 9) for groups in (1, 4, 5, 7, 8)] == [32, 112, 136, 192, 216]
    assert channels(3, 8) == 72


def test_images_do_not_depend_on_each_other():
    """Bit for bit; the official kernel samples some pixels from the image before."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 7, 7, 32)).astype("float32")
    points = rng.normal(scale=2, size=(8, 7, 7, 56)).astype("float32")
    together = to_numpy(dcnv4(inputs, points, groups=2))
    alone = [to_numpy(dcnv4(inputs[n : n + 1], points[n : n + 1], groups=2)) for n in range(8)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_unused_channels_may_be_left_out():
    case, options = np.load(DATA / "basic.npz"), CASES["basic"]
    short = case["offset_mask"][..., : 27 * options["groups"]]
    assert short.shape[-1] < case["offset_mask"].shape[-1]
    assert (
        relative_error(to_numpy(dcnv4(case["input"], short, **options)), case["output"]) < FORWARD
    )


def test_symbolic():
    output = dcnv4(keras.Input((8, 9, 32)), keras.Input((8, 9, 56)), groups=2)
    assert output.shape == (None, 8, 9, 32)


@pytest.mark.parametrize("last", [53, 55, 64])
def test_refusals(last):
    with pytest.raises(ValueError, match=f"groups . points . 3 = 54, or .* 56.*{last}"):
        dcnv4(np.zeros((1, 4, 4, 32)), np.zeros((1, 4, 4, last)), groups=2)
    with pytest.raises(ValueError, match="`offset_mask` must have the shape"):
        dcnv4(np.zeros((1, 4, 4, 32)), np.zeros((4, 4, 56)), groups=2)
