"""DCNv3 as Pallas kernels, for JAX on NVIDIA GPUs: no compiler is needed where it runs.

Written for Pallas' lowering to Triton, which has what the operator needs: gathers, and atomic
additions for the gradient of the images. Each program computes a block of pixels of one image and
one group; the points of windows up to 3x3 are unrolled, and all arithmetic is in float32. The
additions' order, and so the last bits of that gradient, differ from run to run.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from keras_internimage.ops import portable
from keras_internimage.ops.geometry import FAR, DCNv3Geometry
from keras_internimage.ops.partitioning_jax import batch_parallel, differentiable

try:  # deprecated since JAX 0.11, and there until 0.12 at least; without loads before 0.7.2
    from jax.experimental.pallas import triton

    triton = triton if hasattr(triton, "load") else None
except ImportError:
    triton = None

DTYPES = ("float32", "bfloat16", "float16")
BLOCK = 32  # pixels of a program
WARPS = 4
OLDEST = (8, 0)  # compute capability
UNROLLED = 9  # points; more are a loop, or the code and the time to compile it grow with them

# Whether kernels are interpreted, on any device: for tests.
interpret = False


def why_not(request=None):
    """None, or why the kernels cannot run the request."""
    from keras_internimage.ops.native import jax as native_jax

    if triton is None:
        return f"JAX {jax.__version__} has not the Pallas for Triton of JAX 0.7.2 to 0.12"
    device = native_jax.device_type() if request is None else request.device
    if device != "cuda" and not interpret:
        return f"Pallas' kernels are for NVIDIA GPUs, not for {device!r} devices"
    if device == "cuda" and any(capability < OLDEST for capability in native_jax.capabilities()):
        least, here = "{}.{}".format(*OLDEST), "{}.{}".format(*min(native_jax.capabilities()))
        return f"XLA compiles Triton for compute capability {least} and newer, not for {here}"
    if request is not None and request.dtype not in DTYPES:
        return f"Pallas' kernels compute {', '.join(DTYPES)}, not {request.dtype}"
    if request is not None and None not in request.input_shape:
        # The offsets are the largest array, but where there are few groups.
        batch, height, width, channels = request.input_shape
        pixels = batch * math.prod(request.geometry.output_size(height, width))
        of_pixel = max(channels, 3 * request.geometry.groups * request.geometry.points)
        if max(pixels * of_pixel, batch * height * width * channels) >= 2**31:
            return "Pallas' kernels address up to 2**31 numbers"
    return None


def call(inputs, offset_mask, geometry, softmax):
    """The operator for arrays of one dtype."""
    return _differentiable(geometry, softmax, interpret)(inputs, offset_mask)


@functools.cache
def _differentiable(geometry, softmax, interpreted):
    def formulation(inputs, offset_mask):
        activation = "softmax" if softmax else None
        return portable.differentiable(inputs, offset_mask, None, geometry, activation)

    options = (geometry, softmax, interpreted)
    return differentiable(_operator(*options), _gradient(*options), formulation)


@functools.cache
def _operator(geometry, softmax, interpreted):
    def operator(inputs, offset_mask):
        sizes = _Sizes.of(inputs, offset_mask, geometry, softmax)
        if not sizes.pixels:
            return jnp.zeros((*offset_mask.shape[:3], sizes.channels), inputs.dtype)
        kernel = _call(
            functools.partial(_operator_kernel, sizes),
            sizes,
            [jax.ShapeDtypeStruct((sizes.pixels * sizes.channels,), inputs.dtype)],
            interpreted,
        )
        (outputs,) = kernel(inputs.reshape(-1), offset_mask.reshape(-1))
        return outputs.reshape(*offset_mask.shape[:3], sizes.channels)

    return batch_parallel(operator, "n h w c, n p q o -> n p q c")


@functools.cache
def _gradient(geometry, softmax, interpreted):
    def gradient(grad_output, inputs, offset_mask):
        sizes = _Sizes.of(inputs, offset_mask, geometry, softmax)
        if not sizes.pixels:
            return jnp.zeros_like(inputs), jnp.zeros_like(offset_mask)
        zeros = jnp.zeros((inputs.size,), "float32")
        kernel = _call(
            functools.partial(_gradient_kernel, sizes),
            sizes,
            [
                jax.ShapeDtypeStruct(zeros.shape, zeros.dtype),
                jax.ShapeDtypeStruct((offset_mask.size,), offset_mask.dtype),
            ],
            interpreted,
            input_output_aliases={3: 0},
        )
        flat = (grad_output.astype(inputs.dtype), inputs, offset_mask)
        grad_inputs, grad_offset_mask = kernel(*(array.reshape(-1) for array in flat), zeros)
        grad_inputs = grad_inputs.reshape(inputs.shape).astype(inputs.dtype)
        return grad_inputs, grad_offset_mask.reshape(offset_mask.shape)

    return batch_parallel(gradient, "n p q c, n h w c, n p q o -> n h w c, n p q o")


def _call(kernel, sizes, results, interpreted, **options):
    grid = (sizes.batch, pl.cdiv(sizes.of_image, BLOCK), sizes.geometry.groups)
    return pl.pallas_call(
        kernel,
        out_shape=results,
        grid=grid,
        interpret=interpreted,
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        **options,
    )


@dataclasses.dataclass(frozen=True)
class _Sizes:
    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    geometry: DCNv3Geometry
    softmax: bool

    @classmethod
    def of(cls, inputs, offset_mask, geometry, softmax):
        return cls(*inputs.shape, *offset_mask.shape[1:3], geometry, softmax)

    @property
    def of_image(self):
        return self.out_height * self.out_width

    @property
    def pixels(self):
        return self.batch * self.of_image

    @property
    def depth(self):
        return self.channels // self.geometry.groups

    @property
    def samples(self):
        return self.geometry.groups * self.geometry.points


class _Block:
    """What both kernels know of their block of pixels. Shapes are powers of two, as Triton asks."""

    def __init__(self, sizes, offset_mask):
        self.sizes, self.offset_mask = sizes, offset_mask
        self.image, block, self.group = (pl.program_id(axis) for axis in range(3))
        self.pixel = block * BLOCK + jnp.arange(BLOCK, dtype="int32")
        self.valid = self.pixel < sizes.of_image
        self.channel = jnp.arange(pl.next_power_of_2(sizes.depth), dtype="int32")[None]
        self.inside = self.channel < sizes.depth
        self.channel = self.group * sizes.depth + self.channel
        self.output = self.image * sizes.of_image + self.pixel
        self.own = self.output * (3 * sizes.samples)

        points = sizes.geometry.points
        self.point = jnp.arange(pl.next_power_of_2(points), dtype="int32")[None]
        self.first_mask = self.own + 2 * sizes.samples + self.group * points
        self.mask_places = self.first_mask[:, None] + self.point
        self.mask_there = self.valid[:, None] & (self.point < points)
        if sizes.softmax:
            logits = _values(offset_mask, self.mask_places, self.mask_there)
            logits = jnp.where(self.point < points, logits, -jnp.inf)
            self.highest = jnp.max(logits, axis=1)
            exponentials = jnp.exp(logits - self.highest[:, None])
            self.total = jnp.sum(exponentials, axis=1)
            self.masks = exponentials / self.total[:, None]

    def each_point(self, body, carry):
        """`carry = body(point, carry)` for the points in turn."""
        points = self.sizes.geometry.points
        if points > UNROLLED:
            return jax.lax.fori_loop(0, points, body, carry)
        for point in range(points):
            carry = body(point, carry)
        return carry

    def mask(self, point):
        """The weight of a point, `(BLOCK,)`."""
        found = self._load(self.first_mask + point)
        return jnp.exp(found - self.highest) / self.total if self.sizes.softmax else found

    def offset_place(self, point):
        """Where a point has the x of its offset; y is next to it."""
        return self.own + 2 * (self.group * self.sizes.geometry.points + point)

    def _load(self, where):
        found = triton.load(self.offset_mask.at[where], mask=self.valid, other=0.0)
        return found.astype("float32")

    def corners(self, point):
        """`(u, v)` and, for each corner, its numbers' places, and where it is in the image."""
        geometry, sizes = self.sizes.geometry, self.sizes
        steps, place = _steps(geometry, point), []
        for axis, size in enumerate((sizes.out_width, None)):  # x, then y
            output = self.pixel % sizes.out_width if size else self.pixel // sizes.out_width
            grid = geometry.offset_scale * steps[axis]
            whole = jnp.floor(grid)
            offset = self._load(self.offset_place(point) + axis)
            t = geometry.offset_scale * offset + (grid - whole)
            t = jnp.where(jnp.abs(t) < FAR, t, -FAR)
            cell = jnp.floor(t)
            start = geometry.center[1 - axis] - geometry.padding[1 - axis] + whole.astype("int32")
            place.append(cell.astype("int32") + output * geometry.strides[1 - axis] + start)
            place.append(t - cell)
        x, u, y, v = place
        corners = []
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = y + dy, x + dx
            there = self.valid & (row >= 0) & (row < sizes.height)
            there = (there & (column >= 0) & (column < sizes.width))[:, None] & self.inside
            pixel = (self.image * sizes.height + row) * sizes.width + column
            corners.append((pixel[:, None] * sizes.channels + self.channel, there))
        return (u, v), corners


def _steps(geometry, point):
    """`(x, y)` of a point in the kernel, from its middle, in pixels; the point may be traced."""
    rows, columns = geometry.kernel_size
    point = jnp.int32(point)
    if geometry.remove_center:
        point += (point >= rows * columns // 2).astype("int32")
    column = jax.lax.div(point, jnp.int32(rows))
    place = (column, point - column * rows)
    return [
        jnp.float32(place[axis] * geometry.dilation_rate[1 - axis] - geometry.center[1 - axis])
        for axis in range(2)
    ]


def _corner_weights(u, v):
    return (1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u


def _values(inputs, where, there):
    return triton.load(inputs.at[where], mask=there, other=0.0).astype("float32")


def _add(array, values, where, there):
    if interpret:  # its atomic additions know no mask, and of several to one place keep one
        where, values = jnp.where(there, where, 0), jnp.where(there, values, 0)
        array[...] = array[...].at[where].add(values)
    else:
        triton.atomic_add(array, where, values, mask=there)


def _operator_kernel(sizes, inputs, offset_mask, outputs):
    block = _Block(sizes, offset_mask)

    def add_point(point, total):
        mask = block.mask(point)
        fractions, corners = block.corners(point)
        for weight, corner in zip(_corner_weights(*fractions), corners, strict=True):
            total += (weight * mask)[:, None] * _values(inputs, *corner)
        return total

    zeros = jnp.zeros((BLOCK, block.channel.shape[1]), "float32")
    total = block.each_point(add_point, zeros)
    where = block.output[:, None] * sizes.channels + block.channel
    there = block.valid[:, None] & block.inside
    triton.store(outputs.at[where], total.astype(outputs.dtype), mask=there)


def _gradient_kernel(
    sizes, grad_output, inputs, offset_mask, _zeros, grad_inputs, grad_offset_mask
):
    block = _Block(sizes, offset_mask)
    where = block.output[:, None] * sizes.channels + block.channel
    upstream = _values(grad_output, where, block.valid[:, None] & block.inside)

    def store(where, value, there):
        value = value.astype(grad_offset_mask.dtype)
        triton.store(grad_offset_mask.at[where], value, mask=there)

    def add_point(point, d_masks):
        mask = block.mask(point)
        (u, v), corners = block.corners(point)
        weights, dots = _corner_weights(u, v), []
        for weight, corner in zip(weights, corners, strict=True):
            dots.append(jnp.sum(upstream * _values(inputs, *corner), axis=1))
            share = (weight * mask)[:, None] * upstream
            _add(grad_inputs, share, *corner)
        d_mask = sum(weight * dot for weight, dot in zip(weights, dots, strict=True))
        a, b, c, d = dots
        scale, place = sizes.geometry.offset_scale * mask, block.offset_place(point)
        store(place, scale * ((1 - v) * (b - a) + v * (d - c)), block.valid)
        store(place + 1, scale * ((1 - u) * (c - a) + u * (d - b)), block.valid)
        return jnp.where(block.point == point, d_mask[:, None], d_masks)

    # Those of all points, (BLOCK, points): under a softmax each depends on the others.
    d_masks = jnp.zeros((BLOCK, block.point.shape[1]), "float32")
    d_masks = block.each_point(add_point, d_masks)
    if sizes.softmax:
        d_masks = block.masks * (d_masks - jnp.sum(block.masks * d_masks, axis=1)[:, None])
    store(block.mask_places, d_masks, block.mask_there)
