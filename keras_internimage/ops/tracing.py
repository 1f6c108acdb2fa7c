"""Whether a model is being written to a file for other programs, which know no kernel of ours.

Keras tells layers nothing of an export. PyTorch says so itself; in TensorFlow and JAX the caller
is looked for among the exporters. What is not recognised needs `portable_ops()`.
"""

import contextlib
import contextvars
import sys
from collections.abc import Iterator

import keras

_context: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "keras_internimage_operators", default=None
)

# Modules that trace a model in order to write it, by their beginnings.
_EXPORTERS = (
    "keras.src.export.",
    "keras.src.backend.jax.export",
    "keras.src.backend.tensorflow.export",
    "tensorflow.python.saved_model.save",
    "tensorflow.lite.python.",
    "jax._src.export.",
    "jax.experimental.jax2tf.",
    "tf2onnx.",
    "jax2onnx.",
)


@contextlib.contextmanager
def portable_ops() -> Iterator[None]:
    """Within it, DCNv3 is computed by standard operations of the backend, whatever was chosen.

    For exporters that are not recognised: `with portable_ops(): my_exporter(model)`. Keras'
    own `model.export`, `keras_internimage.export`, `tf.saved_model.save`, the LiteRT converter,
    `jax.export`, `torch.export` and `torch.onnx.export` need no help.

    It decides about calls, and about functions that are traced within; `model.predict` and `fit`
    keep functions they traced before. `keras_internimage.layers.set_implementation`
    makes them forget.
    """
    with operators("portable"):
        yield


@contextlib.contextmanager
def operators(kind: str) -> Iterator[None]:
    """Within it, DCNv3 is what one kind of exported file can hold, or holds best.

    - `"portable"`: standard operations of the backend.
    - `"litert"`, `"program"`: the same, but with operations that LiteRT computes fastest, or that
      PyTorch has and not all its exporters know.
    - `"deform_conv"`: one `deform_conv.NAME` in what PyTorch exports, and for boxes what
      `onnx_operators` has.
    - `"onnx"`: the latter alone.
    - `"native"`: the native operation; exporters are not looked for.
    """
    token = _context.set(kind)
    try:
        yield
    finally:
        _context.reset(token)


def required_implementation() -> str | None:
    """The implementation that has to run here, whatever was asked for; None where it is free."""
    chosen = _chosen()
    if chosen is None:
        return "portable" if _exporting() else None
    if chosen == "native":
        return None
    return chosen if chosen == "deform_conv" else "portable"


def for_program() -> bool:
    """Whether what is traced becomes a program that PyTorch runs."""
    return _chosen() == "program"


def for_onnx() -> bool:
    """Whether what is traced becomes ONNX, written by `keras_internimage.export`."""
    return _chosen() in ("deform_conv", "onnx")


def for_litert() -> bool:
    """Whether what is traced becomes a LiteRT file."""
    return _chosen() == "litert" or (
        _chosen() is None and _called_by(("keras.src.export.litert", "tensorflow.lite.python."))
    )


def _chosen():
    """What the context says, None if nothing."""
    return _context.get()


def _exporting():
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return (
            torch.compiler.is_exporting()
            or torch.jit.is_tracing()
            or torch.onnx.is_in_onnx_export()
        )
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.executing_eagerly():
            return False
    return _called_by(_EXPORTERS)


def _called_by(modules):
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(modules):
            return True
        frame = frame.f_back
    return False


if keras.backend.backend() == "torch":
    import torch

    # While PyTorch traces, this is asked outside the trace.
    _chosen = torch.compiler.assume_constant_result(_chosen)
