"""From what the heads say of anchors and regions to proposals and detections."""

import math

from keras import ops

from keras_internimage.ops import boxes as box_ops


def select_proposals(logits, deltas, anchors, sizes, before: int, count: int, threshold: float):
    """The regions that objects may lie in: the best anchors, moved, without near duplicates.

    Of each level the `before` best; boxes are clipped to the image and those without extent
    dropped; suppression within each level; of all that remain the `count` best.

    Args:
        logits: list of `(N, M)`, one for each level.
        deltas: list of `(N, M, 4)`.
        anchors: list of `(M, 4)`.
        sizes: `(N, 2)`, heights and widths of the images without padding.
        before: number of anchors of each level.
        count: number of proposals.
        threshold: of the overlap, above which the worse one is dropped.

    Returns:
        `(boxes (N, count, 4), logits (N, count), valid (N, count))`, the best first. Where there
        are fewer, boxes are zero, logits minus infinity, and `valid` is false.
    """
    nothing = -math.inf
    best: list[list] = [[], [], [], []]
    for level, (of_level, moves, base) in enumerate(zip(logits, deltas, anchors, strict=True)):
        of_level, index = _best(ops.stop_gradient(of_level), before)
        best[0].append(of_level)
        best[1].append(ops.take_along_axis(ops.stop_gradient(moves), index[..., None], axis=1))
        best[2].append(ops.take(base, index, axis=0))
        best[3].append(ops.full_like(index, level, dtype="int32"))
    # The rest for all levels at once: what is traced for each level takes its time in each.
    scores, moves, bases, levels = (ops.concatenate(x, axis=1) for x in best)
    boxes = box_ops.clip(box_ops.decode(bases, moves), sizes)
    extent = ops.min(boxes[..., 2:] - boxes[..., :2], axis=-1) > 0
    scores = ops.where(extent, scores, nothing)
    index, valid = box_ops.nms(boxes, scores, levels, threshold, count)
    boxes = ops.take_along_axis(boxes, index[..., None], axis=1)
    scores = ops.take_along_axis(scores, index, axis=1)
    return ops.where(valid[..., None], boxes, 0), ops.where(valid, scores, nothing), valid


def _best(scores, count):
    """The `count` best scores, or all of fewer, and their indices; the number is static."""
    number = scores.shape[1]
    # While PyTorch traces for unknown sizes, it is a symbol.
    known = isinstance(number, int)
    if known and number <= count:
        count = number
    if not known:  # there may be fewer: more that are worse than any
        missing = ops.full_like(scores[:, :1], -math.inf)
        scores = ops.concatenate([scores, ops.repeat(missing, count, axis=1)], axis=1)
        last = ops.shape(scores)[1] - count - 1
        scores, index = ops.top_k(scores, count)
        return scores, ops.minimum(ops.cast(index, "int32"), last)
    scores, index = ops.top_k(scores, count)
    return scores, ops.cast(index, "int32")


def select_detections(
    boxes, probabilities, valid, count: int, score_threshold: float, nms_threshold: float
):
    """The best boxes of all classes, without those that overlap with a better one of their class.

    A region may be detected as several classes.

    Args:
        boxes: `(N, R, classes, 4)`.
        probabilities: `(N, R, classes)`.
        valid: `(N, R)`, which regions there are.
        count: number of detections.
        score_threshold: probabilities have to be greater.
        nms_threshold: of the overlap, above which the worse one is dropped.

    Returns:
        `(boxes (N, count, 4), scores (N, count), labels (N, count), valid (N, count))`, the best
        first; without a meaning where `valid` is false.
    """
    regions, classes = ops.shape(probabilities)[1:]
    counts = (probabilities > score_threshold) & valid[..., None]
    scores = ops.reshape(ops.where(counts, probabilities, -math.inf), (-1, regions * classes))
    boxes = ops.reshape(boxes, (-1, regions * classes, 4))
    labels = ops.tile(ops.arange(classes, dtype="int32")[None], (1, regions))
    labels = labels + ops.zeros_like(scores, dtype="int32")
    index, found = box_ops.nms(boxes, scores, labels, nms_threshold, count)
    return (
        ops.take_along_axis(boxes, index[..., None], axis=1),
        ops.take_along_axis(scores, index, axis=1),
        ops.take_along_axis(labels, index, axis=1),
        found,
    )
