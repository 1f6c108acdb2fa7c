"""Convolutions in JAX: a call through XLA's foreign function interface, and its derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("keras_internimage_convolution",)
# Filters that the kernels compute together, on the processors with the longest vectors.
_MOST_FILTERS = 32


def convolution(inputs, kernel, bias, relu):
    """See `keras_internimage.ops.convolution`; arrays are float32."""
    return _function(relu)(inputs, kernel, bias)


def _plain(inputs, kernel, bias, relu):
    outputs = _sum(inputs, kernel) + bias
    return jax.nn.relu(outputs) if relu else outputs


def _sum(inputs, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=layout)


@functools.cache
def _function(relu):
    @jax.custom_batching.custom_vmap
    def run(inputs, kernel, bias):
        channels, filters = kernel.shape[2:]
        # The transformed kernel, of whole blocks of filters: at most this.
        workspace = 36 * channels * -(-filters // _MOST_FILTERS) * _MOST_FILTERS
        shapes = [(*inputs.shape[:3], filters), (workspace,)]
        results = [jax.ShapeDtypeStruct(shape, inputs.dtype) for shape in shapes]
        return jax.ffi.ffi_call(NAMES[0], results)(inputs, kernel, bias, relu=np.bool_(relu))[0]

    @run.def_vmap
    def _vmap(size, in_batched, *arrays):
        axes = [0 if batched else None for batched in in_batched]
        return jax.vmap(functools.partial(_plain, relu=relu), axes)(*arrays), True

    @jax.custom_jvp
    def function(inputs, kernel, bias):
        return run(inputs, kernel, bias)

    @function.defjvp
    def _derivative(arrays, tangents):
        inputs, kernel, _ = arrays
        outputs = function(*arrays)
        tangent = _sum(tangents[0], kernel) + _sum(inputs, tangents[1]) + tangents[2]
        return outputs, jnp.where(outputs > 0, tangent, 0) if relu else tangent

    return function
