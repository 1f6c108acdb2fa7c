"""Classes of unlike sizes: weights for the loss, and orders that show each class as often."""

from collections.abc import Sequence

import numpy as np


def class_weights(labels: Sequence[int], classes: int) -> np.ndarray:
    """Weights by which the loss counts each class as much as any other: `N / (classes * N_c)`.

    Their mean over the images is 1. It is the formula of scikit-learn's "balanced".

    Args:
        labels: the class of each image, from 0.
        classes: number of classes. Each must have an image.

    Returns:
        float32 array `(classes,)`.

    Raises:
        ValueError: a class has no image, or a label is out of range.
    """
    counts = _counts(labels, classes)
    return (counts.sum() / (classes * counts)).astype("float32")


def balanced_order(labels: Sequence[int], classes: int, random: np.random.Generator) -> np.ndarray:
    """Positions of as many images as there are, of which each class has an equal share.

    Images of a large class are drawn without repetition; those of a small one are repeated, each
    as often as the others or once more.

    Args:
        labels: the class of each image, from 0.
        classes: number of classes. Each must have an image.
        random: `numpy.random.Generator`.

    Returns:
        An int array `(len(labels),)` in random order.

    Raises:
        ValueError: a class has no image, or a label is out of range.
    """
    of_image = np.asarray(labels)
    _counts(of_image, classes)
    shares = np.full(classes, len(labels) // classes)
    shares[random.permutation(classes)[: len(labels) % classes]] += 1
    chosen = []
    for label, share in enumerate(shares):
        own = np.flatnonzero(of_image == label)
        whole, rest = divmod(share, len(own))
        chosen += [np.tile(own, whole), random.permutation(own)[:rest]]
    return random.permutation(np.concatenate(chosen))


def _counts(labels, classes):
    labels = np.asarray(labels)
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"`labels` must be in 0..{classes - 1}. Received: "
            + (f"{labels.min()}..{labels.max()}" if len(labels) else "no labels")
        )
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(
            f"Each class must have an image. Received: none of class {int(counts.argmin())}"
        )
    return counts
