"""The numbers of a report against scikit-learn's and SciPy's, and by hand."""

import numpy as np
import pytest
import sklearn.metrics
from report import runs
from scipy import stats

from keras_internimage.report import metrics

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(("classes", "number"), [(2, 40), (7, 1), (7, 300), (200, 500)])
def test_against_scikit_learn(classes, number):
    """Also with classes that have no images, or that are never predicted."""
    labels = np.random.default_rng(classes).integers(0, classes, number)
    labels[labels == 1] = 0
    scores = runs.scores_of(labels, classes, 0.6)
    scores[:, classes // 2] *= 1e-9
    predicted = metrics.predictions(scores)
    all_classes = range(classes)
    np.testing.assert_array_equal(
        metrics.confusion(labels, predicted, classes),
        sklearn.metrics.confusion_matrix(labels, predicted, labels=all_classes),
    )
    found = metrics.per_class(labels, predicted, classes)
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=all_classes, zero_division=np.nan
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1, f1)
    np.testing.assert_array_equal(found.support, support)
    assert np.isnan(found.recall[1])
    if classes > 5:
        expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=5, labels=all_classes)
        assert metrics.top_k(labels, scores, 5) == pytest.approx(expected)
    assert metrics.top_k(labels, scores, 1) == pytest.approx((predicted == labels).mean())


def test_top_k_of_equal_scores_agrees_with_the_prediction():
    scores = np.full((3, 3), 1 / 3)
    labels = np.arange(3)
    assert [metrics.top_k(labels, scores, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (7, 10), (950, 1000)])
def test_interval(right, total):
    expected = stats.binomtest(right, total).proportion_ci(method="wilson")
    assert metrics.interval(right, total) == pytest.approx(expected, abs=1e-4)


def test_worst_first():
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    predicted = np.array([0, 0, 1, 0, 0, 0, 0])
    found = metrics.per_class(labels, predicted, 4)
    # Class 2 is never found, 1 in a third of its images, 0 always; 3 has none.
    assert found.worst_first().tolist() == [2, 1, 0, 3]


def test_confused_pairs():
    counts = np.array([[90, 2, 0], [3, 5, 2], [0, 1, 9]])
    # 2 of class 1's 10 images are a larger share than 2 of class 0's 92.
    expected = [(1, 0, 3), (1, 2, 2), (0, 1, 2), (2, 1, 1)]
    assert metrics.confused_pairs(counts, 10) == expected
    assert metrics.confused_pairs(counts, 2) == expected[:2]
    assert metrics.confused_pairs(np.diag([3, 4]), 5) == []


def test_worst_mistakes():
    labels = np.array([0, 0, 1, 2, 1])
    scores = np.array(
        [[0.9, 0.1, 0.0], [0.1, 0.6, 0.3], [0.8, 0.1, 0.1], [0.0, 0.8, 0.2], [0.8, 0.0, 0.2]]
    )
    # The same confidence in three: the smaller probability of the true class is worse.
    assert metrics.worst_mistakes(labels, scores).tolist() == [4, 2, 3, 1]


def test_scores_that_are_not_finite_are_wrong_and_in_no_matrix():
    labels = np.array([0, 0, 1])
    scores = np.array([[np.nan, np.nan], [0.9, 0.1], [np.inf, 0.0]])
    predicted = metrics.predictions(scores)
    assert predicted.tolist() == [metrics.UNKNOWN, 0, metrics.UNKNOWN]
    assert metrics.confusion(labels, predicted, 2).tolist() == [[1, 0], [0, 0]]
    found = metrics.per_class(labels, predicted, 2)
    assert found.recall.tolist() == [0.5, 0.0]
    assert metrics.top_k(labels, scores, 2) == pytest.approx(1 / 3)
    assert metrics.worst_mistakes(labels, scores).tolist() == []
    assert metrics.calibration(labels, scores) == pytest.approx((0.9, 1.0, 0.1))


def test_calibration():
    labels = np.zeros(4, int)
    scores = np.array([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.45, 0.55]])
    # Bins of a fifteenth: 1.0 alone is right; of the two 0.9 one is right; 0.55 is wrong.
    confidence, accuracy, error = metrics.calibration(labels, scores)
    assert confidence == pytest.approx(np.mean([1.0, 0.9, 0.9, 0.55]))
    assert accuracy == 0.5
    assert error == pytest.approx((0 + 2 * abs(0.5 - 0.9) + 0.55) / 4)


def test_best_epoch():
    nan = np.nan
    assert metrics.best_epoch({"val_accuracy": [nan, 0.5, 0.8, 0.8]}) == (3, "val_accuracy", 0.8)
    history = {"val_accuracy": [nan, nan], "val_loss": [2.0, 1.0], "accuracy": [1.0, 0.0]}
    assert metrics.best_epoch(history) == (2, "val_loss", 1.0)
    assert metrics.best_epoch({"loss": [nan, np.inf]}) is None
    assert metrics.best_epoch({}) is None


def test_of_equally_accurate_epochs_the_one_of_least_loss_is_best():
    history = {"val_accuracy": [0.5, 0.75, 0.75, 0.75], "val_loss": [0.1, 0.6, 0.4, 0.4]}
    assert metrics.best_epoch(history) == (3, "val_accuracy", 0.75)
    assert metrics.best_epoch({"val_accuracy": [0.5, 0.75, 0.75]})[0] == 2
    history["val_loss"][2] = float("nan")
    assert metrics.best_epoch(history)[0] == 4
