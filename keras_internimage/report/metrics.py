"""The numbers of a report, in NumPy. Undefined ones are NaN."""

import dataclasses

import numpy as np

SCORES = ("accuracy", "logits_mean_iou", "box_ap")  # keys of the history: the higher, the better
UNKNOWN = -1  # the prediction where no score of an image is finite


def predictions(scores):
    """The class of the highest score of each row, `(N,)`; UNKNOWN where a score is not finite."""
    best = np.argmax(np.nan_to_num(scores, nan=-np.inf), axis=-1)
    return np.where(np.isfinite(scores).all(-1), best, UNKNOWN)


def confusion(labels, predicted, classes):
    """Counts `(classes, classes)`: rows are true classes, columns predicted ones."""
    counts = np.zeros((classes, classes), np.int64)
    known = predicted != UNKNOWN
    np.add.at(counts, (labels[known], predicted[known]), 1)
    return counts


def shares(counts):
    """Counts of `confusion` over their row's sum: of each true class. 0 in rows without images."""
    total = counts.sum(1, keepdims=True)
    return np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)


@dataclasses.dataclass(frozen=True)
class PerClass:
    """Arrays `(classes,)`. Right, of those predicted; right, of those there; both; images."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray

    def worst_first(self):
        """Class indices by F1, then recall; of equal ones the larger first; those without images
        last."""
        f1, recall = np.nan_to_num(self.f1), np.nan_to_num(self.recall)
        return np.lexsort((-self.support, recall, f1, self.support == 0))


def per_class(labels, predicted, classes):
    """Precision `tp / (tp + fp)`, recall `tp / (tp + fn)`, F1 `2 tp / (2 tp + fp + fn)`."""
    counts = confusion(labels, predicted, classes)
    support = np.bincount(labels, minlength=classes)
    right, named = np.diag(counts), counts.sum(0)
    return PerClass(
        _ratio(right, named), _ratio(right, support), _ratio(2 * right, named + support), support
    )


def rank(labels, scores):
    """How many scores are higher than that of each image's true class, `(N,)`.

    Of equal scores the class with the lower index counts as higher, as in `predictions`. Where a
    score is not finite, it is the number of classes.
    """
    true = scores[np.arange(len(labels)), labels][:, None]
    lower_index = np.arange(scores.shape[1]) < labels[:, None]
    higher = ((scores > true) | ((scores == true) & lower_index)).sum(-1)
    return np.where(np.isfinite(scores).all(-1), higher, scores.shape[1])


def top_k(labels, scores, k):
    """The share of images whose true class is among the k highest scores.

    Of equal scores the class with the lower index counts as higher, as in `predictions`.
    """
    if not len(labels):
        return np.nan
    k = min(k, scores.shape[1])  # images without finite scores are never right
    return float((rank(labels, scores) < k).mean())


def interval(right, total, z=1.96):
    """Wilson's 95 % interval of a share `right / total`, in [0, 1].

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927).
    """
    if not total:
        return np.nan, np.nan
    share, square = right / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * np.sqrt(share * (1 - share) / total + square / total / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def confused_pairs(counts, most):
    """`(true, predicted, images)` of the largest entries off the diagonal, largest first.

    Of equal counts, the larger share of the true class comes first.
    """
    errors = counts * ~np.eye(len(counts), dtype=bool)
    true, predicted = np.nonzero(errors)
    images = errors[true, predicted]
    share = images / counts.sum(1)[true]
    order = np.lexsort((predicted, true, -share, -images))[:most]
    return [(int(true[i]), int(predicted[i]), int(images[i])) for i in order]


def worst_mistakes(labels, scores):
    """Indices of all misclassified images: the most confidently wrong first.

    Sorted by the probability of the predicted class, falling, then by that of the true class,
    rising. Images whose scores are not finite are left out: there is no confidence to sort by.
    """
    predicted = predictions(scores)
    wrong = np.flatnonzero((predicted != labels) & (predicted != UNKNOWN))
    confidence = scores[wrong, predicted[wrong]]
    return wrong[np.lexsort((wrong, scores[wrong, labels[wrong]], -confidence))]


def calibration(labels, scores, bins=15):
    """`(mean confidence, accuracy, expected calibration error)` of images with finite scores.

    The error is the mean of |accuracy - confidence| over bins of equal width of the confidence,
    weighted by the images of each.

    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017, equation 3.
    """
    predicted = predictions(scores)
    known = predicted != UNKNOWN
    if not known.any():
        return np.nan, np.nan, np.nan
    confidence = scores[known].max(-1)
    right = (predicted == labels)[known]
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=right - confidence, minlength=bins)
    return confidence.mean(), right.mean(), np.abs(gaps).sum() / len(right)


def best_epoch(history):
    """`(epoch from 1, key, value)` of the highest validation accuracy, mIoU or AP of boxes.

    Of equally accurate epochs it is the one of the lowest validation loss, then the first. Without
    accuracies, of the lowest validation loss, the highest accuracy, the lowest loss. None where
    there is not one finite value.
    """
    for key, sign in (
        *((f"val_{name}", 1) for name in SCORES),
        ("val_loss", -1),
        *((name, 1) for name in SCORES),
        ("loss", -1),
    ):
        values = np.asarray(history.get(key, ()), float)
        if np.isfinite(values).any():
            values_or_worst = np.where(np.isfinite(values), sign * values, -np.inf)
            best = int(np.argmax(values_or_worst))
            losses = np.asarray(history.get("val_loss", ()), float)
            if sign > 0 and key.startswith("val_") and len(losses) == len(values):
                equal = np.flatnonzero(values_or_worst == values_or_worst[best])
                losses = np.where(np.isfinite(losses), losses, np.inf)
                best = int(equal[np.argmin(losses[equal])])
            return best + 1, key, float(values[best])
    return None


def _ratio(part, whole):
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
