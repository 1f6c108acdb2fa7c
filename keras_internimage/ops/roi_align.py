"""RoIAlign on a pyramid of feature maps: aligned, with the adaptive grid."""

import functools
from collections.abc import Sequence

import keras
from keras import ops

from keras_internimage.ops import dispatch, tracing

# RoIs that are pooled at once: the pixels below them are gathered, which takes memory.
CHUNK = 32
# A box that reaches further, in pixels of its map, counts as one that is not finite.
FAR = 2.0**24
# Maps that the kernels take.
_MOST_MAPS = 16


def roi_align(
    maps,
    boxes,
    strides: Sequence[float],
    levels=None,
    output_size: int = 7,
    max_pixels=None,
    implementation: str | None = None,
):
    """The mean of bilinear samples in each bin of each region of interest.

    ```
    u = x / stride - 1/2                                   a box's sides in pixels of its map
    b = (u2 - u1) / output_size,  g = ceil(b)              size of a bin, samples in it
    y[i, j] = mean(map(v1 + (i + (k + 1/2) / g_y) b_y, u1 + (j + (l + 1/2) / g_x) b_x))
    ```

    over `k < g_y` and `l < g_x`. A sample more than one pixel outside of the outermost pixels'
    centres counts as 0, others outside as the nearest pixel. A box without extent gives zeros, as
    does one that is not finite or reaches further than 2**24 pixels of its map.

    Bilinear samples on a grid are separable: with one matrix for each axis, the sum is a product
    of the weights with the pixels that the box covers. The kernels sum rows, then columns. The
    portable implementation gathers the pixels into lists of one length, so that shapes are static
    whatever the boxes. There is no bound on the number of samples. Gradients flow to the maps,
    not to the boxes.

    Args:
        maps: list of feature maps `(N, H, W, C)`, of any sizes; together at most 2**31 pixels.
        boxes: `(N, R, 4)`, left, top, right, bottom in pixels of the image. They may lie outside.
        strides: how many pixels of the image one of each map has.
        levels: `(N, R)`, the index of each box's map; None where there is only one.
        output_size: bins along each side.
        max_pixels: a bound on how many pixels a box covers on its map, for less work: it is exact
            for boxes up to that, counted as `covered_pixels` does, and wrong for larger ones.
            None is the number of pixels of the largest map, which is exact for all. The kernels
            need no bound.
        implementation: None for the native kernels where they can run, on processors and NVIDIA
            GPUs, "native" or "portable".

    Returns:
        A tensor `(N, R, output_size, output_size, C)` of the maps' type. Positions, weights and
        sums are float32 or better.

    Raises:
        ValueError: the numbers of maps and strides differ, or `levels` are missing.
        RuntimeError: `implementation` is "native", and the kernels cannot run.

    Source: [Mask R-CNN](https://arxiv.org/abs/1703.06870), section 3; the same numbers as
    `torchvision.ops.roi_align(..., sampling_ratio=0, aligned=True)`.
    """
    if len(maps) != len(strides) or (levels is None and len(maps) != 1):
        raise ValueError(
            "There must be a stride for each map, and `levels` if there are several. "
            f"Received: {len(maps)} maps, strides={tuple(strides)}, levels={levels}"
        )
    dtype = keras.backend.standardize_dtype(maps[0].dtype)
    wide = "float64" if dtype == "float64" else "float32"
    channels = maps[0].shape[-1]
    count, rois = ops.shape(boxes)[:2]
    if isinstance(rois, int) and rois == 0:
        return ops.zeros((count, 0, output_size, output_size, channels), dtype)
    boxes = ops.cast(ops.stop_gradient(boxes), wide)
    if levels is None:
        levels = ops.zeros_like(boxes[..., 0], dtype="int32")
    if tracing.for_onnx():
        from keras_internimage.ops import onnx_operators

        return onnx_operators.roi_align(maps, boxes, strides, levels, output_size)
    kernels = dispatch.native_kernels("roi_align", maps[0], implementation)
    if kernels is not None and len(maps) <= _MOST_MAPS:
        maps = [ops.cast(x, dtype) for x in maps]
        return kernels.roi_align(maps, boxes, ops.cast(levels, "int32"), strides, output_size)
    pooled = _portable(maps, boxes, levels, strides, output_size, max_pixels, wide)
    return ops.cast(pooled, dtype)


def _portable(maps, boxes, levels, strides, output_size, max_pixels, wide):
    """RoIAlign in `keras.ops`, float32 or float64."""
    channels, (count, rois) = maps[0].shape[-1], ops.shape(boxes)[:2]
    sizes = [ops.shape(x)[1:3] for x in maps]
    pixels = [height * width for height, width in sizes]
    flat = [ops.reshape(x, (-1, n, channels)) for x, n in zip(maps, pixels, strict=True)]
    flat = ops.concatenate(flat, axis=1) if len(flat) > 1 else flat[0]
    if max_pixels is None:
        max_pixels = largest(pixels)
    sides = [largest([size[axis] for size in sizes]) for axis in (0, 1)]
    # Rows of numbers for each RoI: its start on its map, its sides, the map's, its first pixel.
    scale = ops.take(ops.convert_to_tensor([1 / s for s in strides], wide), levels)
    places = ops.stack(
        [
            _by_level([height for height, _ in sizes], levels),
            _by_level([width for _, width in sizes], levels),
            _by_level(_starts(pixels), levels) + _image_starts(levels, sum(pixels)),
        ],
        axis=-1,
    )
    start = boxes[..., :2] * scale[..., None] - 0.5
    extent = boxes[..., 2:] * scale[..., None] - 0.5 - start
    # NaN compares false. What is left out has no extent.
    near = ops.all((start > -FAR) & (start + extent < FAR), axis=-1, keepdims=True)
    numbers = ops.where(near, ops.concatenate([start, extent], axis=-1), 0)

    chunk = min(CHUNK, rois) if isinstance(rois, int) else CHUNK
    missing = -rois % chunk
    numbers = ops.pad(numbers, ((0, 0), (0, missing), (0, 0)))
    places = ops.pad(places, ((0, 0), (0, missing), (0, 0)), constant_values=1)
    numbers = ops.reshape(numbers, (-1, chunk, 4))
    places = ops.reshape(places, (-1, chunk, 3))
    flat = ops.reshape(flat, (-1, channels))

    def pool(arguments):
        return _pool(flat, *arguments, output_size, sides, max_pixels, wide)

    if numbers.shape[0] == 1:
        pooled = pool((numbers[0], places[0]))
    else:
        shape = (chunk, output_size * output_size, channels)
        pooled = map_rows(pool, (numbers, places), shape, wide)
    pooled = ops.reshape(pooled, (count, rois + missing, output_size, output_size, channels))
    return pooled[:, :rois]


def map_rows(function, arrays, shape, dtype):
    """`keras.ops.map(function, arrays)`, where `shape` and `dtype` of a result are known.

    To find them Keras' own traces the function once more in TensorFlow.
    """
    if tracing.for_program():
        from keras_internimage.ops import program_torch

        return program_torch.chunks(function, arrays, shape, dtype)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.map_fn(function, arrays, fn_output_signature=tf.TensorSpec(shape, dtype))
    return ops.map(function, arrays)


def covered_pixels(height, width, area: float):
    """How many pixels of a map boxes up to an area cover, at most: for `max_pixels`.

    A box of `h` times `w` pixels covers `h + 3` rows and `w + 3` columns at most. With
    `h w <= area` that is most for the longest box on the map.

    Args:
        height, width: of the map.
        area: of the boxes in pixels of the map.

    Returns:
        An int, or a tensor where the sizes are unknown.
    """
    side = largest([height, width])
    bound = int(area) + 3 * (side + int(area) // side + 1) + 10
    return smallest([height * width, bound])


def largest(values):
    """The largest of some ints or scalar tensors."""
    if all(isinstance(n, int) for n in values):
        return max(values)
    if tracing.for_program():
        import torch

        return functools.reduce(torch.sym_max, values)
    return ops.max(ops.stack([ops.cast(n, "int32") for n in values]))


def smallest(values):
    """The smallest of some ints or scalar tensors."""
    if all(isinstance(n, int) for n in values):
        return min(values)
    if tracing.for_program():
        import torch

        return functools.reduce(torch.sym_min, values)
    return ops.min(ops.stack([ops.cast(n, "int32") for n in values]))


def _by_level(values, levels):
    return ops.take(ops.stack([ops.cast(n, "int32") for n in values]), levels)


def _starts(pixels):
    starts = [0]
    for n in pixels[:-1]:
        starts.append(starts[-1] + n)
    return starts


def _image_starts(levels, pixels):
    """The number of the first pixel of each RoI's image, `(N, 1)`."""
    return ops.arange(ops.shape(levels)[0], dtype="int32")[:, None] * pixels


def _pool(flat, numbers, places, bins, sides, max_pixels, wide):
    """Bins of some RoIs, `(R, bins * bins, C)`."""
    weights, first, covered = [], [], []
    for axis in (0, 1):
        start, extent = numbers[:, 1 - axis], numbers[:, 3 - axis]
        size = places[:, axis]
        lowest, number = _covered(start, extent, size)
        weights.append(_axis_weights(start, extent, bins, size, lowest, sides[axis], wide))
        first.append(lowest)
        covered.append(number)
    if _runs_eagerly_in_torch():  # what is needed here is known, and mostly less than the bound
        max_pixels = min(max_pixels, int((covered[0] * covered[1]).max()))
    pixel = ops.arange(max_pixels, dtype="int32")[None]
    row, column = pixel // covered[1][:, None], pixel % covered[1][:, None]
    inside = ops.cast(row < covered[0][:, None], wide)
    row = ops.minimum(row, covered[0][:, None] - 1)
    index = (row + first[0][:, None]) * places[:, 1:2] + column + first[1][:, None]
    values = ops.cast(ops.take(flat, index + places[:, 2:], axis=0), wide)
    by_row = ops.take_along_axis(weights[0], row[:, None], axis=2) * inside[:, None]
    by_column = ops.take_along_axis(weights[1], column[:, None], axis=2)
    joint = by_row[:, :, None] * by_column[:, None]
    joint = ops.reshape(joint, (joint.shape[0], bins * bins, max_pixels))
    return ops.matmul(joint, values)


def _runs_eagerly_in_torch():
    if keras.backend.backend() != "torch":
        return False
    import torch

    traced = (
        torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
    )
    return not traced and not torch._C._are_functorch_transforms_active()


def _covered(start, extent, size):
    """The first pixel that samples touch along an axis, and how many there are."""
    last = size - 1
    end = ops.clip(ops.floor(start + extent) + 1, 0, ops.cast(last, start.dtype))
    first = ops.clip(ops.floor(start), 0, ops.cast(last, start.dtype))
    first, end = ops.cast(first, "int32"), ops.cast(end, "int32")
    return first, ops.maximum(end - first + 1, 1)


def _axis_weights(start, extent, bins, size, first, side, wide):
    """Weights `(R, bins, side)` of the pixels from `first` on, along one axis.

    Samples lie more than half a pixel apart where a bin has several. So at most four are within
    a pixel of another pixel's centre, and one more on each side for what rounding does to them.
    """
    size = ops.cast(size, wide)[:, None, None]
    pixel = ops.cast(first[:, None] + ops.arange(side, dtype="int32")[None], wide)[:, None]
    bin_size = (extent / bins)[:, None, None]
    count = ops.ceil(bin_size)
    step = bin_size / ops.maximum(count, 1)
    origin = start[:, None, None] + bin_size * ops.arange(bins, dtype=wide)[None, :, None]
    before = ops.where(
        count > 1, ops.floor((pixel - 1 - origin) / ops.where(count > 1, step, 1) - 0.5), 0.0
    )
    total = 0.0
    for candidate in range(-1, 6):
        number = before + candidate
        place = origin + (number + 0.5) * step
        counts = (number >= 0) & (number < count) & (place >= -1) & (place <= size)
        distance = ops.abs(ops.clip(place, 0, size - 1) - pixel)
        total = total + ops.where(counts, ops.maximum(1 - distance, 0), 0.0)
    return total / ops.maximum(count, 1)
