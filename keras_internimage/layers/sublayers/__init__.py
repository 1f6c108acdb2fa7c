"""How a composite layer computes with its sub-layers: in time and memory, not in values.

`Layer.__call__` costs Keras some tenths of a millisecond, and InternImage-T has 350 sub-layers.
What it does for the composite layer holds for its parts as well (casts, scopes, shapes), so that
they are called the short way. Where a backend has a faster way to compute what the sub-layer does
on the device at hand, with the sub-layer's own variables, that is taken.
"""

import contextvars
import importlib

import keras

# How parts run within what is computed anew for its gradient: the short way, or, in mixed
# precision, called: Keras' scope which casts variables is over by then, each part opens its own.
SHORT, CALLED = "short", "called"
_rematerialized = contextvars.ContextVar("rematerialized", default=None)


def run(owner, layer, inputs, **kwargs):
    """`layer(inputs)` for a sub-layer of `owner` that has been built, called within its call."""
    if (
        layer.quantization_mode is not None
        or layer.compute_dtype != owner.compute_dtype
        or _rematerialized.get() == CALLED
    ):
        return layer(inputs, **kwargs)
    fast = _backend.FAST.get(type(layer))
    if fast is not None:
        outputs = fast(layer, inputs)
        if outputs is not None:
            return outputs
    return layer.call(inputs, **kwargs)


def chain(owner, layers, inputs, training):
    """`run` one after the other; while training, only `inputs` is kept for the gradient.

    What lies between is computed anew when the gradient is asked for. Only the last layer may be a
    product, so that this costs little, and InternImage keeps a good half of its activations.
    Functions may stand for layers.
    """
    if not training or isinstance(layers[0], keras.layers.Dense) or _rematerialized.get():
        return through(owner, layers, inputs)
    function = _with_scopes(owner, lambda x: through(owner, layers, x))
    return _backend.recomputed(function, inputs, whole=False)


def through(owner, layers, inputs):
    """`run` one after the other; functions may stand for layers."""
    for layer in layers:
        is_layer = isinstance(layer, keras.layers.Layer)
        inputs = run(owner, layer, inputs) if is_layer else layer(inputs)
    return inputs


def rematerialize(owner, function, inputs):
    """`function(inputs)`, which runs sub-layers; only `inputs` is kept for the gradient."""
    return _backend.recomputed(_with_scopes(owner, function), inputs, whole=True)


def _with_scopes(owner, function):
    way = SHORT if owner.compute_dtype == owner.variable_dtype else CALLED

    def scoped(inputs):
        token = _rematerialized.set(way)
        try:
            return function(inputs)
        finally:
            _rematerialized.reset(token)

    return scoped


if keras.backend.backend() not in ("tensorflow", "jax", "torch"):
    raise ImportError(
        "Keras' backend must be tensorflow, jax or torch, by KERAS_BACKEND in the environment or "
        f"in keras.json. Received: {keras.backend.backend()!r}"
    )
# Of each backend: `FAST`, functions `(layer, inputs)` by the type of layer, which may return None
# for "not faster here"; and `recomputed(function, inputs, whole)`, where but for the `whole` of a
# layer only the last part may be a product.
_backend = importlib.import_module(f"keras_internimage.layers.sublayers.{keras.backend.backend()}")
