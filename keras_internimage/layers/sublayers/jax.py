"""Dense layers and depthwise convolutions in JAX on a CPU.

- XLA's own depthwise convolution takes longer there than all other layers of InternImage together,
  and its gradient longer still. As a sum of shifted products it is fused into one loop, a twentieth
  of the time. For the kernel's gradient, XLA passes over the images once for each of its entries
  unless it is given one image at a time.
- Of the gradient of a dense layer's kernel, `x' g`, JAX makes a matmul whose left factor XLA
  transposes in memory together with whatever computes it: a third of a training step. `(g' x)'` is
  the same with the small factor first.

Measured by `benchmarks/model.py`.
"""

import jax
import jax.numpy as jnp
import keras


def _on_cpu():
    return jax.default_backend() == "cpu"


def _dense(layer, inputs):
    if not _on_cpu() or layer.activation is not keras.activations.linear or not layer.use_bias:
        return None
    kernel, bias = (jnp.asarray(v) for v in (layer.kernel, layer.bias))
    if not inputs.dtype == kernel.dtype == bias.dtype:
        return None
    return _affine(inputs, kernel, bias)


@jax.custom_vjp
def _affine(x, kernel, bias):
    return jnp.matmul(x, kernel) + bias


def _affine_forward(x, kernel, bias):
    return _affine(x, kernel, bias), (x, kernel)


def _affine_backward(kept, upstream):
    x, kernel = kept
    rows = x.reshape(-1, x.shape[-1])
    upstream_rows = upstream.reshape(-1, upstream.shape[-1])
    if rows.shape[1] < upstream_rows.shape[1]:
        gradient = _over_rows(rows, upstream_rows)
    else:
        gradient = _over_rows(upstream_rows, rows).T
    return jnp.matmul(upstream, kernel.T), gradient, upstream_rows.sum(0)


def _over_rows(a, b):
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))


_affine.defvjp(_affine_forward, _affine_backward)


def _depthwise(layer, inputs):
    if (
        not _on_cpu()
        or layer.data_format != "channels_last"
        or layer.depth_multiplier != 1
        or layer.activation is not keras.activations.linear
        or layer.strides != (1, 1)
        or layer.dilation_rate != (1, 1)
        or layer.padding != "same"
        or not all(k % 2 for k in layer.kernel_size)
    ):
        return None
    outputs = _shifted(inputs, jnp.asarray(layer.kernel)[..., 0])
    return outputs if layer.bias is None else outputs + jnp.asarray(layer.bias)


@jax.custom_vjp
def _shifted(x, kernel):
    """The sum over (i, j) of `x` shifted by (i, j) times `kernel[i, j]`, "same" padding."""
    return sum(view * kernel[at] for at, view in _views(x, kernel.shape[:2]))


def _views(x, size):
    """The shifted images `(..., H, W, C)`, by the kernel's index."""
    height, width = x.shape[-3:-1]
    sides = [(k // 2, k // 2) for k in size]
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 3) + (*sides, (0, 0)))
    for i in range(size[0]):
        for j in range(size[1]):
            yield (i, j), x[..., i : i + height, j : j + width, :]


def _shifted_forward(x, kernel):
    return _shifted(x, kernel), (x, kernel)


def _shifted_backward(kept, upstream):
    x, kernel = kept

    def products(x, upstream):
        axes = tuple(range(x.ndim - 1))
        return jnp.stack([(v * upstream).sum(axes) for _, v in _views(x, kernel.shape[:2])])

    if jax.device_count() > 1:  # which have images of their own
        gradient = products(x, upstream)
    else:
        start = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[2]), kernel.dtype)
        gradient, _ = jax.lax.scan(
            lambda total, image: (total + products(*image), None), start, (x, upstream)
        )
    return _shifted(upstream, kernel[::-1, ::-1]), gradient.reshape(kernel.shape)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def rematerialized(function, inputs, matmul_last):
    """`function(inputs)`, of which only `inputs` is kept: a `jax.checkpoint` XLA cannot undo.

    On a CPU XLA forgets about barriers before it decides about the order, and then computes early
    and keeps what the barriers of `jax.checkpoint` held back. Here rematerialisation is the branch
    of a condition on the gradient of the output, and cannot start before that is there.
    """
    if not _on_cpu():
        return jax.checkpoint(function)(inputs)
    function, variables = jax.closure_convert(function, inputs)

    @jax.custom_vjp
    def run(inputs, *variables):
        return function(inputs, *variables)

    def forward(inputs, *variables):
        return run(inputs, *variables), (inputs, variables)

    def backward(kept, upstream):
        inputs, variables = kept

        def gradients():
            return jax.vjp(function, inputs, *variables)[1](upstream)

        def undefined():
            return jax.tree.map(lambda v: jnp.full_like(v, jnp.nan), (inputs, *variables))

        entry = upstream[(0,) * upstream.ndim]
        return jax.lax.cond(entry == entry, gradients, undefined)

    run.defvjp(forward, backward)
    return run(inputs, *variables)


FAST = {keras.layers.Dense: _dense, keras.layers.DepthwiseConv2D: _depthwise}
