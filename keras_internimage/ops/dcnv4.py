"""The operator of DCNv4: that of DCNv3 on tensors packed as the official DCNv4 packs them."""

from typing import Any

import keras
import numpy as np

from keras_internimage.ops.dcnv3 import dcnv3
from keras_internimage.ops.geometry import DCNv3Geometry

# The official layer has a multiple of so many channels of offsets and masks.
_MULTIPLE = 8


def channels(groups: int, points: int) -> int:
    """Number of channels of offsets and masks in the official packing, with the unused ones."""
    return -(-3 * groups * points // _MULTIPLE) * _MULTIPLE


def packing(groups: int, points: int) -> np.ndarray:
    """Which channels of the official packing make those of `dcnv3`, offsets before masks.

    Returns:
        An int array of `3 * groups * points` indices: `dcnv3`'s channel `i` is official number
        `packing[i]`.
    """
    start = 3 * points * np.arange(groups)[:, None]
    offsets = start + np.arange(2 * points)
    masks = start + np.arange(2 * points, 3 * points)
    return np.concatenate([offsets.ravel(), masks.ravel()])


def dcnv4(
    inputs: Any,
    offset_mask: Any,
    *,
    groups: int,
    kernel_size: int | tuple[int, int] = 3,
    strides: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation_rate: int | tuple[int, int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    implementation: str | None = None,
) -> Any:
    """Deformable convolution v4, for tensors in the official packing.

    ```
    output[n, h, w, g] = sum_p mask[n, h, w, g, p] * bilinear(inputs[n, :, :, g], x_p, y_p)
    ```

    The same sum over the same positions as in `keras_internimage.ops.dcnv3`, without a softmax:
    masks are any numbers. What differs is how offsets and masks are packed: here group after
    group, each with its offsets and then its masks, and up to 7 unused channels at the end. They
    are brought into `dcnv3`'s order, which copies them; a layer that is trained or converted
    here has them in that order at once (`keras_internimage.layers.DCNv4`).

    Args:
        inputs: `(N, H, W, C)`; group `g` owns the channels `g * D` to `(g + 1) * D - 1`, where
            `D = C / groups`.
        offset_mask: `(N, Ho, Wo, K)` with `K = 3 * groups * P`, or that rounded up to a multiple
            of 8. Channel `3 g P + 2 p` is the horizontal offset `dx` of point `p` in pixels, the
            next one the vertical offset `dy`, and `3 g P + 2 P + p` its mask.
        groups: Number of groups.
        kernel_size: Integer or pair (height, width).
        strides: Integer or pair.
        padding: Integer or pair; zeros on each side.
        dilation_rate: Integer or pair.
        offset_scale: Factor of the kernel's own grid and of the offsets.
        remove_center: Whether the kernel's middle point is left out.
        implementation: As for `dcnv3`.

    Returns:
        `(N, Ho, Wo, C)` in the dtype of `inputs`. Images of a batch do not depend on each other;
        the official kernel mixes a few pixels of neighbouring ones.

    Raises:
        ValueError: If a shape, a dtype or an argument of the geometry is not as described.
        RuntimeError: If the named implementation cannot run.

    The gradient of unused channels is zero. That of an offset is as in `dcnv3`; the official
    kernel's is zero where the sample lies exactly at -1.

    Source: Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator
    for Vision Applications", CVPR 2024, section 3.1.
    """
    arguments: dict[str, Any] = {
        "groups": groups,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "dilation_rate": dilation_rate,
        "offset_scale": offset_scale,
        "remove_center": remove_center,
    }
    points = DCNv3Geometry(**arguments).points
    if not isinstance(offset_mask, keras.KerasTensor):
        offset_mask = keras.ops.convert_to_tensor(offset_mask)
    needed, official = 3 * groups * points, channels(groups, points)
    if len(offset_mask.shape) != 4 or offset_mask.shape[-1] not in (needed, official):
        raise ValueError(
            "`offset_mask` must have the shape (batch, output height, output width, "
            f"groups * points * 3 = {needed}, or that rounded up to {official}). "
            f"Received: offset_mask.shape={tuple(offset_mask.shape)}"
        )
    order = packing(groups, points).astype("int32")
    packed = keras.ops.take(offset_mask, order, axis=-1)
    return dcnv3(inputs, packed, **arguments, implementation=implementation)
