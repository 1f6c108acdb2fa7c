"""RoIAlign and suppression in TensorFlow: custom operations, and their gradients' registration."""

from typing import Any

import numpy as np
import tensorflow as tf

_loaded: dict[str, Any] = {}


def register(operations):
    """Takes the loaded operations and registers their gradients, once."""
    _loaded["operations"] = operations
    tf.RegisterGradient("KerasInternimageRoiAlign")(_gradient)
    tf.RegisterGradient("KerasInternimageRoiAlignBackward")(_gradient_of_gradient)
    tf.no_gradient("KerasInternimageNms")


def roi_align(maps, boxes, levels, strides, bins):
    """See `keras_internimage.ops.roi_align`; tensors are of the types that the kernels take."""
    return _align(maps, boxes, levels, [part for s in strides for part in _parts(s)], bins)


def nms(boxes, scores, classes, threshold, count):
    """See `keras_internimage.ops.boxes.nms`, likewise."""
    return tuple(
        _loaded["operations"].keras_internimage_nms(
            boxes=boxes, scores=scores, classes=classes, threshold=_parts(threshold), count=count
        )
    )


def _parts(number):
    """Two floats whose sum is a double; TensorFlow's attributes are single precision."""
    high = float(np.float32(number))
    return [high, float(number) - high]


def _align(maps, boxes, levels, strides, bins):
    return _loaded["operations"].keras_internimage_roi_align(
        maps=maps, boxes=boxes, levels=levels, strides=strides, bins=bins
    )


def _gradient(op, upstream):
    *maps, boxes, levels = op.inputs
    grads = _loaded["operations"].keras_internimage_roi_align_backward(
        grad_output=upstream,
        boxes=boxes,
        levels=levels,
        shapes=[tf.shape(x) for x in maps],
        strides=op.get_attr("strides"),
        bins=op.get_attr("bins"),
    )
    return [*grads, None, None]


def _gradient_of_gradient(op, *upstreams):
    # The gradient is linear in `grad_output`: its transposed is RoIAlign.
    _, boxes, levels, *shapes = op.inputs
    pooled = _align(list(upstreams), boxes, levels, op.get_attr("strides"), op.get_attr("bins"))
    return [pooled, None, None, *[None] * len(shapes)]
