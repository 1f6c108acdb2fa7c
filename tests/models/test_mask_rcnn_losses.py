"""Mask R-CNN's losses, samples and gradients: the official numbers."""

import keras
import numpy as np
import pytest
from models import detection_reference
from models.detection_training import losses_and_gradients

from keras_internimage.models.detection import MaskRCNN
from keras_internimage.models.detection.assignment import Sampler

# By the official names.
LOSSES = {
    "rpn_class_loss": "loss_rpn_cls",
    "rpn_box_loss": "loss_rpn_bbox",
    "class_loss": "loss_cls",
    "box_loss": "loss_bbox",
    "mask_loss": "loss_mask",
}


@pytest.fixture(scope="module")
def model():
    return detection_reference.fill(MaskRCNN("T"))


@pytest.fixture
def samples(monkeypatch):
    """What the samplers choose: `(indices, positive, valid)` of anchors, then of regions."""
    chosen, call = [], Sampler.__call__

    def recorded(*args):
        chosen.append(call(*args))
        return chosen[-1]

    monkeypatch.setattr(Sampler, "__call__", recorded)
    # Eleven are an object's. Without this XLA, which must know before, would compute all masks.
    monkeypatch.setattr(Sampler, "limit", lambda *_: 16)
    return chosen


# XLA and TensorFlow take half a minute to compile each.
SLOW = () if keras.config.backend() == "torch" else pytest.mark.slow


@pytest.mark.parametrize("mode", ["first_n", pytest.param("keep_all", marks=SLOW)])
def test_official_losses(model, samples, mode):
    losses, expected, gradients = detection_reference.training(mode)
    x = {
        "images": detection_reference.images(),
        "image_sizes": np.array([detection_reference.RESIZED], "int32"),
    }
    model.sampling = mode
    found, chosen, own = losses_and_gradients(
        model, x, detection_reference.targets(), lambda: list(samples)
    )
    for name, official in LOSSES.items():
        np.testing.assert_allclose(found[name], losses[official], rtol=1e-5, err_msg=name)
    assert len(found) == len(LOSSES)
    for (index, positive, valid), kind in zip(chosen, ("rpn", "rcnn"), strict=True):
        assert index[positive].tolist() == expected[f"{kind}_positive_indices"]
        assert (valid & ~positive).sum() == expected[f"{kind}_negative"]
    own = detection_reference.probes(own)
    assert set(own) == set(gradients)
    for name, (norm, product) in gradients.items():
        # A bilinear sample's gradient jumps where its point crosses a pixel. That is the gradient
        # of offsets, and of the convolution before them.
        jumps = "offset" in name or "dw_conv" in name
        assert abs(own[name][0] - norm) <= (1e-2 if "offset" in name else 1e-3) * norm, name
        assert abs(own[name][1] - product) <= (2e-2 if jumps else 1e-3) * norm, name
