"""Mask R-CNN T with the official code's numbers: each part, detections, losses and gradients."""

import keras
import numpy as np
import pytest
from keras import ops
from models import detection_reference
from models.detection_training import losses_and_gradients
from models.test_mask_rcnn import as_arrays, close, compiled

from keras_internimage.layers.detection.regions import region_levels
from keras_internimage.models.detection import MaskRCNN, paste_masks
from keras_internimage.models.detection.assignment import Sampler
from keras_internimage.models.detection.inputs import pad
from keras_internimage.models.detection.mask_rcnn import refined

# By the official names.
LOSSES = {
    "rpn_class_loss": "loss_rpn_cls",
    "rpn_box_loss": "loss_rpn_bbox",
    "class_loss": "loss_cls",
    "box_loss": "loss_bbox",
    "mask_loss": "loss_mask",
}
# XLA and TensorFlow take half a minute to make the whole model's gradients: in the default run they
# have what is behind the backbone; gradients of the backbone's layers are in `test_parity`.
TORCH = keras.config.backend() == "torch"
WHOLE = () if TORCH else pytest.mark.slow
HERE = pytest.mark.skipif(TORCH, reason="has the whole model's")
HEADS = 42  # tensors


class Stages(MaskRCNN):
    """A model that returns what is between its parts, too, so that all of it is compiled once.

    In training it can be given what the backbone makes of the images, as `maps`.
    """

    maps = None

    def call(self, inputs, training=None):
        if training and self.maps is not None:
            maps = self.pyramid([ops.convert_to_tensor(x) for x in self.maps])
            logits, deltas = self.rpn(maps)
            return {"maps": maps, "objectness": logits, "deltas": deltas}
        if training:
            return super().call(inputs, training=training)
        sizes, regions = inputs["image_sizes"], inputs["regions"]
        proposals, logits, deltas = inputs["proposals"], inputs["logits"], inputs["deltas"]
        features = self.features(pad(inputs["images"]))
        maps = self.pyramid(features)
        objectness, moves = self.rpn(maps)
        found, scores, valid = self.propose(maps, objectness, moves, sizes)
        pooled = self.box_align(maps, regions)
        fixed_logits, fixed_deltas = self.box_head(pooled)
        ones = ops.ones_like(sizes, dtype="float32")
        there = ops.ones_like(proposals[..., 0], dtype="bool")
        labels = inputs["labels"]
        own = self.mask_head(self.mask_align(maps, inputs["boxes"]), labels)
        keys = ("images", "image_sizes", "original_sizes")
        return {
            "backbone": features,
            "maps": maps,
            "objectness": objectness,
            "moves": moves,
            "proposals": ops.concatenate([found, ops.sigmoid(scores)[..., None]], -1),
            "valid": valid,
            "levels": region_levels(regions, 4),
            "pooled": pooled,
            "fixed_logits": fixed_logits,
            "fixed_deltas": fixed_deltas,
            "fixed_masks": self.mask_head(self.mask_align(maps, regions[:, :4])),
            "own_masks": own,
            "detected": self.detect(refined(proposals, deltas), logits, there, sizes, ones),
            "all": super().call({key: inputs[key] for key in keys}),
        }


# For the session: a worker that is given tests of other files in between would make them again.
@pytest.fixture(scope="session")
def stored():
    return detection_reference.numbers()


@pytest.fixture(scope="session")
def model():
    return detection_reference.fill(Stages("T"))


@pytest.fixture(scope="session")
def found(stored, model):
    """What the model and its parts give for the reference's input, without the batch."""
    scale = np.array(detection_reference.RESIZED) / detection_reference.ORIGINAL
    inputs = {
        "images": detection_reference.images(),
        "image_sizes": np.array([detection_reference.RESIZED], "int32"),
        "original_sizes": np.array([detection_reference.ORIGINAL], "int32"),
        "regions": detection_reference.regions()[None],
        "proposals": stored["proposals"][None, :64, :4],
        "logits": stored["first64_cls"][None],
        "deltas": stored["first64_reg"].reshape(1, 64, 80, 4),
        "boxes": (stored["boxes"][:, :4] * np.tile(scale[::-1], 2).astype("float32"))[None],
        "labels": stored["labels"][None],
    }
    inputs = {key: ops.convert_to_tensor(value) for key, value in inputs.items()}
    # TensorFlow takes longer to trace so many layers than to run them one by one.
    call = model if keras.config.backend() == "tensorflow" else compiled(model)
    return keras.tree.map_structure(lambda x: x[0], as_arrays(call(inputs)))


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


def nearest(boxes, others):
    """The largest distance of a box from the nearest of the others, both ways."""
    distance = abs(boxes[:, None] - others[None]).max(-1)
    return max(distance.min(0).max(), distance.min(1).max())


def test_backbone_and_pyramid(stored, found):
    for k, x in enumerate(found["backbone"]):
        close(x.mean((0, 1)), stored[f"backbone{k}_mean"], 5e-5)
    assert len(found["maps"]) == 5
    for k, x in enumerate(found["maps"]):
        close(x[:2, :2], stored[f"fpn{k}_corner"], 5e-5)
        close(x.mean(-1), stored[f"fpn{k}_pixel_mean"], 5e-5)


def test_proposals(stored, found):
    for k, x in enumerate(found["maps"]):
        close(found["objectness"][k].reshape(*x.shape[:2], 3), stored[f"rpn_cls{k}"], 5e-5)
        moves = found["moves"][k].reshape(*x.shape[:2], 12)[::3, ::3]
        close(moves, stored[f"rpn_reg{k}"], 2e-5)
    assert found["valid"].all() and found["proposals"].shape == (1000, 5)
    # Neighbouring scores differ by as little as 1e-7: as sets.
    assert nearest(found["proposals"], stored["proposals"]) < 2e-3


def test_heads_on_given_regions(stored, found):
    np.testing.assert_array_equal(found["levels"], stored["fixed_levels"])
    close(found["pooled"].mean(-1), stored["fixed_pooled_mean"], 5e-5)
    close(found["pooled"][..., :8], stored["fixed_pooled_first8"], 5e-5)
    close(found["fixed_logits"], stored["fixed_cls"], 5e-5)
    close(found["fixed_deltas"].reshape(12, 320), stored["fixed_reg"], 5e-5)
    close(found["fixed_masks"][:, ::2, ::2, :3], stored["fixed_mask_first3"], 5e-5)


def test_the_last_step_alone(stored, found):
    """With 100 detections of which the worst are cut off."""
    boxes, scores, labels, valid = found["detected"]
    assert valid.all() and len(boxes) == 100
    np.testing.assert_array_equal(labels, stored["first64_labels"])
    close(np.c_[boxes, scores], stored["first64_boxes"], 2e-3)


def test_detections(stored, found):
    result = found["all"]
    count = result["num_detections"]
    assert count == len(stored["labels"]) == 60
    # Each by its label, which no two so near each other share.
    key = np.c_[result["boxes"], result["scores"], 1e3 * result["labels"]][:count]
    assert nearest(key, np.c_[stored["boxes"], 1e3 * stored["labels"]]) < 2e-3
    assert (result["boxes"][count:] == -1).all() and (result["labels"][count:] == -1).all()
    assert (result["scores"][count:] == -1).all() and not result["masks"][count:].any()
    close(found["own_masks"][:, ::3, ::3], stored["mask_logits_own"], 5e-4)
    # Rows of equal score may be exchanged.
    order = [
        int(abs(key - row).max(-1).argmin())
        for row in np.c_[stored["boxes"], 1e3 * stored["labels"]]
    ]
    expected = 1 / (1 + np.exp(-stored["mask_logits_own"]))
    close(result["masks"][order][:, ::3, ::3], expected, 5e-4)
    size = detection_reference.ORIGINAL
    pasted = paste_masks(result["masks"][order], result["boxes"][order], size)
    expected = np.unpackbits(stored["masks_packed"], axis=-1, count=size[1]).astype(bool)
    differing = (pasted != expected).sum((1, 2))
    assert (differing <= 1 + 1e-3 * expected.sum((1, 2))).all()
    assert expected.any((1, 2)).sum() > 30


@pytest.mark.parametrize(
    ("mode", "part"),
    [
        pytest.param("first_n", "heads", marks=HERE),
        pytest.param("first_n", "whole", marks=WHOLE),
        pytest.param("keep_all", "whole", marks=WHOLE),
    ],
)
def test_official_losses(model, found, samples, monkeypatch, mode, part):
    """Of the whole model, or of what is behind the backbone, whose maps are those of `found`."""
    losses, expected, gradients = detection_reference.training(mode)
    if part == "heads":
        monkeypatch.setattr(model, "maps", [x[None] for x in found["backbone"]])
        monkeypatch.setattr(model.features, "trainable", False)
        gradients = {
            name: value for name, value in gradients.items() if not name.startswith("backbone.")
        }
        assert len(gradients) == HEADS
    x = {
        "images": detection_reference.images(),
        "image_sizes": np.array([detection_reference.RESIZED], "int32"),
    }
    model.sampling = mode
    sums, chosen, own = losses_and_gradients(
        model, x, detection_reference.targets(), lambda: list(samples)
    )
    for name, official in LOSSES.items():
        np.testing.assert_allclose(sums[name], losses[official], rtol=1e-5, err_msg=name)
    assert len(sums) == len(LOSSES)
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
