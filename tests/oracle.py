"""The float64 truth about DCNv3: NumPy, explicit formulas, nothing shared with the package.

`forward` and `gradients` loop over the groups and sampling points and are vectorised over the
pixels. They follow the definition (Wang et al., 2023, and the official CUDA kernel): bilinear
sampling, zeros outside the image, and at integer positions the gradient of the cell to the
lower right.
"""

import numpy as np


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def output_size(height, width, *, kernel_size=3, strides=1, padding=1, dilation_rate=1, **_ignored):
    """Output height and width."""
    sizes = []
    for axis, size in enumerate((height, width)):
        k, s, p, d = (_pair(v)[axis] for v in (kernel_size, strides, padding, dilation_rate))
        sizes.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
    return tuple(sizes)


def point_list(kernel_size=3, remove_center=False):
    """`(column, row)` of each sampling point in the kernel, in order."""
    rows, columns = _pair(kernel_size)
    points = [(i, j) for i in range(columns) for j in range(rows)]
    if remove_center:
        points.remove((columns // 2, rows // 2))
    return points


def softmax(logits, points):
    """Softmax over the points of each group; `logits` is `(..., G * P)`."""
    x = np.asarray(logits, np.float64)
    x = x.reshape(*x.shape[:-1], x.shape[-1] // points, points)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).reshape(np.shape(logits))


def _samples(
    inputs,
    offset,
    *,
    groups,
    kernel_size,
    strides,
    padding,
    dilation_rate,
    offset_scale,
    remove_center,
):
    """Yields for each group and point: their indices and, for each of the four corners,
    `(values, index, weight, d weight / d x, d weight / d y)`.

    `values` is `(N, Ho, Wo, D)`, zero outside the image; `index` addresses the pixels of
    `inputs` that lie inside, with the boolean array of samples for which they do.
    """
    n, height, width, channels = inputs.shape
    depth = channels // groups
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = map(
        _pair, (kernel_size, strides, padding, dilation_rate)
    )
    out_h, out_w = offset.shape[1:3]
    cx, cy = dw * (kw - 1) // 2, dh * (kh - 1) // 2
    points = point_list(kernel_size, remove_center)
    image = np.arange(n)[:, None, None]
    origin_y = np.arange(out_h)[None, :, None] * sh - ph + cy
    origin_x = np.arange(out_w)[None, None, :] * sw - pw + cx
    for g in range(groups):
        own = slice(g * depth, (g + 1) * depth)
        for p, (i, j) in enumerate(points):
            channel = 2 * (g * len(points) + p)
            x = origin_x + offset_scale * (i * dw - cx + offset[..., channel])
            y = origin_y + offset_scale * (j * dh - cy + offset[..., channel + 1])
            near = np.isfinite(x) & np.isfinite(y)
            near &= (np.abs(np.where(near, x, 0)) < 1e9) & (np.abs(np.where(near, y, 0)) < 1e9)
            x, y = np.where(near, x, -9.0), np.where(near, y, -9.0)
            x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
            u, v = x - x0, y - y0
            corners = []
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                yc, xc = y0 + a, x0 + b
                inside = (yc >= 0) & (yc < height) & (xc >= 0) & (xc < width)
                values = np.zeros((n, out_h, out_w, depth))
                where = (np.broadcast_to(image, inside.shape)[inside], yc[inside], xc[inside])
                values[inside] = inputs[..., own][where]
                wy, wx = (v if a else 1 - v), (u if b else 1 - u)
                dwx, dwy = wy * (1 if b else -1), wx * (1 if a else -1)
                corners.append((values, inside, where, wy * wx, dwx, dwy))
            yield g, p, own, corners


def _prepare(inputs, offset, mask, mask_activation, geometry):
    geometry = {
        "kernel_size": 3,
        "strides": 1,
        "padding": 1,
        "dilation_rate": 1,
        "offset_scale": 1.0,
        "remove_center": False,
        **geometry,
    }
    inputs, offset, mask = (np.asarray(a, np.float64) for a in (inputs, offset, mask))
    points = len(point_list(geometry["kernel_size"], geometry["remove_center"]))
    if mask_activation == "softmax":
        mask = softmax(mask, points)
    return inputs, offset, mask, points, geometry


def forward(inputs, offset, mask, *, mask_activation=None, **geometry):
    """The operator's output, float64."""
    inputs, offset, mask, points, geometry = _prepare(
        inputs, offset, mask, mask_activation, geometry
    )
    output = np.zeros(offset.shape[:3] + inputs.shape[3:])
    for g, p, own, corners in _samples(inputs, offset, **geometry):
        sample = sum(weight[..., None] * values for values, _, _, weight, _, _ in corners)
        output[..., own] += mask[..., g * points + p, None] * sample
    return output


def gradients(inputs, offset, mask, grad_output, *, mask_activation=None, **geometry):
    """Gradients of `sum(output * grad_output)` by `inputs`, `offset` and `mask`, float64."""
    inputs, offset, mask, points, geometry = _prepare(
        inputs, offset, mask, mask_activation, geometry
    )
    scale = geometry["offset_scale"]
    grad_output = np.asarray(grad_output, np.float64)
    grad_inputs, grad_offset, grad_mask = (np.zeros_like(a) for a in (inputs, offset, mask))
    for g, p, own, corners in _samples(inputs, offset, **geometry):
        k = g * points + p
        upstream = grad_output[..., own]
        m = mask[..., k]
        for values, inside, where, weight, dwx, dwy in corners:
            product = (values * upstream).sum(axis=-1)
            grad_mask[..., k] += weight * product
            grad_offset[..., 2 * k] += scale * m * dwx * product
            grad_offset[..., 2 * k + 1] += scale * m * dwy * product
            share = ((m * weight)[..., None] * upstream)[inside]
            np.add.at(grad_inputs[..., own], where, share)
    if mask_activation == "softmax":
        shape = (*mask.shape[:3], mask.shape[3] // points, points)
        s, d = mask.reshape(shape), grad_mask.reshape(shape)
        grad_mask = (s * (d - (s * d).sum(axis=-1, keepdims=True))).reshape(mask.shape)
    return grad_inputs, grad_offset, grad_mask
