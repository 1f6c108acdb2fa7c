"""The losses of detectors against their definitions in float64, and what does not count in them."""

import numpy as np
import pytest
from keras import ops
from models import reference

from keras_internimage.models.detection import losses
from keras_internimage.models.detection.assignment import Matching, Sampler, sample_anchors
from keras_internimage.models.detection.targets import Targets

pytestmark = pytest.mark.any_backend

POSITIVE = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
VALID = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32") * 3


def tensors(*arrays):
    return [ops.convert_to_tensor(x) for x in arrays]


def close(found, expected):
    np.testing.assert_allclose(reference.as_array(found), expected, rtol=1e-5)


def test_objectness():
    logits = random(2, 4)
    number = losses.number_of_samples(*tensors(POSITIVE, VALID))
    # An image without objects counts as having one.
    close(number, 2 + 1 + 1 + 4)
    found = losses.objectness_loss(*tensors(logits, POSITIVE, VALID), number)
    probability = 1 / (1 + np.exp(-logits.astype("float64")))
    each = -np.log(np.where(POSITIVE, probability, 1 - probability))
    close(found, each[VALID].sum() / 8)


def test_classes():
    logits, labels = random(2, 4, 3), np.array([[0, 1, 2, 7], [2, 2, 2, 2]], "int32")
    found = losses.class_loss(*tensors(logits, labels, VALID))
    wide = logits.astype("float64")
    each = (
        np.log(np.exp(wide).sum(-1)) - np.take_along_axis(wide, labels[..., None] % 3, -1)[..., 0]
    )
    close(found, each[VALID].mean())
    labels[0, 0] = 4
    assert np.isnan(reference.as_array(losses.class_loss(*tensors(logits, labels, VALID))))
    assert losses.class_loss(*tensors(logits, labels, VALID & False)) == 0


def test_boxes():
    found, wanted = random(2, 4, 4), random(2, 4, 4) + 1
    wanted[~POSITIVE] = np.nan
    difference = abs(found.astype("float64") - wanted)[POSITIVE]
    arrays = tensors(found, wanted, POSITIVE)
    close(losses.l1_loss(*arrays, 7.0), difference.sum() / 7)
    square = np.where(difference < 2, difference**2 / 4, difference - 1)
    close(losses.smooth_l1_loss(*arrays, 7.0, 2.0), square.sum() / 7)


def test_masks():
    logits, labels = random(2, 4, 5, 5, 3), np.array([[2, 0, 3, 3], [3, 3, 3, 3]], "int32")
    targets = (random(2, 4, 5, 5) > 0).astype("float32")
    own = np.stack([logits[0, 0, ..., 2], logits[0, 1, ..., 0]]).astype("float64")
    probability = 1 / (1 + np.exp(-own))
    each = -np.log(np.where(targets[0, :2] > 0, probability, 1 - probability))
    close(losses.mask_loss(*tensors(logits, labels, targets, POSITIVE)), each.mean())
    assert losses.mask_loss(*tensors(logits, labels, targets, POSITIVE & False)) == 0


CELLS = [0, 1, 3, 4, 6, 7]


@pytest.mark.parametrize(
    ("border", "expected"), [(None, CELLS), (3, CELLS), (0, [4, 7]), (-4, [7])]
)
def test_anchors_beyond_the_image(border, expected):
    """Cells of the padding never count, anchors beyond a border not if there is one."""
    # Three rows and columns of cells of 16 pixels; the image is padded to two columns of them.
    y, x = np.mgrid[0:3, 0:3].reshape(2, 9, 1) * 16
    anchors = np.concatenate([x - 2, y - 2, x + 2, y + 2], 1).astype("float32")
    anchors[4:6] = [[2, 2, 20, 20], [1, 1, 30, 30]]
    none = np.zeros((1, 1, 4), "float32")
    targets = Targets(*tensors(none, np.array([[-1]]), np.array([[False]])), None)
    sizes = ops.convert_to_tensor(np.array([[40, 30]], "int32"))
    rule = Matching(0.7, 0.3, 0.3, 9, 4)
    found = sample_anchors(
        [ops.convert_to_tensor(anchors)],
        [(3, 3, 16)],
        targets,
        sizes,
        rule,
        Sampler("first_n", 0),
        border,
    )
    index, valid = (reference.as_array(x)[0] for x in (found.index, found.valid))
    assert index[valid > 0].tolist() == expected
    assert not reference.as_array(found.positive).any()
