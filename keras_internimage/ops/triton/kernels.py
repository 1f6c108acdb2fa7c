"""DCNv3's kernels in Triton. Importing this module imports Triton, and only this one does.

A sample is one group of one output pixel. Samples are numbered as outputs are stored, the groups
fastest, so outputs are a matrix with one row for each sample. A program computes `BLOCK` rows, its
lanes run across the channels, and each reads 16 bytes of a pixel: neighbours read neighbours. Where
a row has several lanes, each of them computes the row's positions: that costs less than to exchange
them, and needs no shared memory. All arithmetic is in float32.

The points are a loop of steps of `UNROLL` points: for 3x3 one step, and no loop. `WIDE` is whether
a tensor has about 2**31 numbers or more, which are counted in 64 bits then. Sizes are not
specialised: a kernel is compiled once for all of them.
"""

import triton
import triton.language as tl

from keras_internimage.ops.geometry import FAR

SIZES = ["samples", "height", "width", "out_height", "out_width"]
_FAR = tl.constexpr(FAR)


@triton.jit
def _rows(
    samples, out_height, out_width,
    GROUPS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The program's samples: number, whether there is one, pixel, group, image, y and x.

    Those behind the last one are the last one once more, so that all may be read.
    """
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    sample = start * BLOCK + tl.arange(0, BLOCK)
    there = sample < samples
    sample = tl.minimum(sample, samples - 1)
    pixel = sample // GROUPS
    row = pixel // out_width
    image = row // out_height
    y, x = row - image * out_height, pixel - row * out_width
    return sample, there, pixel, sample - pixel * GROUPS, image, y, x


@triton.jit
def _axis(offset, step, output, SCALE: tl.constexpr, STRIDE: tl.constexpr, START: tl.constexpr):
    """The pixel before a position along one axis, and how far behind it the position is.

    Kept apart, so that precision does not fall with the distance from the image's corner.
    """
    t = offset.to(tl.float32) * SCALE
    grid = step.to(tl.float32) * SCALE
    whole = tl.floor(grid)
    if SCALE % 1 != 0:
        t += grid - whole
    t = tl.where(tl.abs(t) < _FAR, t, -_FAR)  # NaN compares false
    cell = tl.floor(t)
    return cell.to(tl.int32) + (output * STRIDE + (whole.to(tl.int32) + START)), t - cell


@triton.jit
def _position(
    offset, number, oy, ox, height, width,
    ROWS: tl.constexpr, MIDDLE: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    START_Y: tl.constexpr, START_X: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    CENTER_Y: tl.constexpr, CENTER_X: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Of one point of each sample: its upper left pixel, how far behind that it is, and which of
    the four pixels around it lie in the image."""
    point = number + tl.zeros((), tl.int32)
    point += (point >= MIDDLE).to(tl.int32)
    column = point // ROWS
    step_y = (point - column * ROWS) * DILATION_Y - CENTER_Y
    step_x = column * DILATION_X - CENTER_X
    x, u = _axis(tl.load(offset), step_x, ox, SCALE, STRIDE_X, START_X)
    y, v = _axis(tl.load(offset + 1), step_y, oy, SCALE, STRIDE_Y, START_Y)
    upper, lower = (y >= 0) & (y < height), (y >= -1) & (y < height - 1)
    left, right = (x >= 0) & (x < width), (x >= -1) & (x < width - 1)
    return y, x, v, u, upper & left, upper & right, lower & left, lower & right


@triton.jit
def _corner_weights(mask, v, u):
    """Of the upper left, upper right, lower left and lower right pixel."""
    lower = mask * v
    upper = mask - lower
    upper_right, lower_right = upper * u, lower * u
    return upper - upper_right, upper_right, lower - lower_right, lower_right


@triton.jit
def _below(width, CHANNELS: tl.constexpr, WIDE: tl.constexpr):
    """How far the pixel below is from a pixel."""
    if WIDE:
        width = width.to(tl.int64)
    return width * CHANNELS


@triton.jit
def _values(pixel, there, inside):
    return tl.load(pixel, mask=there[:, None] & inside, other=0.0).to(tl.float32)


@triton.jit
def _add(pixel, weight, upstream, there, inside):
    there = there[:, None] & inside
    tl.atomic_add(pixel, weight[:, None] * upstream, mask=there, sem="relaxed")


@triton.jit
def _highest(logits, POINTS: tl.constexpr, UNROLL: tl.constexpr):
    """The largest logit of each sample."""
    highest = tl.load(logits).to(tl.float32)
    for first in range(0, POINTS, UNROLL):
        for step in tl.static_range(UNROLL):
            highest = tl.maximum(highest, tl.load(logits + (first + step)).to(tl.float32))
    return highest


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    inputs, offset_mask, outputs, samples, height, width, out_height, out_width,
    ROWS: tl.constexpr, MIDDLE: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    START_Y: tl.constexpr, START_X: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    CENTER_Y: tl.constexpr, CENTER_X: tl.constexpr, SCALE: tl.constexpr,
    GROUPS: tl.constexpr, DEPTH: tl.constexpr, POINTS: tl.constexpr, SOFTMAX: tl.constexpr,
    UNROLL: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = GROUPS * DEPTH
    sample, there, pixel, group, image, oy, ox = _rows(
        samples, out_height, out_width, GROUPS, WIDE, BLOCK
    )
    channel = tl.arange(0, LANES)[None, :]
    inside = channel < DEPTH
    own = offset_mask + pixel * (3 * GROUPS * POINTS)
    offsets, masks = own + group * (2 * POINTS), own + 2 * GROUPS * POINTS + group * POINTS
    if SOFTMAX:
        highest = _highest(masks, POINTS, UNROLL)
        sum_of_masks = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, LANES), tl.float32)
    for first in range(0, POINTS, UNROLL):
        for step in tl.static_range(UNROLL):
            point = first + step
            y, x, v, u, has_a, has_b, has_c, has_d = _position(
                offsets + 2 * point, point, oy, ox, height, width, ROWS, MIDDLE, STRIDE_Y, STRIDE_X,
                START_Y, START_X, DILATION_Y, DILATION_X, CENTER_Y, CENTER_X, SCALE,
            )  # fmt: skip
            mask = tl.load(masks + point).to(tl.float32)
            if SOFTMAX:  # normalised in the end
                mask = tl.exp(mask - highest)
                sum_of_masks += mask
            weight_a, weight_b, weight_c, weight_d = _corner_weights(mask, v, u)
            place = ((image * height + y) * width + x) * CHANNELS + group * DEPTH
            a = inputs + (place[:, None] + channel)
            c = a + _below(width, CHANNELS, WIDE)
            total += weight_a[:, None] * _values(a, has_a, inside)
            total += weight_b[:, None] * _values(a + CHANNELS, has_b, inside)
            total += weight_c[:, None] * _values(c, has_c, inside)
            total += weight_d[:, None] * _values(c + CHANNELS, has_d, inside)
    if SOFTMAX:
        total /= sum_of_masks[:, None]
    where = outputs + (sample[:, None] * DEPTH + channel)
    tl.store(where, total.to(outputs.dtype.element_ty), mask=there[:, None] & inside)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    grad_outputs, inputs, offset_mask, grad_inputs, grad_offset_mask,
    samples, height, width, out_height, out_width,
    ROWS: tl.constexpr, MIDDLE: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    START_Y: tl.constexpr, START_X: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    CENTER_Y: tl.constexpr, CENTER_X: tl.constexpr, SCALE: tl.constexpr,
    GROUPS: tl.constexpr, DEPTH: tl.constexpr, POINTS: tl.constexpr, SOFTMAX: tl.constexpr,
    UNROLL: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    """`grad_inputs` is float32 and zero; the others are written."""
    CHANNELS: tl.constexpr = GROUPS * DEPTH
    sample, there, pixel, group, image, oy, ox = _rows(
        samples, out_height, out_width, GROUPS, WIDE, BLOCK
    )
    channel = tl.arange(0, LANES)[None, :]
    inside = channel < DEPTH
    own = pixel * (3 * GROUPS * POINTS)
    first_offset, first_mask = (
        own + group * (2 * POINTS),
        own + 2 * GROUPS * POINTS + group * POINTS,
    )
    offsets, masks = offset_mask + first_offset, offset_mask + first_mask
    if SOFTMAX:
        highest = _highest(masks, POINTS, UNROLL)
        sum_of_masks = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, POINTS, UNROLL):
            for step in tl.static_range(UNROLL):
                mask = tl.load(masks + (first + step)).to(tl.float32)
                sum_of_masks += tl.exp(mask - highest)
        mean = tl.zeros((BLOCK,), tl.float32)
    # Zero where there is no sample: what is added there adds nothing.
    upstream = _values(grad_outputs + (sample[:, None] * DEPTH + channel), there, inside)
    # What belongs to the points is kept, and stored in the end, side by side.
    tap = tl.arange(0, TAPS)[None, :]
    probabilities = tl.zeros((BLOCK, TAPS), tl.float32)
    d_masks = tl.zeros((BLOCK, TAPS), tl.float32)
    d_x = tl.zeros((BLOCK, TAPS), tl.float32)
    d_y = tl.zeros((BLOCK, TAPS), tl.float32)
    for first in range(0, POINTS, UNROLL):
        for step in tl.static_range(UNROLL):
            point = first + step
            y, x, v, u, has_a, has_b, has_c, has_d = _position(
                offsets + 2 * point, point, oy, ox, height, width, ROWS, MIDDLE, STRIDE_Y, STRIDE_X,
                START_Y, START_X, DILATION_Y, DILATION_X, CENTER_Y, CENTER_X, SCALE,
            )  # fmt: skip
            mask = tl.load(masks + point).to(tl.float32)
            if SOFTMAX:
                mask = tl.exp(mask - highest) / sum_of_masks
            place = ((image * height + y) * width + x) * CHANNELS + group * DEPTH
            where = place[:, None] + channel
            a = inputs + where
            c = a + _below(width, CHANNELS, WIDE)
            dot_a = tl.sum(upstream * _values(a, has_a, inside), axis=1)
            dot_b = tl.sum(upstream * _values(a + CHANNELS, has_b, inside), axis=1)
            dot_c = tl.sum(upstream * _values(c, has_c, inside), axis=1)
            dot_d = tl.sum(upstream * _values(c + CHANNELS, has_d, inside), axis=1)

            weight_a, weight_b, weight_c, weight_d = _corner_weights(mask, v, u)
            a = grad_inputs + where
            c = a + _below(width, CHANNELS, WIDE)
            _add(a, weight_a, upstream, has_a, inside)
            _add(a + CHANNELS, weight_b, upstream, has_b, inside)
            _add(c, weight_c, upstream, has_c, inside)
            _add(c + CHANNELS, weight_d, upstream, has_d, inside)

            top, bottom = dot_b - dot_a, dot_d - dot_c
            upper, lower = dot_a + u * top, dot_c + u * bottom
            d_mask = upper + v * (lower - upper)
            scaled = mask * SCALE
            here = tap == point
            d_x = tl.where(here, (scaled * (top + v * (bottom - top)))[:, None], d_x)
            d_y = tl.where(here, (scaled * (lower - upper))[:, None], d_y)
            d_masks = tl.where(here, d_mask[:, None], d_masks)
            if SOFTMAX:
                probabilities = tl.where(here, mask[:, None], probabilities)
                mean += mask * d_mask
    if SOFTMAX:
        d_masks = probabilities * (d_masks - mean[:, None])
    dtype = grad_offset_mask.dtype.element_ty
    where = grad_offset_mask + (first_mask[:, None] + tap)
    tl.store(where, d_masks.to(dtype), mask=there[:, None] & (tap < POINTS))
    pair = tl.arange(0, 2 * TAPS)[None, :]
    where = grad_offset_mask + (first_offset[:, None] + pair)
    d_xy = tl.interleave(d_x, d_y).to(dtype)
    tl.store(where, d_xy, mask=there[:, None] & (pair < 2 * POINTS))
