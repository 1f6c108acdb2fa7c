"""DCNv3 as Pallas kernels, for JAX on NVIDIA GPUs: no compiler is needed where it runs.

Written for Pallas' lowering to Triton, which has what the operator needs: gathers, and atomic
additions for the gradient of the images. Each program computes a block of pixels of one image and
one group; the points are unrolled, and all arithmetic is in float32. The additions' order, and so
the last bits of that gradient, differ from run to run.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from keras_internimage.ops.geometry import FAR, DCNv3Geometry
from keras_internimage.ops.partitioning_jax import batch_parallel

try:  # deprecated since JAX 0.11, and there until 0.12 at least; without loads before 0.7.2
    from jax.experimental.pallas import triton

    triton = triton if hasattr(triton, "load") else None
except ImportError:
    triton = None

DTYPES = ("float32", "bfloat16", "float16")
BLOCK = 32  # pixels of a program
WARPS = 4

# Whether kernels are interpreted, on any device: for tests.
interpret = False


def why_not(request=None):
    """None, or why the kernels cannot run the request."""
    from keras_internimage.ops import native_jax

    if triton is None:
        return f"JAX {jax.__version__} has not the Pallas for Triton of JAX 0.7.2 to 0.12"
    device = native_jax.device_type() if request is None else request.device
    if device != "cuda" and not interpret:
        return f"Pallas' kernels are for NVIDIA GPUs, not for {device!r} devices"
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def call(inputs, offset_mask, geometry, softmax):
    """The operator for arrays of one dtype."""
    return _operator(geometry, softmax, interpret)(inputs, offset_mask)


def _forward(inputs, offset_mask, geometry, softmax):
    return call(inputs, offset_mask, geometry, softmax), (inputs, offset_mask)


def _backward(geometry, softmax, tensors, grad_output):
    return tuple(_gradient(geometry, softmax, interpret)(grad_output, *tensors))


call.defvjp(_forward, _backward)


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

    def of_group(self, point):
        return self.group * self.sizes.geometry.points + point

    def masks(self):
        """The weights of the points, each `(BLOCK,)`."""
        points = range(self.sizes.geometry.points)
        found = [self._load(self.own + 2 * self.sizes.samples + self.of_group(p)) for p in points]
        if not self.sizes.softmax:
            return found
        highest = functools.reduce(jnp.maximum, found)
        found = [jnp.exp(logit - highest) for logit in found]
        total = sum(found)
        return [value / total for value in found]

    def _load(self, where):
        found = triton.load(self.offset_mask.at[where], mask=self.valid, other=0.0)
        return found.astype("float32")

    def corners(self, point):
        """`(u, v)` and, for each corner, its numbers' places, and where it is in the image."""
        geometry, sizes = self.sizes.geometry, self.sizes
        place = []
        for axis, size in enumerate((sizes.out_width, None)):  # x, then y
            output = self.pixel % sizes.out_width if size else self.pixel // sizes.out_width
            grid = geometry.grid()[point][axis]
            offset = self._load(self.own + 2 * self.of_group(point) + axis)
            t = geometry.offset_scale * offset + (grid - math.floor(grid))
            t = jnp.where(jnp.abs(t) < FAR, t, -FAR)
            cell = jnp.floor(t)
            start = geometry.center[1 - axis] - geometry.padding[1 - axis] + math.floor(grid)
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
    total = jnp.zeros((BLOCK, block.channel.shape[1]), "float32")
    for point, mask in enumerate(block.masks()):
        fractions, corners = block.corners(point)
        for weight, corner in zip(_corner_weights(*fractions), corners, strict=True):
            total += (weight * mask)[:, None] * _values(inputs, *corner)
    where = block.output[:, None] * sizes.channels + block.channel
    there = block.valid[:, None] & block.inside
    triton.store(outputs.at[where], total.astype(outputs.dtype), mask=there)


def _gradient_kernel(
    sizes, grad_output, inputs, offset_mask, _zeros, grad_inputs, grad_offset_mask
):
    block = _Block(sizes, offset_mask)
    where = block.output[:, None] * sizes.channels + block.channel
    upstream = _values(grad_output, where, block.valid[:, None] & block.inside)

    def store(where, value):
        value = value.astype(grad_offset_mask.dtype)
        triton.store(grad_offset_mask.at[block.own + where], value, mask=block.valid)

    masks, d_masks = block.masks(), []
    for point, mask in enumerate(masks):
        (u, v), corners = block.corners(point)
        weights, dots = _corner_weights(u, v), []
        for weight, corner in zip(weights, corners, strict=True):
            dots.append(jnp.sum(upstream * _values(inputs, *corner), axis=1))
            share = (weight * mask)[:, None] * upstream
            _add(grad_inputs, share, *corner)
        d_masks.append(sum(weight * dot for weight, dot in zip(weights, dots, strict=True)))
        a, b, c, d = dots
        scale = sizes.geometry.offset_scale * mask
        store(2 * block.of_group(point), scale * ((1 - v) * (b - a) + v * (d - c)))
        store(2 * block.of_group(point) + 1, scale * ((1 - u) * (c - a) + u * (d - b)))
    if sizes.softmax:
        mean = sum(mask * d for mask, d in zip(masks, d_masks, strict=True))
        d_masks = [mask * (d - mean) for mask, d in zip(masks, d_masks, strict=True)]
    for point, d_mask in enumerate(d_masks):
        store(2 * sizes.samples + block.of_group(point), d_mask)
