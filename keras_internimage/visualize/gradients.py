"""Values and gradients of functions that call a model, on each backend."""

import keras
import numpy as np


def to_numpy(tensor):
    """A tensor as an array; half types as float32."""
    if keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16"):
        tensor = keras.ops.cast(tensor, "float32")
    return np.array(keras.ops.convert_to_numpy(tensor))


def evaluated(function, model, *arguments):
    """`function(*arguments)` for a function of tensors that calls `model`, as arrays.

    Args:
        function: takes tensors and returns tensors, None, or lists and tuples of them.
        model: the model it calls; JAX compiles the function, with the model's variables as
            arguments instead of constants.
        *arguments: arrays or tensors.
    """
    arguments = [keras.ops.convert_to_tensor(a) for a in arguments]
    results = _backend().evaluated(function, model, arguments)
    return keras.tree.map_structure(lambda t: None if t is None else to_numpy(t), results)


def gradient(function, model):
    """The gradient of a scalar function of lists of tensors, by those of the first list.

    Args:
        function: `function(xs, others)` gives a scalar tensor; it calls `model`.
        model: as for `evaluated`.

    Returns:
        `gradients(xs, others)`, of lists of arrays: arrays of the shapes of `xs`.
    """
    compiled = _backend().gradient(function, model)

    def gradients(xs, others=()):
        xs, others = ([keras.ops.convert_to_tensor(a) for a in part] for part in (xs, others))
        return [to_numpy(g) for g in compiled(xs, others)]

    return gradients


def _backend():
    return {"tensorflow": _TensorFlow, "jax": _Jax, "torch": _Torch}[keras.backend.backend()]


class _TensorFlow:
    @staticmethod
    def evaluated(function, model, arguments):
        return function(*arguments)

    @staticmethod
    def gradient(function, model):
        import tensorflow as tf

        def gradients(xs, others):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(xs)
                y = function(xs, others)
            return tape.gradient(y, xs, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        return gradients


class _Jax:
    @staticmethod
    def _with_variables(function, model):
        variables = list(model.variables)

        def stateless(first, values, *rest):
            state = list(zip(variables, values, strict=True))
            with keras.StatelessScope(state_mapping=state):
                return function(first, *rest)

        return stateless, [variable.value for variable in variables]

    @staticmethod
    def evaluated(function, model, arguments):
        import jax

        stateless, values = _Jax._with_variables(function, model)
        return jax.jit(stateless)(arguments[0], values, *arguments[1:])

    @staticmethod
    def gradient(function, model):
        import jax

        stateless, values = _Jax._with_variables(function, model)
        compiled = jax.jit(jax.grad(stateless))
        return lambda xs, others: compiled(xs, values, others)


class _Torch:
    @staticmethod
    def evaluated(function, model, arguments):
        import torch

        with torch.no_grad():
            return function(*arguments)

    @staticmethod
    def gradient(function, model):
        import torch

        def gradients(xs, others):
            with torch.enable_grad():
                xs = [x.detach().clone().requires_grad_() for x in xs]
                y = function(xs, others)
                return torch.autograd.grad(y, xs, allow_unused=True, materialize_grads=True)

        return gradients
