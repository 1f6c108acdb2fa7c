"""What the operations of `ops.onnx_operators` are in ONNX.

ONNX Runtime computes both as this package does: its `RoiAlign` has the same samples, also outside
of the image and of boxes without extent, and its `NonMaxSuppression` drops a box where the overlap
is greater than the threshold. OpenVINO drops it where it is equal, too, and gives NaN for
boxes without extent.
"""

import numpy as np
from onnxscript import opset20 as op

from keras_internimage.ops import onnx_operators

# Below all scores but minus infinity.
_LEAST = np.float32(np.finfo("float32").min)


def translations(openvino: bool = False) -> dict:
    """A table for `torch.onnx.export`.

    Args:
        openvino: for OpenVINO, not for ONNX Runtime.
    """
    operations = onnx_operators.operations()
    return {
        operations["roi_align"]: _for_openvino(roi_align) if openvino else roi_align,
        operations["nms"]: _next_threshold(nms) if openvino else nms,
    }


def roi_align(maps, boxes, levels, strides, output_size):
    """Each map is asked for its own boxes only; they are then put in order again."""
    pooled, places = [], []
    rois = op.Reshape(boxes, _ints(-1, 4))
    each = op.Reshape(levels, _ints(-1))
    images = _images(boxes)
    for level, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        here = op.Squeeze(op.NonZero(op.Equal(each, _int32(level))), _ints(0))
        pooled.append(
            op.RoiAlign(
                x,
                op.Gather(rois, here),
                op.Gather(images, here),
                coordinate_transformation_mode="half_pixel",
                mode="avg",
                output_height=output_size,
                output_width=output_size,
                sampling_ratio=0,
                spatial_scale=1 / stride,
            )
        )
        places.append(here)
    places, pooled = op.Concat(*places, axis=0), op.Concat(*pooled, axis=0)
    number = op.Shape(places)
    order = op.ScatterElements(
        op.Expand(_ints(0), number), places, op.Range(_int(0), op.Squeeze(number), _int(1)), axis=0
    )
    shape = op.Concat(op.Shape(boxes, start=0, end=2), op.Shape(pooled, start=1), axis=0)
    return op.Reshape(op.Gather(pooled, order), shape)


def nms(boxes, scores, classes, threshold, count):
    """Of the boxes that count only, as one image: each class of each image is a class of its own.

    ONNX's takes scores of every class for every box; that table is made for those alone.
    """
    kinds = op.Add(op.ReduceMax(classes, keepdims=0), _int32(1))
    images = op.Shape(scores, start=0, end=1)
    number = op.Shape(scores, start=1, end=2)
    here = op.Squeeze(
        op.NonZero(op.Greater(op.Reshape(scores, _ints(-1)), _float(_LEAST))), _ints(0)
    )
    own = op.Gather(op.Reshape(classes, _ints(-1)), here)
    own = op.Add(op.Cast(own, to=7), op.Mul(op.Div(here, number), op.Cast(kinds, to=7)))
    depth = op.Mul(images, op.Cast(kinds, to=7))
    candidates = op.Gather(op.Reshape(scores, _ints(-1)), here)
    each = op.Range(_int(0), op.Squeeze(depth), _int(1))
    is_own = op.Equal(op.Unsqueeze(each, _ints(1)), op.Unsqueeze(own, _ints(0)))
    table = op.Where(is_own, op.Unsqueeze(candidates, _ints(0)), _float(-np.inf))
    kept = op.NonMaxSuppression(
        op.Unsqueeze(op.Gather(op.Reshape(boxes, _ints(-1, 4)), here), _ints(0)),
        op.Unsqueeze(table, _ints(0)),
        _ints(count),
        op.Constant(value_floats=[float(threshold)]),
        op.Constant(value_floats=[float(_LEAST)]),
    )
    kept = op.Gather(here, op.Gather(kept, _int(2), axis=1))
    # The best of each image, with as many that do not count as there have to be.
    padded = op.Add(op.Mul(images, number), _ints(0))
    nothing = op.Expand(_float(-np.inf), padded)
    found = op.ScatterElements(
        nothing, kept, op.Gather(op.Reshape(scores, _ints(-1)), kept), axis=0
    )
    found = op.Reshape(found, op.Shape(scores))
    found = op.Pad(found, _ints(0, 0, 0, count), _float(-np.inf))
    values, index = op.TopK(found, _ints(count), axis=1)
    return op.Where(op.Greater(values, _float(_LEAST)), op.Cast(index, to=6), _int32(-1))


def _for_openvino(function):
    """`RoiAlign` of boxes of one pixel in place of those without extent, which give zeros."""

    def changed(maps, boxes, levels, strides, output_size):
        first, last = op.Split(boxes, num_outputs=2, axis=2)
        extent = op.ReduceMin(op.Sub(last, first), _ints(2), keepdims=1)
        empty = op.Not(op.Greater(extent, _float(0)))
        safe = op.Where(empty, op.Constant(value_floats=[0.0, 0.0, 1.0, 1.0]), boxes)
        pooled = function(maps, safe, levels, strides, output_size)
        return op.Where(op.Unsqueeze(empty, _ints(3, 4)), _float(0), pooled)

    return changed


def _next_threshold(function):
    """Suppression where the overlap is not less than the next number after the threshold."""

    def changed(boxes, scores, classes, threshold, count):
        return function(boxes, scores, classes, np.nextafter(np.float32(threshold), 1), count)

    return changed


def _images(boxes):
    """The number of the image of each box, `(N R,)`."""
    number = op.Shape(boxes, start=1, end=2)
    total = op.Mul(op.Shape(boxes, start=0, end=1), number)
    return op.Div(op.Range(_int(0), op.Squeeze(total), _int(1)), number)


def _ints(*values):
    return op.Constant(value_ints=list(values))


def _int(value):
    return op.Constant(value_int=value)


def _int32(value):
    return op.Cast(op.Constant(value_int=value), to=6)


def _float(value):
    return op.Constant(value_float=float(value))
