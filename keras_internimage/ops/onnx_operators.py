"""RoIAlign and non-maximum suppression as single operations, for exporters: PyTorch only.

`exports.onnx_detection` says what they are in ONNX: its `RoiAlign` with half a pixel of shift and
an adaptive grid, and its `NonMaxSuppression`.

Source: ONNX operators `RoiAlign`, version 16, and `NonMaxSuppression`, version 11.
"""

import torch

from keras_internimage.ops import tracing

ROI_ALIGN = "keras_internimage::onnx_roi_align"
NMS = "keras_internimage::onnx_nms"


def roi_align(maps, boxes, strides, levels, output_size):
    """As `ops.roi_align`, with `ROI_ALIGN` for each map."""
    return torch.ops.keras_internimage.onnx_roi_align(
        [x.permute(0, 3, 1, 2) for x in maps],
        boxes,
        torch.zeros_like(boxes[..., 0], dtype=torch.int32) if levels is None else levels,
        [int(stride) for stride in strides],
        output_size,
    ).permute(0, 1, 3, 4, 2)


def nms(boxes, scores, classes, threshold, count):
    """As `ops.boxes.nms`, with `NMS` as the only operation."""
    indices = torch.ops.keras_internimage.onnx_nms(boxes, scores, classes, threshold, count)
    # Minus one where there is no box.
    return torch.clamp(indices, min=0), indices >= 0


def operations():
    """PyTorch's names for the operations, as its exporters find them in a graph."""
    found = torch.ops.keras_internimage
    return {"roi_align": found.onnx_roi_align.default, "nms": found.onnx_nms.default}


@torch.library.custom_op(ROI_ALIGN, mutates_args=())
def _roi_align(
    maps: list[torch.Tensor],
    boxes: torch.Tensor,
    levels: torch.Tensor,
    strides: list[int],
    output_size: int,
) -> torch.Tensor:
    """RoIAlign of channels-first maps: `(N, R, C, output_size, output_size)`."""
    from keras_internimage.ops import roi_align as definition

    maps = [x.permute(0, 2, 3, 1) for x in maps]
    with tracing.operators("portable"):
        pooled = definition.roi_align(maps, boxes, strides, levels, output_size)
    return pooled.permute(0, 1, 4, 2, 3).contiguous()


@_roi_align.register_fake
def _(maps, boxes, levels, strides, output_size):
    return maps[0].new_empty((*levels.shape, maps[0].shape[1], output_size, output_size))


@torch.library.custom_op(NMS, mutates_args=())
def _nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    threshold: float,
    count: int,
) -> torch.Tensor:
    """The boxes that are kept, `(N, count)` int32, -1 after the last."""
    from keras_internimage.ops import boxes as definition

    with tracing.operators("portable"):
        indices, valid = definition.nms(boxes, scores, classes, threshold, count)
    return torch.where(valid, indices, -1)


@_nms.register_fake
def _(boxes, scores, classes, threshold, count):
    return scores.new_empty((scores.shape[0], count), dtype=torch.int32)
