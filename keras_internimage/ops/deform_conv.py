"""DCNv3 as one standard deformable convolution, for exporters: PyTorch only.

DCNv3 without its projections is a depthwise deformable convolution with modulation whose weights
are all one: ONNX's `DeformConv` with `group = C` and `offset_group = G`. What differs is the order
of things: there the offsets are `(dy, dx)`, the points run row by row, images are channels first,
and `offset_scale` does not scale the kernel's own grid.

Source: ONNX operator `DeformConv`, version 19; Zhu et al., "Deformable ConvNets v2", CVPR 2019.
"""

import numpy as np
import torch

from keras_internimage.ops import portable
from keras_internimage.ops.geometry import DCNv3Geometry

NAME = "keras_internimage::deform_conv"


def dcnv3(inputs, offset, mask, geometry, mask_activation):
    """As `portable.dcnv3`, with `NAME` as the only operation that is not PyTorch's own."""
    groups, points = geometry.groups, geometry.points
    split = 2 * groups * points
    if mask is None:
        offset, mask = offset[..., :split], offset[..., split:]
    leading = offset.shape[:3]
    if mask_activation == "softmax":
        mask = mask.reshape(*leading, groups, points).softmax(-1).reshape(*leading, groups * points)
    offset_order, mask_order, shift = _order(geometry)
    device = offset.device
    if geometry.remove_center:
        # The middle point, which only the kernel has, takes zeros from behind the others.
        offset, mask = (torch.nn.functional.pad(t, (0, 1)) for t in (offset, mask))
    offset = offset.index_select(-1, torch.as_tensor(offset_order, device=device))
    mask = mask.index_select(-1, torch.as_tensor(mask_order, device=device))
    if geometry.offset_scale != 1:
        shift = torch.as_tensor(shift, dtype=offset.dtype, device=device)
        offset = offset * geometry.offset_scale + shift
    outputs = torch.ops.keras_internimage.deform_conv(
        inputs.permute(0, 3, 1, 2),
        offset.permute(0, 3, 1, 2),
        mask.permute(0, 3, 1, 2),
        list(geometry.kernel_size),
        list(geometry.strides),
        list(geometry.padding),
        list(geometry.dilation_rate),
        groups,
    )
    return outputs.permute(0, 2, 3, 1)


def operation():
    """PyTorch's name for the operation, as its exporters find it in a graph."""
    return torch.ops.keras_internimage.deform_conv.default


def _order(geometry):
    """Which channels of ours make those of `DeformConv`, and what the grid's scale adds to them."""
    rows, columns = geometry.kernel_size
    groups, points = geometry.groups, geometry.points
    number = {}  # of a point of ours by its column and row
    for i in range(columns):
        for j in range(rows):
            is_center = geometry.remove_center and (i, j) == (columns // 2, rows // 2)
            number[i, j] = None if is_center else sum(n is not None for n in number.values())
    offset_order, mask_order, shift = [], [], []
    for g in range(groups):
        for j in range(rows):
            for i in range(columns):
                point = number[i, j]
                channel = groups * points if point is None else g * points + point
                mask_order.append(channel)
                absent = 2 * groups * points
                y, x = (absent,) * 2 if point is None else (2 * channel + 1, 2 * channel)
                offset_order += [y, x]
                at = (
                    j * geometry.dilation_rate[0] - geometry.center[0],
                    i * geometry.dilation_rate[1] - geometry.center[1],
                )
                shift += [(geometry.offset_scale - 1) * a for a in at]
    return np.array(offset_order), np.array(mask_order), np.array(shift)


@torch.library.custom_op(NAME, mutates_args=())
def _deform_conv(
    inputs: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    kernel_size: list[int],
    strides: list[int],
    padding: list[int],
    dilation_rate: list[int],
    groups: int,
) -> torch.Tensor:
    """What `DeformConv` computes with weights of one, channels first."""
    rows, columns = kernel_size
    geometry = DCNv3Geometry(kernel_size, strides, padding, dilation_rate, groups)
    # Back to points that run column by column, and to (x, y).
    order = [j * columns + i for i in range(columns) for j in range(rows)]
    n, _, height, width = mask.shape
    mask = mask.reshape(n, groups, rows * columns, height, width)[:, :, order]
    offset = offset.reshape(n, groups, rows * columns, 2, height, width)[:, :, order].flip(3)
    inputs, offset, mask = (
        t.reshape(n, -1, *t.shape[-2:]).permute(0, 2, 3, 1).contiguous()
        for t in (inputs, offset, mask)
    )
    outputs = portable.dcnv3(inputs, offset, mask, geometry, None)
    return outputs.permute(0, 3, 1, 2).contiguous()


@_deform_conv.register_fake
def _(inputs, offset, mask, kernel_size, strides, padding, dilation_rate, groups):
    return inputs.new_empty((*inputs.shape[:2], *mask.shape[2:]))
