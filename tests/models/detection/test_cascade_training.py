"""Cascade Mask R-CNN's losses against a program in NumPy, and `fit`."""

import keras
import numpy as np
import pytest
from keras import ops
from models.detection import cascade_losses
from models.detection.test_cascade_mask_rcnn import SIZES, batch, official_state, on_convolutions
from models.detection_training import losses_and_gradients

from keras_internimage.models.detection import CascadeMaskRCNN
from keras_internimage.models.detection.assignment import Matching

BOXES = np.array(
    [
        [[3.5, 4.25, 40.5, 31.25], [16.0, 17.9, 42.9, 60.9], [0, 0, 0, 0]],
        [[50.2, 6.1, 88.7, 44.9], [5.5, 10.2, 30.8, 48.3], [36.2, 20.1, 60.9, 49.5]],
    ],
    "float32",
)
LABELS = np.array([[4, 0, -1], [3, 2, 4]], "int32")
RPN = {"rpn_class_loss", "rpn_box_loss"}


class Few(CascadeMaskRCNN):
    """A model that samples few regions, so that none of the limits is out of reach."""

    anchor_matching = Matching(0.7, 0.3, 0.3, samples=32, positives=16)
    region_matching = tuple(Matching(x, x, None, samples=20, positives=5) for x in (0.5, 0.6, 0.7))


def targets():
    """Ellipses within the boxes."""
    y, x = np.mgrid[:64, :96] + 0.5
    masks = np.zeros((2, 3, 64, 96), "uint8")
    for n, k in np.ndindex(2, 3):
        left, top, right, bottom = BOXES[n, k]
        if right > left:
            across = (2 * x - left - right) / (right - left)
            down = (2 * y - top - bottom) / (bottom - top)
            masks[n, k] = across**2 + down**2 < 1
    return {"boxes": BOXES, "labels": LABELS.copy(), "masks": masks}


def inputs():
    return {"images": batch(SIZES), "image_sizes": SIZES.astype("int32")}


def cases(maps, y):
    """What the program takes: one dict for each image, with the objects there are."""
    for n, size in enumerate(SIZES):
        there = y["labels"][n] >= 0
        objects = {key: value[n][there] for key, value in y.items()}
        yield {**objects, "maps": [m[n] for m in maps], "size": tuple(size)}


def test_losses_as_the_program():
    """Two images with two and three objects; every stage has regions of each besides."""
    model = on_convolutions(kind=Few)
    model.sampling = "first_n"
    y = targets()
    state = official_state(model)
    x = keras.tree.map_structure(ops.convert_to_tensor, inputs())
    maps = [ops.convert_to_numpy(m) for m in model(x, training=True)["maps"]]
    images = list(cases(maps, y))
    expected = cascade_losses.losses(images, state, 80, 60, rpn_samples=32, samples=20)
    assert [image["positives"] for image in images] == [[5, 5, 3], [5, 4, 3]]
    found, _, gradients = losses_and_gradients(model, x, y)
    assert found.keys() == expected.keys() == set(model.region_loss_names()) | RPN
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert all(abs(g).max() > 0 for path, g in gradients.items() if "head" in path)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="asks for single gradients")
def test_no_gradient_flows_from_stage_to_stage():
    import torch

    model = on_convolutions(kind=Few)
    x, y = keras.tree.map_structure(ops.convert_to_tensor, (inputs(), targets()))
    found = model.losses_by_name(x, y, model(x, training=True), True)
    for stage, (boxes, masks) in enumerate(zip(model.box_heads, model.mask_heads, strict=True)):
        values = [v.value for head in (boxes, masks) for v in head.trainable_variables]
        for name in model.region_loss_names():
            gradients = torch.autograd.grad(
                found[name], values, retain_graph=True, allow_unused=True
            )
            reached = any(g is not None for g in gradients)
            assert reached == name.endswith(f"_{stage + 1}"), name


def averages(model):
    norms = [unit.norm for head in model.box_heads for unit in head.convolutions]
    return [ops.convert_to_numpy(v) for n in norms for v in (n.moving_mean, n.moving_variance)]


def test_fit(tmp_path):
    """One image without an object; the loss falls, and its weights are saved with averages."""
    model = on_convolutions(kind=Few)
    # TensorFlow takes long to trace two steps; the losses are traced by the test above.
    eagerly = keras.config.backend() == "tensorflow"
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=eagerly)
    x, y = inputs(), targets()
    y["labels"][0] = -1
    before = averages(model)
    history = model.fit(x, y, batch_size=2, epochs=3, verbose=0).history
    assert history.keys() == {"loss", *RPN, *model.region_loss_names()}
    assert np.isfinite(list(history.values())).all()
    assert history["loss"][-1] < history["loss"][0]
    parts = sum(np.array(value) for name, value in history.items() if name != "loss")
    np.testing.assert_allclose(history["loss"], parts, rtol=1e-5)
    after = averages(model)
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    losses = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    for a, b in zip(averages(model), after, strict=True):
        np.testing.assert_array_equal(a, b)
    model.save_weights(tmp_path / "x.weights.h5")
    # Into the same model, whose functions may be compiled.
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape))
    model.load_weights(tmp_path / "x.weights.h5")
    found = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert found.keys() == losses.keys()
    for name, value in losses.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    # No object anywhere: nothing to learn of boxes and masks.
    y["labels"][1] = -1
    losses = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert np.isfinite(list(losses.values())).all() and losses["class_loss_2"] > 0
    empty = [name for name in losses if "box_loss" in name or "mask_loss" in name]
    assert len(empty) == 7 and not any(losses[name] for name in empty)
