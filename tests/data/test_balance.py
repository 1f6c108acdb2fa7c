"""Weights and orders for classes of unlike sizes."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from keras_internimage.data import balanced_order, class_weights

pytestmark = pytest.mark.any_backend

LABELS = np.repeat([0, 1, 2], [109, 4, 30])


def test_weights_are_those_of_scikit_learn():
    weights = class_weights(LABELS, 3)
    assert weights.dtype == np.float32
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1)


def test_an_order_shows_each_class_as_often():
    order = balanced_order(LABELS, 3, np.random.default_rng(0))
    assert len(order) == len(LABELS)
    counts = np.bincount(LABELS[order])
    assert counts.max() - counts.min() <= 1
    seen = np.bincount(order, minlength=len(LABELS))
    for label in range(3):  # within a class, no image more than once more than another
        own = seen[LABELS == label]
        assert own.max() - own.min() <= 1
    assert (order != balanced_order(LABELS, 3, np.random.default_rng(1))).any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0, 2], "none of class 1"), ([0, 3], "Received: 0..3"), ([], "no labels")],
)
def test_refused(labels, message):
    for function in (class_weights, lambda *a: balanced_order(*a, np.random.default_rng(0))):
        with pytest.raises(ValueError, match=message):
            function(labels, 3)
