"""Mask R-CNN: the official numbers, any size of image, box formats, and what is refused."""

import keras
import numpy as np
import pytest
import small_models
from keras import ops
from models import detection_reference, reference

import keras_internimage
from keras_internimage.layers.detection.regions import region_levels
from keras_internimage.models.detection import MaskRCNN, paste_masks
from keras_internimage.models.detection.mask_rcnn import pad

PARAMETERS = {"T": 48_920_544, "S": 68_715_024, "B": 115_245_264}


class Stages(MaskRCNN):
    """A model that returns what is between its parts, too, so that all of it is compiled once."""

    def call(self, inputs, training=None):
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
        own = self.own_masks(maps, inputs["boxes"], labels)
        keys = ("images", "image_sizes", "original_sizes")
        return {
            "backbone": [ops.mean(x, (1, 2)) for x in features],
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
            "detected": self.detect(proposals, there, logits, deltas, sizes, ones),
            "all": super().call({key: inputs[key] for key in keys}),
        }


@pytest.fixture(scope="module")
def stored():
    return detection_reference.numbers()


@pytest.fixture(scope="module")
def found(stored):
    """What the model and its parts give for the reference's input, without the batch."""
    model = detection_reference.fill(Stages("T"))
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
    outputs = reference.call(model, inputs)
    return keras.tree.map_structure(lambda x: ops.convert_to_numpy(x)[0], outputs)


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def nearest(boxes, others):
    """The largest distance of a box from the nearest of the others, both ways."""
    distance = abs(boxes[:, None] - others[None]).max(-1)
    return max(distance.min(0).max(), distance.min(1).max())


def test_backbone_and_pyramid(stored, found):
    for k, mean in enumerate(found["backbone"]):
        close(mean, stored[f"backbone{k}_mean"], 5e-5)
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
