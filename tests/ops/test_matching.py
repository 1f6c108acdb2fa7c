"""Matching and sampling: the official choice of anchors, and corner cases."""

import json

import numpy as np
import pytest
from deterministic import MODELS
from keras import ops
from models import detection_reference

from keras_internimage.ops import boxes as box_ops
from keras_internimage.ops.matching import BACKGROUND, IGNORED, match, match_in_turn, sample

NAME = detection_reference.NAME


def as_array(x):
    return ops.convert_to_numpy(x)


def matched(boxes, objects, *arguments):
    overlaps = box_ops.iou(*(ops.convert_to_tensor(x[None]) for x in (boxes, objects)))
    return as_array(match(overlaps, ops.ones((1, len(objects)), "bool"), *arguments))


def official(mode):
    return json.loads((MODELS / f"{NAME}.json").read_text())["training"][mode]["samples"]


@pytest.fixture(scope="module")
def anchors():
    """Of the reference's padded image, 192 x 256 pixels."""
    maps = [((192 + s - 1) // s, (256 + s - 1) // s) for s in (4, 8, 16, 32, 64)]
    made = [box_ops.anchors(size, s) for size, s in zip(maps, (4, 8, 16, 32, 64), strict=True)]
    return as_array(ops.concatenate(made))


@pytest.mark.parametrize(
    "mode", [pytest.param("keep_all", marks=pytest.mark.any_backend), "first_n"]
)
def test_anchors_of_the_official_code(anchors, mode):
    """Two of them tie in exact arithmetic with another one: rounding decides as it does there."""
    found = matched(anchors, detection_reference.objects(), 0.7, 0.3, 0.3)
    count = len(anchors) if mode == "keep_all" else 256
    priorities = ops.arange(len(anchors), dtype="float32")[None]
    index, positive, valid = (
        as_array(x)[0] for x in sample(ops.convert_to_tensor(found), count, count // 2, priorities)
    )
    expected = official(mode)
    assert index[positive].tolist() == expected["rpn_positive_indices"]
    negative = index[valid & ~positive]
    assert len(negative) == expected["rpn_negative"] and (np.diff(negative) > 0).all()
    assert (found[0, negative] == BACKGROUND).all()


def test_thresholds_and_ties():
    overlaps = np.zeros((2, 6, 3), "f")
    overlaps[0, 0, 0], overlaps[0, 1, 0], overlaps[0, 2, 1], overlaps[0, 3, 1] = 0.7, 0.6, 0.4, 0.4
    overlaps[0, 4] = 0.29, 0.4, 0
    overlaps[0, 5] = 0.7, 0.4, 0
    overlaps[1] = 0.9
    valid = np.array([[1, 1, 1], [0, 0, 0]], bool)
    tensors = ops.convert_to_tensor(overlaps), ops.convert_to_tensor(valid)
    found = as_array(match(*tensors, 0.7, 0.3))
    assert found[0].tolist() == [0, IGNORED, IGNORED, IGNORED, IGNORED, 0]
    assert (found[1] == BACKGROUND).all()
    # All that are as good as an object's best one, of the last such object.
    found = as_array(match(*tensors, 0.7, 0.3, 0.3))
    assert found[0].tolist() == [0, IGNORED, 1, 1, 1, 1]
    assert (found[1] == BACKGROUND).all()


def test_in_turn_is_the_same():
    """Of boxes on a grid, many of which tie, with some that do not count."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 9, (60, 2)) * 4.0
    boxes = np.concatenate([corner, corner + rng.integers(1, 6, (60, 2)) * 8], 1).astype("f")
    objects = np.stack([boxes[:5] + 1, boxes[20:25]])
    # Two objects of the same box: the first has boxes that overlap both, the last their best one.
    objects[0, 4] = objects[0, 3]
    boxes[40:44] = objects[0, 3] + np.arange(1, 5)[:, None] * [0, 0, 1, 0]
    valid = np.array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    inside = np.ones((2, 60), bool)
    inside[0, 20:30] = False
    limits = 0.7, 0.3, 0.3
    found = as_array(
        match_in_turn(*map(ops.convert_to_tensor, (boxes, objects, valid, inside)), *limits)
    )
    assert (found[0, 20:30] == IGNORED).all() and (found[1] == BACKGROUND).all()
    overlaps = box_ops.iou(ops.convert_to_tensor(boxes), ops.convert_to_tensor(objects[:1]))
    kept = ops.convert_to_tensor(as_array(overlaps)[:, inside[0]])
    expected = as_array(match(kept, ops.convert_to_tensor(valid[:1]), *limits))
    np.testing.assert_array_equal(found[0, inside[0]], expected[0])
    assert set(found[0]) >= {0, 1, 3, 4, BACKGROUND, IGNORED}


def test_samples():
    """Positives up to their number, the rest background; ignored boxes never; a seed decides."""
    matched = np.full((2, 30), BACKGROUND, "int32")
    matched[0, 5:17], matched[0, 17:20], matched[1, 3] = 2, IGNORED, 0
    rng = np.random.default_rng(0)
    priorities = ops.convert_to_tensor(rng.uniform(size=(2, 30)).astype("f"))
    index, positive, valid = map(
        as_array, sample(ops.convert_to_tensor(matched), 20, 4, priorities)
    )
    assert positive.sum(1).tolist() == [4, 1] and valid.sum(1).tolist() == [19, 20]
    for n in range(2):
        taken = index[n][valid[n]]
        assert len(set(taken)) == len(taken)
        assert (matched[n, index[n][positive[n]]] >= 0).all()
        assert (matched[n, index[n][valid[n] & ~positive[n]]] == BACKGROUND).all()
    wanted = np.argsort(as_array(priorities)[0, 5:17])[:4] + 5
    assert sorted(wanted) == index[0, :4].tolist()
    again = as_array(sample(ops.convert_to_tensor(matched), 20, 4, priorities)[0])
    np.testing.assert_array_equal(again[valid], index[valid])
    index, positive, valid = map(
        as_array, sample(ops.convert_to_tensor(matched), 64, 32, priorities)
    )
    assert index.shape == (2, 64) and valid.sum(1).tolist() == [27, 30]
