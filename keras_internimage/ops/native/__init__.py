"""DCNv3 by the native kernels: found or built once, then one binding for each backend.

The environment variable `KERAS_INTERNIMAGE_KERNELS` decides:

- `auto` (default): the kernels run wherever they can. Where the library cannot be had, a warning
  says why, once, and the portable implementation runs.
- `off`: they are not looked for.
- `require`: it is an error if the library cannot be had.

What a binding cannot run (a device, XLA in TensorFlow) takes the portable implementation in every
mode; `python -m keras_internimage` shows what runs.
"""

import functools
import importlib
import os
import warnings

import keras
from keras import ops

VARIABLE = "KERAS_INTERNIMAGE_KERNELS"
MODES = ("auto", "off", "require")


def mode():
    """The value of `KERAS_INTERNIMAGE_KERNELS`."""
    value = os.environ.get(VARIABLE) or "auto"
    if value not in MODES:
        raise ValueError(f"`{VARIABLE}` must be one of {MODES}. Received: {VARIABLE}={value!r}")
    return value


class Native:
    """The implementation in C++ and CUDA."""

    name = "native"
    backends = ("tensorflow", "jax", "torch")

    @property
    def description(self):
        return f"C++ and CUDA kernels, {_origin or 'not loaded'}"

    def why_not(self, request=None):
        return _why_not_loaded() or _binding.why_not(request)

    def run(self, inputs, offset, mask, geometry, mask_activation):
        return run_joined(_binding.call, inputs, offset, mask, geometry, mask_activation)


def run_joined(call, inputs, offset, mask, geometry, mask_activation):
    """`call(inputs, offset_mask, geometry, softmax)`, which takes two tensors of one dtype."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    tensors = [inputs, offset] if mask is None else [inputs, offset, mask]
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in tensors}
    if len(dtypes) > 1:
        common = "float64" if "float64" in dtypes else "float32"
        tensors = [ops.cast(t, common) for t in tensors]
    inputs, *points = tensors
    offset_mask = points[0] if mask is None else ops.concatenate(points, axis=-1)
    outputs = call(inputs, offset_mask, geometry, mask_activation == "softmax")
    return ops.cast(outputs, dtype) if len(dtypes) > 1 else outputs


def _why_not_loaded():
    """None if the kernels' library is loaded, or else the reason why it is not."""
    current = mode()
    if current == "off":
        return f"switched off by {VARIABLE}=off"
    reason = _load()
    if reason is not None and current == "require":
        raise RuntimeError(f"{VARIABLE}=require, but the kernels of DCNv3 cannot run. {reason}")
    return reason


@functools.cache
def _load():
    """Loads the library, builds it if need be, and returns why not where that fails."""
    reason = _try_to_load(wheel=True)
    if reason is None:
        return None
    if mode() != "require":
        warnings.warn(
            f"DCNv3 runs on the portable implementation, which is several times slower. {reason} "
            f"({VARIABLE}=off switches this warning off, {VARIABLE}=require makes it an error.)",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def _try_to_load(wheel):
    """As `_load`; a wheel's library that a later framework refuses gives way to a build."""
    global _origin
    from keras_internimage.custom_ops import build

    try:
        path = build.find_or_build(_BACKEND, wheel=wheel)
    except build.KernelsUnavailable as error:
        return str(error)
    try:
        _binding.load(path)
    except (OSError, RuntimeError) as error:  # what the frameworks raise for a library unfit
        reason = f"The library {build.origin(path)} could not be loaded: {error}"
        if path.parent == build.packaged.FOLDER:
            instead = _try_to_load(wheel=False)
            return instead and f"{reason} {instead}"
        return reason
    _origin = build.origin(path)
    return None


_origin = ""
_BACKEND = keras.backend.backend()
if _BACKEND in Native.backends:
    _binding = importlib.import_module(f"keras_internimage.ops.native.{_BACKEND}")
if _BACKEND == "torch":
    import torch

    # While PyTorch traces, finding and building happens outside the trace.
    _why_not_loaded = torch.compiler.assume_constant_result(_why_not_loaded)
