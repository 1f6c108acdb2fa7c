"""Which object each box is to find, and which boxes a step of training looks at."""

import keras
from keras import ops

# What a box is matched with that finds no object, and one that counts as neither.
BACKGROUND, IGNORED = -1, -2


def match(overlaps, valid, positive: float, negative: float, low_quality: float | None = None):
    """The object of each box by their overlap.

    A box is matched with the object it overlaps most if that is at least `positive`; it is
    background if that is less than `negative`; between them it is ignored. With `low_quality`,
    an object whose best overlap is at least that gets all boxes that have exactly this overlap
    with it, whatever they were; of several such objects the last gets the box.

    Args:
        overlaps: `(N, K, G)` of K boxes with G objects.
        valid: `(N, G)`, which objects there are: none, too, but G is at least 1.
        positive, negative: thresholds of the overlap.
        low_quality: None for no such matches.

    Returns:
        An int32 tensor `(N, K)`, the index of the object, `BACKGROUND` or `IGNORED`.

    Source: `MaxIoUAssigner` of MMDetection, as its configurations of Mask R-CNN use it.
    """
    # Less than any threshold.
    overlaps = ops.where(valid[:, None], overlaps, -1)
    best = ops.max(overlaps, axis=2)
    objects = ops.cast(ops.argmax(overlaps, axis=2), "int32")
    matched = ops.where(best >= positive, objects, ops.where(best < negative, BACKGROUND, IGNORED))
    if low_quality is None:
        return matched
    best_of_object = ops.max(overlaps, axis=1, keepdims=True)
    equal = (overlaps == best_of_object) & (best_of_object >= low_quality)
    number = ops.arange(ops.shape(overlaps)[2], dtype="int32")
    last = ops.max(ops.where(equal, number, -1), axis=2)
    return ops.where(last >= 0, last, matched)


def sample(matched, count: int, positives: int, priorities):
    """A fixed number of boxes of each image: objects' boxes up to a number, then background.

    Args:
        matched: `(N, K)` of `match`.
        count: number of samples.
        positives: how many of them may be of objects, at most; what is missing is background.
        priorities: `(N, K)`: of more boxes than places those with the smallest get in. Random
            numbers for training; their seed alone decides. Of equal ones the first.

    Returns:
        `(indices (N, count), positive (N, count), valid (N, count))`: objects' boxes in order of
        their indices, then background in that order; `valid` is false for the places that are
        left over.
    """
    number = ops.shape(matched)[1]
    is_positive, is_negative = matched >= 0, matched == BACKGROUND
    chosen_positive = is_positive & (_rank(priorities, is_positive) < positives)
    taken = ops.sum(ops.cast(chosen_positive, "int32"), axis=1, keepdims=True)
    chosen_negative = is_negative & (_rank(priorities, is_negative) < count - taken)
    # Sorted by this number: positives by index, negatives by index, all others.
    place = ops.arange(number, dtype="int32")[None]
    order = ops.where(
        chosen_positive, place, ops.where(chosen_negative, place + number, 2 * number)
    )
    order = ops.argsort(order, axis=1)
    if isinstance(number, int) and number < count:
        order = ops.pad(order, ((0, 0), (0, count - number)))
    indices = ops.cast(order[:, :count], "int32")
    places = ops.arange(count, dtype="int32")[None]
    total = taken + ops.sum(ops.cast(chosen_negative, "int32"), axis=1, keepdims=True)
    return indices, places < taken, places < total


def _rank(priorities, among):
    """The place of each in the order of priorities, those outside of `among` last."""
    highest = ops.cast(float("inf"), keras.backend.standardize_dtype(priorities.dtype))
    order = ops.argsort(ops.where(among, priorities, highest), axis=1)
    return ops.cast(ops.argsort(order, axis=1), "int32")
