"""The portable DCNv3 in eager PyTorch: the same sums as `portable`, with less traffic.

Gathering all `4 * P` pixels of every sample before summing them costs far more in memory
traffic and page faults than in arithmetic. So

- the forward pass sums inside `torch.nn.functional.embedding_bag`, once for each of the four
  corners, and never holds the gathered pixels;
- the backward pass keeps nothing but the three arguments. It gathers the 2 x 2 neighbourhood of
  a sample as one row, and adds the gradients up row by row in the same form: a quarter of the
  rows, four times as long, is what makes `scatter_add_` fast. It is deterministic;
- both work on pieces of the batch small enough to stay in the cache;
- the softmax is written out, for `torch.softmax` is slow on rows as short as `P`.

Derivatives of the gradient, which are rarely asked for, are those of `portable`'s own operations.
Tracing (`torch.compile`, `torch.export`, `torch.jit.trace`) sees `portable` instead.
"""

import torch
import torch.nn.functional as F

from keras_internimage.ops import portable
from keras_internimage.ops.geometry import FAR

# Sampling points handled at once in the forward pass, and in the backward pass floats of
# gathered neighbourhoods: about 6 MB and 1 MB. On a GPU, launches cost more than traffic.
_SAMPLES = {"cpu": 1 << 17, "cuda": 1 << 24}
_FLOATS = {"cpu": 1 << 18, "cuda": 1 << 28}


def can_run(inputs):
    """Whether the call is eager, on a device with all that is needed here."""
    return (
        inputs.device.type in _SAMPLES
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
    )


def sample_and_sum(inputs, offset, mask, geometry, mask_activation):
    """See `portable.sample_and_sum`."""
    return _DCNv3.apply(inputs, offset, mask, geometry, mask_activation)


def gather_sum(rows, index, weights):
    """See `portable.gather_sum`."""
    return sum(
        F.embedding_bag(i, rows, per_sample_weights=w, mode="sum")
        for i, w in zip(index, weights, strict=True)
    )


def _softmax(logits):
    e = (logits - logits.amax(-1, keepdim=True)).exp_()
    return e.div_(e.sum(-1, keepdim=True))


def _corner_weights(u, v):
    """Of the upper left, upper right, lower left and lower right pixel."""
    right, both = u - u * v, u * v
    return 1 - v - right, right, v - both, both


class _Grid:
    """What all pieces of a call share: sizes, and the parts of the positions known beforehand."""

    def __init__(self, inputs, offset, geometry):
        self.geometry = geometry
        self.batch, self.height, self.width, self.channels = inputs.shape
        self.out_height, self.out_width = offset.shape[1:3]
        self.groups, self.points = geometry.groups, geometry.points
        self.depth = self.channels // self.groups
        device, dtype = inputs.device, inputs.dtype
        grid = torch.tensor(geometry.grid(), dtype=torch.float64, device=device)
        grid = grid.repeat(self.groups, 1)
        cell = grid.floor()
        fraction = grid - cell
        self.fraction = fraction.reshape(-1).to(dtype) if fraction.any() else None
        start = [c - p for c, p in zip(geometry.center, geometry.padding, strict=True)]
        y = torch.arange(self.out_height, device=device) * geometry.strides[0] + start[0]
        x = torch.arange(self.out_width, device=device) * geometry.strides[1] + start[1]
        self.y = (y[:, None, None] + cell[:, 1]).to(dtype)
        self.x = (x[:, None] + cell[:, 0]).to(dtype)
        # Rows of the padded images' matrix: two rows and columns of zeros on every side.
        self.image = (self.height + 4) * (self.width + 4) * self.groups
        self.row = (self.width + 4) * self.groups
        self.own = torch.arange(self.groups * self.points, device=device) // self.points
        self.own += 2 * (self.row + self.groups)

    def pieces(self, device):
        """Yields `(images, bands)`: a slice of the batch, and slices of its output rows."""
        of_row = self.out_width * self.groups * self.points
        limit = _SAMPLES[device.type]
        images = max(1, limit // max(1, of_row * self.out_height))
        band = max(1, limit // of_row) if images == 1 else self.out_height
        bands = [slice(h, h + band) for h in range(0, self.out_height, band)]
        for n in range(0, self.batch, images):
            yield slice(n, n + images), bands

    def padded(self, inputs):
        return F.pad(inputs, (0, 0, 2, 2, 2, 2))

    def sample(self, offset, band):
        """Row of the upper left pixel, and fractions to its right and lower neighbours.

        All are `(n * rows * Wo * G, P)`.
        """
        scale = self.geometry.offset_scale
        position = offset if scale == 1 else offset * scale
        if self.fraction is not None:
            position = position + self.fraction
        position = torch.nan_to_num(position, nan=-FAR).clamp_(-FAR, FAR)
        cell = position.floor()
        fraction = position.sub_(cell)
        shape = (*offset.shape[:3], self.groups * self.points, 2)
        cell, fraction = cell.view(shape), fraction.view(shape)
        integer = torch.int32 if shape[0] * self.image < 2**31 else torch.int64
        y = (cell[..., 1] + self.y[band]).clamp_(-2, self.height).to(integer)
        x = (cell[..., 0] + self.x).clamp_(-2, self.width).to(integer)
        image = torch.arange(shape[0], device=offset.device) * self.image
        own = (image[:, None, None, None] + self.own).to(integer)
        index = y.mul_(self.row).add_(x.mul_(self.groups)).add_(own)
        flat = (-1, self.points)
        return index.view(flat), fraction[..., 0].reshape(flat), fraction[..., 1].reshape(flat)


def differentiate_gradient(function, upstream, tensors, upstreams):
    """The gradients of a gradient: what the derivatives of `function` are differentiated to.

    Args:
        function: of `tensors`, made of operations that PyTorch can differentiate twice.
        upstream: the gradient of the function's output.
        tensors: the function's arguments.
        upstreams: for each of `tensors`, the gradient of its gradient.

    Returns:
        The gradients of `upstream` and of each of `tensors`.
    """

    def gradient(upstream, *tensors):
        return torch.func.vjp(function, *tensors)[1](upstream)

    return torch.func.vjp(gradient, upstream, *tensors)[1](tuple(upstreams))


def fold_mapped_axis(info, in_dims, tensors):
    """Yields tensors whose batch holds the axis that `torch.vmap` maps too."""
    for tensor, axis in zip(tensors, in_dims, strict=True):
        if axis is None:
            tensor = tensor.expand(info.batch_size, *tensor.shape)
        else:
            tensor = tensor.movedim(axis, 0)
        yield tensor.flatten(0, 1)


class _DCNv3(torch.autograd.Function):
    @staticmethod
    def forward(inputs, offset, mask, geometry, mask_activation):
        grid = _Grid(inputs, offset, geometry)
        output = inputs.new_empty((*offset.shape[:3], grid.channels))
        for images, bands in grid.pieces(inputs.device):
            rows = grid.padded(inputs[images]).view(-1, grid.depth)
            for band in bands:
                index, u, v = grid.sample(offset[images, band], band)
                m = mask[images, band].reshape(-1, grid.points)
                if mask_activation == "softmax":
                    m = _softmax(m)
                total = None
                steps = (0, grid.groups, grid.row, grid.row + grid.groups)
                for step, weight in zip(steps, _corner_weights(u, v), strict=True):
                    part = F.embedding_bag(
                        index + step, rows, per_sample_weights=weight * m, mode="sum"
                    )
                    total = part if total is None else total.add_(part)
                piece = output[images, band]
                piece.copy_(total.view(piece.shape))
        return output

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.geometry, ctx.mask_activation = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_output):
        options = ctx.geometry, ctx.mask_activation
        return *_Gradient.apply(grad_output, *ctx.saved_tensors, *options), None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        tensors = fold_mapped_axis(info, in_dims[:3], arguments[:3])
        output = _DCNv3.apply(*tensors, *arguments[3:])
        return output.unflatten(0, (info.batch_size, -1)), 0


def gradient(grad_output, inputs, offset, mask, geometry, mask_activation):
    """The gradients of `sample_and_sum` by its tensors: deterministic, and not differentiable."""
    grid = _Grid(inputs, offset, geometry)
    points, depth = grid.points, grid.depth
    grad_inputs = torch.empty_like(inputs)
    grad_offset, grad_mask = torch.empty_like(offset), torch.empty_like(mask)
    step = max(1, _FLOATS[inputs.device.type] // (4 * points * depth))
    for images, bands in grid.pieces(inputs.device):
        quads = _quads(F.pad(inputs[images], (0, 0, 2, 3, 2, 3)), grid)
        grad_quads = torch.zeros_like(quads)
        for band in bands:
            index, u, v = grid.sample(offset[images, band], band)
            m = mask[images, band].reshape(-1, points)
            if mask_activation == "softmax":
                m = _softmax(m)
            upstream = grad_output[images, band].reshape(-1, 1, depth)
            weights = torch.stack(_corner_weights(u, v), -1).mul_(m[..., None])
            weights = weights.view(-1, 4 * points, 1)
            dots = weights.new_empty((len(index), 4 * points))
            for first in range(0, len(index), step):
                part = slice(first, first + step)
                where = index[part].reshape(-1)
                values = F.embedding(where, quads).view(-1, 4 * points, depth)
                dots[part] = (values * upstream[part]).sum(-1)
                torch.mul(weights[part], upstream[part], out=values)
                where = where.to(torch.int64)[:, None].expand(-1, 4 * depth)
                grad_quads.scatter_add_(0, where, values.view(-1, 4 * depth))
            d_u, d_v, d_m = _sample_gradients(dots.view(-1, points, 4), u, v)
            scaled = m * geometry.offset_scale
            piece = grad_offset[images, band]
            piece.copy_(torch.stack((d_u * scaled, d_v * scaled), -1).view(piece.shape))
            if mask_activation == "softmax":
                d_m = m * (d_m - (m * d_m).sum(-1, keepdim=True))
            piece = grad_mask[images, band]
            piece.copy_(d_m.view(piece.shape))
        grad_inputs[images] = _from_quads(grad_quads, grid)
    return grad_inputs, grad_offset, grad_mask


class _Gradient(torch.autograd.Function):
    """The gradient of `_DCNv3`, as a function that has one itself."""

    @staticmethod
    def forward(*arguments):
        return gradient(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.geometry, ctx.mask_activation = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *upstreams):
        def function(*tensors):
            return portable.differentiable(*tensors, ctx.geometry, ctx.mask_activation)

        upstream, *tensors = ctx.saved_tensors
        return *differentiate_gradient(function, upstream, tensors, upstreams), None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        tensors = fold_mapped_axis(info, in_dims[:4], arguments[:4])
        grads = _Gradient.apply(*tensors, *arguments[4:])
        return tuple(grad.unflatten(0, (info.batch_size, -1)) for grad in grads), (0, 0, 0)


def _quads(padded, grid):
    """Each pixel's 2 x 2 neighbourhood as one row `(upper left, upper right, lower ...)`."""
    padded = padded.view(*padded.shape[:3], grid.groups, grid.depth)
    upper, lower = padded[:, :-1], padded[:, 1:]
    corners = (upper[:, :, :-1], upper[:, :, 1:], lower[:, :, :-1], lower[:, :, 1:])
    return torch.stack(corners, -2).view(-1, 4 * grid.depth)


def _from_quads(quads, grid):
    """The gradient of the images from that of their neighbourhoods."""
    q = quads.view(-1, grid.height + 4, grid.width + 4, grid.groups, 4, grid.depth)
    here, left, up = slice(2, -2), slice(1, -3), slice(1, -3)
    total = q[:, here, here, :, 0] + q[:, here, left, :, 1]
    total += q[:, up, here, :, 2]
    total += q[:, up, left, :, 3]
    return total.view(-1, grid.height, grid.width, grid.channels)


def _sample_gradients(dots, u, v):
    """Derivatives of the bilinear sample by `u` and `v`, and the sample itself.

    `dots` holds the products of the four pixels with the upstream gradient.
    """
    a, b, c, d = dots.permute(2, 0, 1).contiguous()
    upper, lower = b - a, d - c
    top, bottom = torch.addcmul(a, upper, u), torch.addcmul(c, lower, u)
    d_v = bottom - top
    return torch.lerp(upper, lower, v), d_v, torch.addcmul(top, d_v, v)
