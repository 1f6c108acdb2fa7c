"""DCNv3 in `keras.ops`: the implementation that runs everywhere."""

import keras
import numpy as np
from keras import ops

# Positions further than this from the pixel are outside every image; infinities and NaN are
# replaced by it, with a minus sign.
_FAR = 2.0**24


def dcnv3(inputs, offset, mask, geometry, mask_activation=None):
    """See `keras_internimage.ops.dcnv3`; the arguments have been checked."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    tensors = (inputs, offset, mask)
    wide = any(keras.backend.standardize_dtype(t.dtype) == "float64" for t in tensors)
    inputs, offset, mask = (ops.cast(t, "float64" if wide else "float32") for t in tensors)
    outputs = _sample_and_sum(inputs, offset, _activate(mask, geometry, mask_activation), geometry)
    return ops.cast(outputs, dtype)


def _activate(mask, geometry, activation):
    if activation is None:
        return mask
    shape = ops.shape(mask)
    grouped = ops.reshape(mask, tuple(shape[:3]) + (geometry.groups, geometry.points))
    return ops.reshape(ops.softmax(grouped, axis=-1), shape)


def _axis(offset, base, fraction, first, stride, size, out_size, scale):
    """Corner index, and fraction to the next pixel, along one axis.

    The integer part of the position is kept apart from the fractional one, so that precision
    does not fall with the distance from the image's corner.
    """
    t = ops.convert_to_tensor(fraction, dtype=offset.dtype) + scale * offset
    # NaN compares false. A select has a zero gradient for what it leaves out.
    t = ops.where(ops.abs(t) < _FAR, t, ops.full_like(t, -_FAR))
    cell = ops.stop_gradient(ops.floor(t))
    start = ops.arange(0, out_size, 1, dtype="int32") * stride + first
    index = start[:, None] + ops.convert_to_tensor(base, dtype="int32")
    return index, ops.cast(cell, "int32"), t - cell


def _sample_and_sum(inputs, offset, mask, geometry):
    batch, height, width, channels = ops.shape(inputs)
    _, out_height, out_width, _ = ops.shape(offset)
    groups, points = geometry.groups, geometry.points
    samples = groups * points
    grid = np.tile(geometry.grid(), (groups, 1))
    base = np.floor(grid)
    fraction = grid - base
    offset = ops.reshape(offset, (batch, out_height, out_width, samples, 2))

    start = [c - p for c, p in zip(geometry.center, geometry.padding, strict=True)]
    y, cell_y, v = _axis(
        offset[..., 1], base[:, 1], fraction[:, 1], start[0], geometry.strides[0], height,
        out_height, geometry.offset_scale,
    )
    x, cell_x, u = _axis(
        offset[..., 0], base[:, 0], fraction[:, 0], start[1], geometry.strides[1], width,
        out_width, geometry.offset_scale,
    )
    # Two rows of zeros on every side: what lies outside is clamped into them.
    y = ops.clip(y[:, None, :] + cell_y, -2, height) + 2
    x = ops.clip(x + cell_x, -2, width) + 2
    padded = ops.pad(inputs, ((0, 0), (2, 2), (2, 2), (0, 0)))
    rows = ops.reshape(padded, (-1, channels // groups))

    row = width + 4
    image = ops.reshape(ops.arange(0, batch, 1, dtype="int32"), (-1, 1, 1, 1)) * (height + 4)
    group = ops.convert_to_tensor(np.repeat(np.arange(groups), points), dtype="int32")
    index = ((image + y) * row + x) * groups + group
    flat = (-1, points)
    corners = [
        ops.reshape(index + step, flat) for step in (0, groups, row * groups, (row + 1) * groups)
    ]
    weights = [
        ops.reshape(mask * a * b, flat)
        for a, b in ((1 - v, 1 - u), (1 - v, u), (v, 1 - u), (v, u))
    ]
    index = ops.concatenate(corners, axis=-1)
    weights = ops.concatenate(weights, axis=-1)
    values = ops.take(rows, index, axis=0)
    outputs = ops.matmul(weights[:, None, :], values)
    return ops.reshape(outputs, (batch, out_height, out_width, channels))
