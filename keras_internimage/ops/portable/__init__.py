"""DCNv3 in `keras.ops`: the implementation that runs everywhere.

A sample is the sum of four rows of the zero-padded images, read as a matrix with one row to a
pixel and group, so the sum over the points is one gather and one product with the corner weights.
Positions outside the image are clamped into the padding, which takes the place of masks. No
tensor has more than five dimensions, and no product more than three: exporters ask for that.

What the gather costs differs between the backends, and so `portable.torch`, `portable.tensorflow`
and `portable.jax` replace it (see there). Everything else, and all that is traced by PyTorch, is
the code below. Time relative to the official formulation, by `benchmarks/dcnv3.py` on one thread
of an x86 server at the shapes of InternImage-T, batch 1 and 8 (a training step is forward and
backward; lower is faster):

| | PyTorch, eager | TensorFlow, graph | JAX, jit |
|-|-|-|-|
| forward | 0.18 - 0.64 | 0.32 - 0.84 | 0.21 - 0.71 |
| training step | 0.51 - 0.92 | 0.47 - 0.99 | 0.37 - 0.67 |

At batch 8 and 56 x 56 x 64 a training step of the official formulation needs 218 MB at its peak,
these 55, 106 and 47 MB.
"""

import math

import keras
from keras import ops

from keras_internimage.ops import tracing
from keras_internimage.ops.geometry import FAR


def dcnv3(inputs, offset, mask, geometry, mask_activation=None):
    """See `keras_internimage.ops.dcnv3`; the arguments have been checked."""
    compute = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    return _widened(compute, inputs, offset, mask, geometry, mask_activation)


def differentiable(inputs, offset, mask, geometry, mask_activation=None):
    """As `dcnv3`, but by operations alone that the backend differentiates any number of times.

    It is what derivatives of a kernel's gradient are computed by.
    """
    compute = {"tensorflow": _tensorflow, "jax": _jax, "torch": sample_and_sum}
    compute = compute[keras.backend.backend()]
    return _widened(compute, inputs, offset, mask, geometry, mask_activation)


def _widened(compute, inputs, offset, mask, geometry, mask_activation):
    """`compute` with three tensors of one dtype, float32 or float64."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if mask is None:
        split = 2 * geometry.groups * geometry.points
        offset, mask = offset[..., :split], offset[..., split:]
    tensors = (inputs, offset, mask)
    wide = any(keras.backend.standardize_dtype(t.dtype) == "float64" for t in tensors)
    tensors = [ops.cast(t, "float64" if wide else "float32") for t in tensors]
    return ops.cast(compute(*tensors, geometry, mask_activation), dtype)


def _torch(inputs, offset, mask, geometry, mask_activation):
    from keras_internimage.ops.portable import torch as portable_torch

    if portable_torch.can_run(inputs):
        return portable_torch.sample_and_sum(inputs, offset, mask, geometry, mask_activation)
    bags = tracing.for_program()
    return sample_and_sum(
        inputs,
        offset,
        mask,
        geometry,
        mask_activation,
        portable_torch.gather_sum if bags else gather_sum,
    )


def _tensorflow(inputs, offset, mask, geometry, mask_activation):
    from keras_internimage.ops.portable import tensorflow as portable_tensorflow

    def gather_sum(rows, index, weights):
        index, weights = (ops.concatenate(four, axis=-1) for four in (index, weights))
        return portable_tensorflow.gather_sum(rows, index, weights, ops.shape(inputs)[0])

    return sample_and_sum(inputs, offset, mask, geometry, mask_activation, gather_sum)


def _jax(inputs, offset, mask, geometry, mask_activation):
    from keras_internimage.ops.portable import jax as portable_jax

    return portable_jax.map_images(sample_and_sum, inputs, offset, mask, geometry, mask_activation)


def gather_sum(rows, index, weights):
    """`sum_k weights[r, k] * rows[index[r, k]]` over the points of four corners.

    Args:
        rows: `(M, D)`.
        index: Integer tensors `(R, P)`, one for each corner.
        weights: Tensors `(R, P)`, likewise.

    Returns:
        `(R, D)`.
    """
    index, weights = (ops.concatenate(four, axis=-1) for four in (index, weights))
    return ops.matmul(weights[:, None, :], ops.take(rows, index, axis=0))[:, 0]


def sample_and_sum(inputs, offset, mask, geometry, mask_activation, gather_sum=gather_sum):
    """The operator for arguments of one dtype, float32 or float64."""
    batch, height, width, channels = ops.shape(inputs)
    _, out_height, out_width, _ = ops.shape(offset)
    groups, points = geometry.groups, geometry.points
    samples = groups * points
    flat = (-1, points)
    mask = ops.reshape(mask, flat)
    if mask_activation == "softmax":
        mask = ops.softmax(mask, axis=-1)

    # Two rows and columns of zeros on every side: what lies outside is clamped into them.
    rows = ops.pad(inputs, ((0, 0), (2, 2), (2, 2), (0, 0)))
    rows = ops.reshape(rows, (-1, channels // groups))
    integer = "int64" if _too_many_rows(inputs.shape[:3], groups) else "int32"

    # Lists, for torch.compile would take NumPy's arrays for tensors.
    grid = geometry.grid() * groups
    grid_x, grid_y = [x for x, _ in grid], [y for _, y in grid]
    # Slices with a stride would be slower in exported files.
    pair = ops.split(ops.transpose(ops.reshape(offset, (-1, 2))), 2, axis=0)
    x, y = (ops.reshape(o, (batch, out_height, out_width, samples)) for o in pair)
    x, u = _split(x, grid_x, geometry.offset_scale)
    y, v = _split(y, grid_y, geometry.offset_scale)
    x = _clip(x + _origins(out_width, grid_x, geometry, axis=1), -2, width) + 2
    y = y + _origins(out_height, grid_y, geometry, axis=0)[:, None, :]
    y = _clip(y, -2, height) + 2

    image = ops.reshape(ops.arange(0, batch, 1, dtype=integer), (-1, 1, 1, 1))
    group = [g for g in range(groups) for _ in range(points)]
    group = ops.convert_to_tensor(group, dtype=integer)
    row = (width + 4) * groups
    index = image * ((height + 4) * row) + ops.cast(y, integer) * row
    index = ops.reshape(index + ops.cast(x, integer) * groups + group, flat)
    u, v = ops.reshape(u, flat), ops.reshape(v, flat)
    lower = mask * v
    upper = mask - lower
    upper_right, lower_right = upper * u, lower * u
    outputs = gather_sum(
        rows,
        [index, index + groups, index + row, index + (row + groups)],
        [upper - upper_right, upper_right, lower - lower_right, lower_right],
    )
    return ops.reshape(outputs, (batch, out_height, out_width, channels))


def _clip(x, low, high):
    if keras.backend.backend() == "torch":
        # Keras makes tensors of the bounds, for which `torch.export` would fix an unknown size.
        return x.clamp(low, high)
    return ops.clip(x, low, high)


def _split(offset, grid, scale):
    """The position along one axis, relative to its origin: integer part, and fraction.

    Together with `_origins` this keeps the integer part apart from the fractional one, so that
    precision does not fall with the distance from the image's corner.
    """
    fraction = [position - math.floor(position) for position in grid]
    t = scale * offset + ops.convert_to_tensor(fraction, dtype=offset.dtype)
    # NaN compares false. A select has no gradient for what it leaves out.
    t = ops.where(ops.abs(t) < FAR, t, ops.full_like(t, -FAR))
    cell = ops.stop_gradient(ops.floor(t))
    return ops.cast(cell, "int32"), t - cell


def _origins(size, grid, geometry, axis):
    """`(size, G * P)`: the input pixel from which the offsets of each output pixel count."""
    start = geometry.center[axis] - geometry.padding[axis]
    pixels = ops.arange(0, size, 1, dtype="int32") * geometry.strides[axis] + start
    return pixels[:, None] + ops.convert_to_tensor(
        [math.floor(position) for position in grid], dtype="int32"
    )


def _too_many_rows(sizes, groups):
    """Whether the rows of `N, H, W = sizes`, as far as they are known, need 64-bit indices."""
    rows = groups
    for size, border in zip(sizes, (0, 4, 4), strict=True):
        if isinstance(size, int):
            rows *= size + border
    return rows >= 2**31
