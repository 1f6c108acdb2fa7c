"""The native DCNv3 in JAX: calls through XLA's foreign function interface."""

import ctypes
import functools
import os
import pathlib
import re

import jax
import numpy as np

from keras_internimage.ops import portable
from keras_internimage.ops.native import convolution_jax as convolution
from keras_internimage.ops.native import cuda
from keras_internimage.ops.native import detection_jax as detection
from keras_internimage.ops.partitioning_jax import batch_parallel, differentiable

_NAME = "keras_internimage_dcnv3"
_platforms: set[str] = set()


def load(path):
    """Loads the binding's library and registers its handlers.

    Raises:
        OSError: it cannot be loaded.
        RuntimeError: XLA does not support the version of its interface that the library has.
    """
    # Handlers that are registered before the backends start are looked at when they do: one that is
    # refused would then stop JAX altogether.
    jax.default_backend()
    library = ctypes.CDLL(str(path))
    for platform in ("cpu", "cuda"):
        for name in (_NAME, f"{_NAME}_backward", *detection.NAMES, *convolution.NAMES):
            handler = getattr(library, f"{name}_{platform}", None)
            if handler is not None:
                target = jax.ffi.pycapsule(handler)
                jax.ffi.register_ffi_target(name, target, platform=platform.replace("cuda", "CUDA"))
                _platforms.add(platform)
    if "cuda" in _platforms:
        cuda.load(path)


def why_not(request):
    """None, or why the kernels cannot run the request."""
    device = device_type() if request is None else request.device
    if device == "cuda":
        return (request and cuda.refused(request)) or why_not_cuda()
    if device not in _platforms:
        return f"the library was built without kernels for {device!r} devices"
    return None


@functools.cache
def why_not_cuda(index=None):
    """None, or why they cannot run on GPUs; all must do, for it is not known which one computes."""
    return cuda.why_not("jax", capabilities)


@functools.cache
def capabilities():
    """The compute capabilities of this process's NVIDIA GPUs, such as `(8, 0)`."""
    told = (str(getattr(device, "compute_capability", "")) for device in jax.local_devices())
    found = [re.fullmatch(r"(\d+)\.(\d+)", text) for text in told]
    return [(int(match[1]), int(match[2])) for match in found if match]


def device_type(tensor=None):
    """The type of device that computes, "cpu", "cuda", "tpu" and so on, as far as can be known.

    That of an array with values is where it lies. While a function is traced, or without `tensor`,
    it is the default device: that of `jax.default_device`, or else of JAX' preferred backend.
    """
    if isinstance(tensor, jax.Array) and not isinstance(tensor, jax.core.Tracer):
        platform = next(iter(tensor.devices())).platform
    else:
        default = jax.config.jax_default_device  # a device, or the name of a platform
        platform = getattr(default, "platform", default) or jax.default_backend()
    return "cuda" if platform == "gpu" else platform


def deterministic():
    """Whether XLA is asked for the same bits in every run; JAX has no option of its own for it.

    Options of one `jax.jit` are not seen, only those of the environment or of the file it names.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # as XLA understands it
        path = pathlib.Path(flags)
        flags = path.read_text() if path.is_file() else ""
    names = ("--xla_gpu_deterministic_ops", "--xla_gpu_exclude_nondeterministic_ops")
    asked = {}
    for flag in flags.split():
        name, _, value = flag.partition("=")
        if name in names:
            asked[name] = value.lower() in ("", "true", "1")  # the last one counts
    return any(asked.values())


def call(inputs, offset_mask, geometry, softmax):
    """The operator for arrays of one dtype."""
    return _differentiable(geometry, softmax)(inputs, offset_mask)


@functools.cache
def _differentiable(geometry, softmax):
    def formulation(inputs, offset_mask):
        activation = "softmax" if softmax else None
        return portable.differentiable(inputs, offset_mask, None, geometry, activation)

    options = (geometry, softmax)
    return differentiable(_operator(*options), _gradient(*options), formulation)


@functools.cache
def _operator(geometry, softmax):
    def run(inputs, offset_mask):
        shape = (*offset_mask.shape[:3], inputs.shape[3])
        kernel = jax.ffi.ffi_call(_NAME, jax.ShapeDtypeStruct(shape, inputs.dtype))
        return kernel(inputs, offset_mask, **_attributes(geometry, softmax))

    return batch_parallel(run, "n h w c, n p q o -> n p q c")


@functools.cache
def _gradient(geometry, softmax):
    def run(grad_output, *tensors):
        kernel = jax.ffi.ffi_call(
            f"{_NAME}_backward",
            [jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for tensor in tensors],
        )
        return kernel(
            grad_output, *tensors, **_attributes(geometry, softmax), deterministic=deterministic()
        )

    return batch_parallel(run, "n p q c, n h w c, n p q o -> n h w c, n p q o")


def _attributes(geometry, softmax):
    pairs = ("kernel_size", "strides", "padding", "dilation_rate")
    return {
        **{name: np.array(getattr(geometry, name), np.int64) for name in pairs},
        "groups": np.int64(geometry.groups),
        "offset_scale": np.float64(geometry.offset_scale),
        "remove_center": np.bool_(geometry.remove_center),
        "softmax": np.bool_(softmax),
    }
