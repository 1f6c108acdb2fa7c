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


def penalty_grads(fn, arrays, mode="eager"):
    """The gradients of a gradient penalty, as NumPy arrays.

    The penalty is the sum of the squared gradients of `sum(fn(*arrays)**2)`. Arguments as for
    `value_and_grads`; `mode="graph"` is `tf.function`, `jax.jit`, and in PyTorch eager.
    """
    tensors = [keras.ops.convert_to_tensor(a) for a in arrays]
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        tensors = [t.detach().clone().requires_grad_() for t in tensors]
        grads = torch.autograd.grad(fn(*tensors).square().sum(), tensors, create_graph=True)
        grads = torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)
    elif backend == "jax":
        import jax

        places = tuple(range(len(tensors)))
        first = jax.grad(lambda *t: (fn(*t) ** 2).sum(), places)
        second = jax.grad(lambda *t: sum((g**2).sum() for g in first(*t)), places)
        grads = (second if mode == "eager" else jax.jit(second))(*tensors)
    else:
        import tensorflow as tf

        def run(*tensors):
            with tf.GradientTape() as outer:
                outer.watch(tensors)
                with tf.GradientTape() as inner:
                    inner.watch(tensors)
                    total = tf.reduce_sum(fn(*tensors) ** 2)
                grads = inner.gradient(total, tensors)
                penalty = tf.add_n([tf.reduce_sum(g**2) for g in grads])
            return outer.gradient(penalty, tensors)

        grads = (run if mode == "eager" else tf.function(run))(*tensors)
    return [to_numpy(g) for g in grads]
