"""How a composite layer computes with its sub-layers.

`Layer.__call__` costs Keras some tenths of a millisecond, and InternImage-T has 350 sub-layers.
What it does for the composite layer holds for its parts as well (casts, scopes, shapes), so that
they are called the short way. Where a backend has a faster way to compute what the sub-layer does
on the device at hand, with the sub-layer's own variables, that is taken.
"""

import importlib

import keras


def run(owner, layer, inputs):
    """`layer(inputs)` for a sub-layer of `owner` that has been built, called within its call."""
    if layer.quantization_mode is not None or layer.compute_dtype != owner.compute_dtype:
        return layer(inputs)
    fast = _FAST.get(type(layer))
    if fast is not None:
        outputs = fast(layer, inputs)
        if outputs is not None:
            return outputs
    return layer.call(inputs)


# Functions `(layer, inputs)` by the type of layer, which may return None for "not faster here".
_FAST = {}
if keras.backend.backend() in ("torch", "jax"):
    _FAST = importlib.import_module(
        f"keras_internimage.layers.parts_{keras.backend.backend()}"
    ).FAST
