"""The native kernels, of DCNv3, RoIAlign, suppression and convolutions: found or built once.

Each backend has a binding.

The environment variable `KERAS_INTERNIMAGE_KERNELS` decides:

- `auto` (default): the kernels run wherever they can. Where the library cannot be had, a warning
  says why, once, and the portable implementation runs.
- `off`: they are not looked for.
- `require`: it is an error if the library cannot be had.

What a binding cannot run (XLA in TensorFlow, other devices) takes the next implementation in every
mode; `python -m keras_internimage` shows what runs. Where a GPU has no kernels of its own, that is
the same as a library that cannot be had: `auto` warns, once, and `require` raises.
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

    def module_of(self, operator):
        """The module with a function of the operator's name; `why_not` must be None."""
        return _binding.convolution if operator == "convolution" else _binding.detection


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


def loaded():
    """Whether the kernels' library is loaded, for whatever devices."""
    return _why_not_loaded() is None


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
    reason = _try_to_load()
    if reason is None:
        return None
    if mode() != "require":
        warnings.warn(
            "DCNv3 runs without its native kernels: on an NVIDIA GPU by Triton in PyTorch and by "
            "Pallas in JAX, otherwise on the portable implementation, several times slower. "
            f"{reason} "
            f"({VARIABLE}=off switches this warning off, {VARIABLE}=require makes it an error.)",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def _try_to_load(refused=()):
    """As `_load`; a wheel's library that a later framework refuses gives way to the next one.

    That is the wheel for processors after one for GPUs, and in the end a build.
    """
    global _origin
    from keras_internimage.custom_ops import build

    try:
        path = build.find_or_build(_BACKEND, without_cuda=_tell_without_cuda, refused=refused)
    except build.KernelsUnavailable as error:
        return str(error)
    try:
        _binding.load(path)
    except (OSError, RuntimeError) as error:  # what the frameworks raise for a library unfit
        reason = f"The library {build.origin(path)} could not be loaded: {error}"
        if build.packaged.wheel_of(path) is not None:
            instead = _try_to_load((*refused, path.parent))
            if instead is None and path.parent != build.packaged.FOLDER:
                _tell_without_cuda(reason)  # of the wheel for GPUs
            return instead and f"{reason} {instead}"
        return reason
    _origin = build.origin(path)
    return None


def _tell_without_cuda(error):
    """The library has the kernels for processors alone, although one with CUDA was wanted."""
    if mode() != "require":
        _warn_of_gpus(f"DCNv3 has no native kernels for GPUs. {error}")


def tell_slow_gpu(index, dtype):
    """Warns, once, that a GPU runs without kernels of its own, and names what mends it.

    Args:
        index: which GPU, and
        dtype: of what, as in `dispatch.Request`.

    Raises:
        RuntimeError: `KERAS_INTERNIMAGE_KERNELS` is `require`.
    """
    # Where the library could not be loaded at all, that was told.
    if mode() == "off" or not loaded():
        return
    # Some calls have no kernel on any GPU.
    if dtype == "float64" or (_BACKEND == "tensorflow" and _binding.in_xla()):
        return
    reason = _binding.why_not_cuda(index)
    if reason is None:
        return
    if mode() == "require":
        raise RuntimeError(f"{VARIABLE}=require, but no kernel of DCNv3 runs on the GPU: {reason}")
    _warn_of_gpus(
        "DCNv3 runs on the GPU by the portable implementation, several times slower than by a "
        f"kernel of its own: {reason}"
    )


def _warn_of_gpus(text):
    if not _told_of_gpus:
        _told_of_gpus.append(text)
        warnings.warn(
            f"{text} ({VARIABLE}=off switches this warning off, {VARIABLE}=require makes it an "
            "error.)",
            RuntimeWarning,
            stacklevel=2,
        )


_origin = ""
_told_of_gpus: list[str] = []
_BACKEND = keras.backend.backend()
if _BACKEND in Native.backends:
    _binding = importlib.import_module(f"keras_internimage.ops.native.{_BACKEND}")
if _BACKEND == "torch":
    import torch

    # While PyTorch traces, finding and building happens outside the trace.
    _why_not_loaded = torch.compiler.assume_constant_result(_why_not_loaded)
    tell_slow_gpu = torch.compiler.assume_constant_result(tell_slow_gpu)
