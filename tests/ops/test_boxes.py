"""Anchors, deltas, overlap and suppression are what their definitions say."""

import math

import detection_oracle
import keras
import numpy as np
import pytest
from keras import ops

from keras_internimage.ops import boxes as box_ops


def as_array(x):
    return ops.convert_to_numpy(x)


def some_boxes(count, seed=0, side=100.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, side / 2, (count, 2))], 1).astype("f")


def test_anchors():
    """Around the upper left corner of each cell; ratios are heights to widths."""
    found = as_array(box_ops.anchors((2, 3), 16))
    assert found.shape == (18, 4) and found.dtype == "float32"
    np.testing.assert_allclose(
        (found[:, :2] + found[:, 2:]) / 2,
        found[:, :2] * 0 + np.repeat([[0, 0], [16, 0], [32, 0], [0, 16], [16, 16], [32, 16]], 3, 0),
        atol=1e-4,
    )
    sides = found[:, 2:] - found[:, :2]
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], np.tile([0.5, 1, 2], 6), rtol=1e-5)
    np.testing.assert_allclose(sides.prod(1), 128**2, rtol=1e-5)


def test_deltas():
    rng = np.random.default_rng(0)
    anchors = some_boxes(20)
    deltas = rng.normal(size=(2, 20, 4)).astype("f")
    deltas[0, 0, 2:] = 30, -30  # both are clipped
    deviations = (0.1, 0.1, 0.2, 0.5)
    tensors = ops.convert_to_tensor(anchors), ops.convert_to_tensor(deltas)
    found = as_array(box_ops.decode(*tensors, deviations))
    for n, k in np.ndindex(2, 20):
        moved = deltas[n, k].astype(float) * deviations
        expected = detection_oracle.decode(anchors[k].astype(float), moved)
        np.testing.assert_allclose(found[n, k], expected, rtol=2e-5, atol=2e-4)
    back = as_array(box_ops.encode(tensors[0], ops.convert_to_tensor(found), deviations))
    np.testing.assert_allclose(back[1], deltas[1], rtol=1e-3, atol=1e-3)


def test_overlap():
    boxes, others = some_boxes(9, 1), some_boxes(7, 2)
    boxes[0] = others[0]
    boxes[1, 2:] = boxes[1, :2]  # without extent
    others[1] = boxes[1]
    found = as_array(box_ops.iou(*map(ops.convert_to_tensor, (boxes[None], others[None]))))[0]
    assert found.shape == (9, 7) and found[0, 0] == 1 and found[1, 1] == 0
    for i, j in np.ndindex(9, 7):
        expected = detection_oracle.iou(boxes[i].astype(float), others[j].astype(float))
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-5, atol=1e-6)


def test_generalized_overlap():
    """In pairs: the same, apart, inside, and without extent, where nothing is divided by zero."""
    boxes = np.array([[1, 2, 5, 4], [0, 0, 2, 2], [0, 0, 4, 4], [3, 3, 3, 3], [0, 0, 2, 2]], "f")
    others = np.array([[1, 2, 5, 4], [4, 0, 6, 2], [1, 1, 3, 3], [3, 3, 3, 3], [1, 1, 3, 3]], "f")
    expected = [1, 0 - (12 - 8) / 12, 4 / 16, 0, 1 / 7 - (9 - 7) / 9]
    pair = map(ops.convert_to_tensor, (boxes[None], others[None]))
    found = as_array(box_ops.generalized_iou(*pair))
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_clip():
    boxes = np.array([[[-3, -4, 50, 60]], [[-3, 5, 20, 30]]], "f")
    found = as_array(
        box_ops.clip(*map(ops.convert_to_tensor, (boxes, np.array([[40, 30], [25, 90]]))))
    )
    np.testing.assert_array_equal(found, [[[0, 0, 30, 40]], [[0, 5, 20, 25]]])


@pytest.mark.parametrize("count", [5, 200])
def test_suppression(count, implementation):
    """Two images, three classes, some boxes that do not count; more results than there are."""
    rng = np.random.default_rng(0)
    boxes = np.stack([some_boxes(150, 1, 60), some_boxes(150, 2, 60)])
    scores = rng.permuted(np.tile(np.arange(150, dtype="f"), (2, 1)), axis=1)
    scores[:, ::10] = -math.inf
    classes = rng.integers(0, 3, (2, 150)).astype("int32")
    tensors = [ops.convert_to_tensor(x) for x in (boxes, scores, classes)]
    index, valid = (as_array(x) for x in box_ops.nms(*tensors, 0.3, count))
    assert index.shape == valid.shape == (2, count)
    for n in range(2):
        expected = detection_oracle.nms(boxes[n].astype(float), scores[n], classes[n], 0.3)
        assert 20 < len(expected) < 120
        assert index[n][valid[n]].tolist() == expected[:count]
        assert valid[n].sum() == min(count, len(expected))


def test_the_threshold_itself_is_kept(implementation):
    """Overlap of exactly the threshold, and equal boxes of which the first is kept."""
    boxes = np.array([[[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 1], [3, 3, 3, 3]]], "f")
    scores = np.array([[2, 1, 2, 0]], "f")
    tensors = [ops.convert_to_tensor(x) for x in (boxes, scores, np.zeros((1, 4), "int32"))]
    index, valid = (as_array(x)[0] for x in box_ops.nms(*tensors, 0.5, 4))
    assert index[valid].tolist() == [0, 1, 3]
    index, valid = (as_array(x)[0] for x in box_ops.nms(*tensors, 0.49, 4))
    assert index[valid].tolist() == [0, 3]


@pytest.mark.skipif(keras.config.backend() == "torch", reason="a loop in Python there")
def test_suppression_compiled():
    boxes, scores = some_boxes(40)[None], np.arange(40, dtype="f")[None]
    arguments = [ops.convert_to_tensor(x) for x in (boxes, scores, np.zeros((1, 40), "int32"))]

    def run(*tensors):
        return box_ops.nms(*tensors, 0.3, 30)

    expected = run(*arguments)
    if keras.config.backend() == "jax":
        import jax

        found = jax.jit(run)(*arguments)
    else:
        import tensorflow as tf

        found = tf.function(run, jit_compile=True)(*arguments)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(as_array(a), as_array(b))
