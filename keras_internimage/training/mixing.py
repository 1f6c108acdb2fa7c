"""MixUp and CutMix of a batch: each image with another, and their labels with the same weights.

Written for NumPy, because batches are made in threads beside the training: Keras' layers would take
a device there, and their random state allows one call at a time.
"""

import numpy as np


def mixup(
    images: np.ndarray, labels: np.ndarray, alpha: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`w x + (1 - w) x'` of images and labels, `x'` being another of the batch.

    Each image has a partner and a weight of its own; w is Beta(alpha, alpha).

    Args:
        images: `(N, H, W, 3)`, float32.
        labels: `(N, K)`, float32.
        alpha: positive.
        random: what weights and partners are drawn from.

    Returns:
        New arrays of the same shapes and types.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    """
    partners = random.permutation(len(images))
    weights = random.beta(alpha, alpha, len(images)).astype("float32")
    mixed = np.empty_like(images)
    for index, (partner, weight) in enumerate(zip(partners, weights, strict=True)):
        np.multiply(images[index], weight, out=mixed[index])
        mixed[index] += images[partner] * (1 - weight)
    return mixed, _mixed_labels(labels, partners, weights)


def cutmix(
    images: np.ndarray, labels: np.ndarray, alpha: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A rectangle of each image is that of another; the labels are mixed by the areas.

    The rectangle has the image's proportions and the share `1 - w` of its area, `w` being
    Beta(alpha, alpha). It lies anywhere within the image, so that `w` keeps its distribution; the
    paper's may reach over the edge and is cut off there.

    Args:
        images, labels, alpha, random: as for `mixup`.

    Returns:
        New arrays of the same shapes and types.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features", 2019.
    """
    count, height, width = images.shape[:3]
    partners = random.permutation(count)
    sides = np.sqrt(1 - random.beta(alpha, alpha, count))
    mixed, weights = images.copy(), np.empty(count, "float32")
    for index, (partner, side) in enumerate(zip(partners, sides, strict=True)):
        rows, columns = _span(height, side, random), _span(width, side, random)
        mixed[index, rows, columns] = images[partner, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        weights[index] = 1 - area / (height * width)
    return mixed, _mixed_labels(labels, partners, weights)


def _span(length, share, random):
    """A slice of `share` of a length, at a random place."""
    size = round(length * share)
    start = random.integers(length - size + 1)
    return slice(start, start + size)


def _mixed_labels(labels, partners, weights):
    weights = weights[:, None]
    return weights * labels + (1 - weights) * labels[partners]
