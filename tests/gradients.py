"""Values and gradients of a function of tensors, the same call on every backend."""

import keras
import numpy as np


def value_and_grads(fn, arrays, grad_output, mode="eager"):
    """Output of `fn(*arrays)` and the gradients of `sum(output * grad_output)`, as NumPy arrays.

    Args:
        fn: A function of tensors of the current backend, returning one tensor.
        arrays: Floating-point arrays or tensors; those of a half dtype should be tensors.
        grad_output: Array of the output's shape.
        mode: `"eager"`, `"graph"` (`tf.function`; elsewhere as `"jit"`), or `"jit"`
            (`jit_compile=True`, `jax.jit`, `torch.compile(fullgraph=True)`).

    Returns:
        `(output, [gradient of each argument])`; half types are returned as float32.
    """
    tensors = [keras.ops.convert_to_tensor(a) for a in arrays]
    upstream = keras.ops.convert_to_tensor(grad_output)
    output, grads = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[
        keras.backend.backend()
    ](fn, tensors, upstream, mode)
    return to_numpy(output), [to_numpy(g) for g in grads]


def to_numpy(tensor):
    """A tensor as NumPy array; half types as float32."""
    if keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16"):
        tensor = keras.ops.cast(tensor, "float32")
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def relative_error(actual, expected):
    """Largest absolute difference, relative to the largest entry of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {actual.shape}, {expected.shape}")
    if expected.size == 0:
        return 0.0
    difference = np.abs(actual - expected).max()
    return difference / max(np.abs(expected).max(), 1e-30)


def _tensorflow(fn, tensors, upstream, mode):
    import tensorflow as tf

    def run(upstream, *tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = fn(*tensors)
        grads = tape.gradient(
            output,
            tensors,
            output_gradients=tf.cast(upstream, output.dtype),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return output, [tf.convert_to_tensor(g) for g in grads]

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "jit")
    return run(upstream, *tensors)


def _jax(fn, tensors, upstream, mode):
    import jax

    def run(upstream, *tensors):
        output, pull = jax.vjp(fn, *tensors)
        return output, pull(upstream.astype(output.dtype))

    return (run if mode == "eager" else jax.jit(run))(upstream, *tensors)


def _torch(fn, tensors, upstream, mode):
    import torch

    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    if mode != "eager":
        fn = torch.compile(fn, fullgraph=True)
    output = fn(*tensors)
    grads = torch.autograd.grad(
        output, tensors, upstream.to(output.dtype), allow_unused=True, materialize_grads=True
    )
    return output.detach(), list(grads)
