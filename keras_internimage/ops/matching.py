"""Which object each box is to find, and which boxes a step of training looks at."""

import keras
from keras import ops

from keras_internimage.ops.boxes import iou

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


def match_in_turn(
    boxes, objects, valid, inside, positive: float, negative: float, low_quality: float
):
    """`match` of the same boxes in every image, one object after the other, for less memory.

    The overlaps of a large image's anchors with a hundred objects would take some 100 MB each time
    they are touched. Here it is one number for each box, whatever the number of objects.

    Args:
        boxes: `(K, 4)`.
        objects: `(N, G, 4)`.
        valid: `(N, G)`.
        inside: `(N, K)`, which boxes count; the others are `IGNORED`, and no object's best.
        positive, negative, low_quality: as for `match`.

    Returns:
        As `match`.
    """
    boxes, objects = ops.stop_gradient(boxes), ops.stop_gradient(objects)

    def look_at(g, state):
        best, chosen, last = state
        here = ops.take(objects, g, axis=1)
        there = ops.take(valid, g, axis=1)[:, None]
        overlap = ops.where(there & inside, iou(here[:, None], boxes)[:, 0], -1)
        best_of_object = ops.max(overlap, axis=1, keepdims=True)
        equal = (overlap == best_of_object) & (best_of_object >= low_quality)
        better = overlap > best
        return (
            ops.where(better, overlap, best),
            ops.where(better, g, chosen),
            ops.where(equal, g, last),
        )

    best = ops.full_like(inside, -1, dtype="float32")
    none = ops.full_like(inside, BACKGROUND, dtype="int32")
    count = ops.shape(objects)[1]
    best, chosen, last = ops.fori_loop(0, count, look_at, (best, none, none))
    matched = ops.where(best >= positive, chosen, ops.where(best < negative, BACKGROUND, IGNORED))
    return ops.where(inside, ops.where(last >= 0, last, matched), IGNORED)


def sample(matched, count: int, positives: int, priorities):
    """A fixed number of boxes of each image: objects' boxes up to a number, then background.

    Args:
        matched: `(N, K)` of `match`.
        count: number of samples.
        positives: how many of them may be of objects, at most; what is missing is background.
        priorities: `(N, K)`: of more boxes than places those with the smallest get in. Random
            numbers for training; their seed alone decides.

    Returns:
        `(indices (N, count), positive (N, count), valid (N, count))`: objects' boxes in order of
        their indices, then background in that order; `valid` is false for the places that are
        left over.
    """
    number = ops.shape(matched)[1]
    if not isinstance(number, int) or number < count:
        # There may be fewer boxes than places.
        matched = ops.pad(matched, ((0, 0), (0, count)), constant_values=IGNORED)
        priorities = ops.pad(priorities, ((0, 0), (0, count)))
    total = ops.shape(matched)[1]
    own, is_positive = _first(matched >= 0, min(positives, count), priorities)
    taken = ops.sum(ops.cast(is_positive, "int32"), axis=1, keepdims=True)
    background, is_negative = _first(matched == BACKGROUND, count, priorities)
    place = ops.arange(count, dtype="int32")[None]
    is_negative = is_negative & (place < count - taken)
    # Sorted by this number: positives by index, negatives by index, what is left over.
    order = ops.concatenate(
        [
            ops.where(is_positive, own, 2 * total),
            ops.where(is_negative, background + total, 2 * total),
        ],
        axis=1,
    )
    order = ops.sort(order, axis=1)[:, :count]
    positive, valid = order < total, order < 2 * total
    indices = ops.where(positive, order, ops.where(valid, order - total, 0))
    return indices, positive, valid


def _first(among, count, priorities):
    """The indices of the `count` smallest priorities of some boxes, and whether there is one."""
    dtype = keras.backend.standardize_dtype(priorities.dtype)
    lowest = ops.cast(-float("inf"), dtype)
    value, index = ops.top_k(ops.where(among, -priorities, lowest), count)
    return ops.cast(index, "int32"), value > lowest
