"""Dense layers and depthwise convolutions in JAX on a CPU.

- XLA's own depthwise convolution takes longer there than all other layers of InternImage together,
  and its gradient longer still. As a sum of shifted products it is fused into one loop, a twentieth
  of the time. For the kernel's gradient, XLA passes over the images once for each of its entries
  unless it is given one image at a time.
- Of the gradient of a dense layer's kernel, `x' g`, JAX makes a matmul whose left factor XLA
  transposes in memory together with whatever computes it: a third of a training step. `(g' x)'` is
  the same with the small factor first.
- Of a matmul of half-precision numbers XLA makes one of float32 numbers, unless its result is to be
  float32: then it uses the processor's instructions for bfloat16, where there are any, and took 0.3
  to 0.6 of the time on a server with AMD's EPYC. What follows is computed in float32 and rounded
  once.
- GELU by `1 + erf(x)` takes a third of the time of `erfc(-x)`, which Keras and JAX use.

Measured by `benchmarks/model.py`.
"""

import math

import jax
import jax.numpy as jnp
import keras

from keras_internimage.ops import tracing


def _on_cpu():
    return jax.default_backend() == "cpu"


def _dense(layer, inputs):
    outputs = _wide_dense(layer, inputs)
    return None if outputs is None else outputs.astype(inputs.dtype)


def dense_and_gelu(layer, inputs):
    """GELU (exact) of a dense layer's outputs, None for "not faster here"."""
    outputs = _wide_dense(layer, inputs)
    return None if outputs is None else gelu(outputs).astype(inputs.dtype)


def _wide_dense(layer, inputs):
    """The dense layer's outputs, of half-precision inputs as float32."""
    if not _on_cpu() or layer.activation is not keras.activations.linear:
        return None
    kernel = jnp.asarray(layer.kernel)
    bias = jnp.asarray(layer.bias) if layer.use_bias else None
    if not inputs.dtype == kernel.dtype or bias is not None and bias.dtype != kernel.dtype:
        return None
    return _affine(inputs, kernel, bias)


def gelu(inputs):
    """GELU (exact), computed in float32 or better."""
    if tracing.required_implementation() is not None or not _on_cpu():
        return keras.activations.gelu(inputs)  # files keep the nodes that Keras makes
    x = inputs.astype(_wide(inputs))
    return (0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))).astype(inputs.dtype)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _matmul(a, b):
    return jnp.matmul(a, b, preferred_element_type=_wide(a))


@jax.custom_vjp
def _affine(x, kernel, bias):
    outputs = _matmul(x, kernel)
    return outputs if bias is None else outputs + bias


def _affine_forward(x, kernel, bias):
    return _affine(x, kernel, bias), (x, kernel, bias)


def _affine_backward(kept, upstream):
    x, kernel, bias = kept
    to_bias = None
    if bias is not None:
        to_bias = upstream.reshape(-1, upstream.shape[-1]).sum(0).astype(kernel.dtype)
    upstream = upstream.astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    upstream_rows = upstream.reshape(-1, upstream.shape[-1])
    if rows.shape[1] < upstream_rows.shape[1]:
        to_kernel = _over_rows(rows, upstream_rows)
    else:
        # Without the barrier XLA swaps the factors, and the transpose is gone.
        to_kernel = jax.lax.optimization_barrier(_over_rows(upstream_rows, rows)).T
    to_inputs = _matmul(upstream, kernel.T)
    return to_inputs.astype(x.dtype), to_kernel.astype(kernel.dtype), to_bias


def _over_rows(a, b):
    over_rows = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(a, b, over_rows, preferred_element_type=_wide(a))


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
    if layer.bias is not None:
        outputs = outputs + jnp.asarray(layer.bias)
    return outputs.astype(inputs.dtype)


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
