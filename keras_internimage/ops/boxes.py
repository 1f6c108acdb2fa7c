"""Boxes: overlap, deltas, and the choice among boxes that overlap.

All are `(..., 4)`, left, top, right, bottom in pixels, continuous: a side is `right - left`.
"""

import math

import keras
from keras import ops

from keras_internimage.ops import dispatch, tracing

# Deltas of sizes are clipped to this: a box is at most 62.5 times as large as its anchor.
MAX_RATIO = abs(math.log(16 / 1000))


def iou(boxes, others):
    """Intersection over union of all pairs.

    `keras.utils.bounding_boxes.compute_iou` adds a small number to the union, which moves what
    lies at a threshold; here it is exact up to rounding.

    Args:
        boxes: `(..., M, 4)`.
        others: `(..., K, 4)`.

    Returns:
        A tensor `(..., M, K)`; 0 where the union is empty.
    """
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    sides = ops.minimum(boxes[..., 2:], others[..., 2:])
    sides = ops.maximum(sides - ops.maximum(boxes[..., :2], others[..., :2]), 0)
    shared = sides[..., 0] * sides[..., 1]
    union = area(boxes) + area(others) - shared
    return _fraction(shared, union)


def generalized_iou(boxes, others):
    """Generalized intersection over union of boxes in pairs.

    ```
    GIoU = IoU - (area around both - union) / area around both
    ```

    The area is that of the smallest box that both lie in; GIoU is between -1 and 1. Where boxes
    have no extent, a fraction with nothing below is 0.

    Args:
        boxes, others: `(..., 4)`.

    Returns:
        A tensor `(...)`.

    Source: [Generalized Intersection over Union](https://arxiv.org/abs/1902.09630).
    """
    low, high = (
        ops.maximum(boxes[..., :2], others[..., :2]),
        ops.minimum(boxes[..., 2:], others[..., 2:]),
    )
    sides = ops.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = area(boxes) + area(others) - shared
    low, high = (
        ops.minimum(boxes[..., :2], others[..., :2]),
        ops.maximum(boxes[..., 2:], others[..., 2:]),
    )
    around = (high[..., 0] - low[..., 0]) * (high[..., 1] - low[..., 1])
    return _fraction(shared, union) - _fraction(around - union, around)


def _fraction(above, below):
    return ops.where(below > 0, above / ops.where(below > 0, below, 1), 0)


def area(boxes):
    """Areas `(...)` of boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def decode(anchors, deltas, deviations=(1.0, 1.0, 1.0, 1.0)):
    """Boxes from deltas: a centre moves by parts of the anchor's size, a size by a factor.

    ```
    centre = anchor's centre + (dx, dy) size,  size = anchor's size exp(clip(dw, dh))
    ```

    with the deltas times `deviations`, and `dw` and `dh` within +-`MAX_RATIO`.

    Args:
        anchors: `(..., 4)`.
        deltas: `(..., 4)`.
        deviations: four numbers.
    """
    deltas = deltas * ops.convert_to_tensor(deviations, deltas.dtype)
    sizes = ops.clip(deltas[..., 2:], -MAX_RATIO, MAX_RATIO)
    return keras.utils.bounding_boxes.decode_deltas_to_boxes(
        anchors,
        ops.concatenate([deltas[..., :2], sizes], axis=-1),
        anchor_format="xyxy",
        box_format="xyxy",
        encoded_format="center_xywh",
    )


def encode(anchors, boxes, deviations=(1.0, 1.0, 1.0, 1.0)):
    """The deltas of which `decode` makes boxes, where it does not clip."""
    return keras.utils.bounding_boxes.encode_box_to_deltas(
        anchors,
        boxes,
        anchor_format="xyxy",
        box_format="xyxy",
        encoding_format="center_xywh",
        variance=deviations,
    )


def clip(boxes, sizes):
    """Boxes cut at the border of their image.

    Args:
        boxes: `(N, ..., 4)`.
        sizes: `(N, 2)`, heights and widths.
    """
    sizes = ops.reshape(sizes, (-1, *(1,) * (len(boxes.shape) - 2), 2))
    limits = ops.take(sizes, ops.convert_to_tensor([1, 0, 1, 0], "int32"), axis=-1)
    return ops.minimum(ops.maximum(boxes, 0), ops.cast(limits, boxes.dtype))


def nms(boxes, scores, classes, threshold: float, count: int, implementation: str | None = None):
    """Greedy non-maximum suppression within classes, with a fixed number of results.

    The best box is taken, those of its class whose overlap with it is greater than `threshold`
    are dropped, and so on. That is exact for any number of boxes and classes: of the backends'
    own functions, JAX has none, PyTorch's belongs to another package, and TensorFlow's takes
    one image of one class. Classes are compared, not shifted apart, which costs digits.

    Args:
        boxes: `(N, K, 4)`.
        scores: `(N, K)`, minus infinity for boxes that do not count.
        classes: `(N, K)` ints.
        threshold: of the overlap.
        count: number of results.
        implementation: None for the native kernel where it can run, on processors, "native" or
            "portable".

    Returns:
        `(indices, valid)`, both `(N, count)`: which boxes, the best first, and whether there is
        one. Of equal scores the first comes first. No gradient flows through them.
    """
    if tracing.for_onnx():
        from keras_internimage.ops import onnx_operators

        return onnx_operators.nms(boxes, scores, classes, threshold, count)
    if tracing.for_program():
        from keras_internimage.ops import program_torch

        return program_torch.nms(boxes, scores, classes, threshold, count)
    boxes, scores = ops.stop_gradient(boxes), ops.stop_gradient(scores)
    kernels = dispatch.native_kernels("nms", boxes, implementation)
    if kernels is not None and _of_kernels(boxes, scores):
        return kernels.nms(boxes, scores, ops.cast(classes, "int32"), threshold, count)
    number = ops.shape(boxes)[1]
    places = ops.arange(number, dtype="int32")[None]
    results = ops.arange(count, dtype="int32")[None]
    nothing = ops.cast(-math.inf, scores.dtype)

    def take_best(k, state):
        scores, indices, valid = state
        best = argmax(scores)[:, None]
        exists = ops.take_along_axis(scores, best, axis=1) > nothing
        box = ops.take_along_axis(boxes, best[..., None], axis=1)
        overlap = iou(box, boxes)[:, 0]
        same = classes == ops.take_along_axis(classes, best, axis=1)
        dropped = ((overlap > threshold) & same) | (places == best)
        here = results == k
        return (
            ops.where(dropped, nothing, scores),
            ops.where(here, best, indices),
            ops.where(here, exists, valid),
        )

    none = ops.zeros_like(boxes[:, :1, 0], dtype="int32") + ops.zeros_like(results)
    state = (scores, none, none > 0)
    _, indices, valid = ops.fori_loop(0, count, take_best, state)
    return indices, valid


def argmax(scores):
    """Where along the last axis the first of the largest scores is, int32."""
    if keras.backend.backend() != "tensorflow" or isinstance(scores, keras.KerasTensor):
        return ops.cast(ops.argmax(scores, axis=-1), "int32")
    # Keras' own also tells zeros by their sign, in operations on bits that LiteRT does not have.
    import tensorflow as tf

    return tf.argmax(scores, axis=-1, output_type="int32")


def _of_kernels(boxes, scores):
    """Whether the kernel knows the type of these."""
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in (boxes, scores)}
    return dtypes in ({"float32"}, {"float64"})


def anchors(size, stride: int, scale: float = 8.0, ratios=(0.5, 1.0, 2.0)):
    """Boxes of several shapes around each cell's top left corner.

    Cell `(y, x)` has its boxes' centre at `(stride x, stride y)`; a box of ratio `r` is
    `scale stride / sqrt(r)` wide and `scale stride sqrt(r)` high.

    Args:
        size: height and width of the feature map, ints or what `keras.ops.shape` gives.
        stride: pixels of the image in one of the map.
        scale: side of a square box in cells.
        ratios: heights divided by widths.

    Returns:
        A float32 tensor `(H W len(ratios), 4)`, ordered by row, column, ratio.
    """
    half = [(scale * stride / math.sqrt(r) / 2, scale * stride * math.sqrt(r) / 2) for r in ratios]
    base = ops.convert_to_tensor([(-w, -h, w, h) for w, h in half], "float32")
    rows, columns = (ops.arange(n, dtype="int32") * stride for n in size)
    y, x = ops.meshgrid(rows, columns, indexing="ij")
    corners = ops.cast(ops.stack([x, y, x, y], axis=-1), "float32")
    return ops.reshape(corners[:, :, None] + base, (-1, 4))
