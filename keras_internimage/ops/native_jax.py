"""The native DCNv3 in JAX: calls through XLA's foreign function interface."""

import ctypes
import functools
import os

import jax
import numpy as np

_NAME = "keras_internimage_dcnv3"
_platforms = set()


def load(path):
    """Loads the binding's library and registers its handlers."""
    library = ctypes.CDLL(str(path))
    for platform in ("cpu", "cuda"):
        for name in (_NAME, f"{_NAME}_backward"):
            handler = getattr(library, f"{name}_{platform}", None)
            if handler is not None:
                target = jax.ffi.pycapsule(handler)
                jax.ffi.register_ffi_target(name, target, platform=platform.replace("cuda", "CUDA"))
                _platforms.add(platform)


def why_not(request):
    """None, or why the kernels cannot run the request."""
    device = device_type() if request is None else request.device
    if device not in _platforms:
        return f"the library was built without kernels for {device!r} devices"
    if device == "cuda" and request is not None and request.dtype == "float64":
        return "the CUDA kernels compute float32, float16 and bfloat16"
    return None


def device_type():
    """Where JAX compiles for by itself: "cpu", "cuda", "tpu" and so on."""
    platform = jax.default_backend()
    return "cuda" if platform == "gpu" else platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def call(inputs, offset_mask, geometry, softmax):
    """The operator for arrays of one dtype."""
    shape = (*offset_mask.shape[:3], inputs.shape[3])
    run = jax.ffi.ffi_call(
        _NAME, jax.ShapeDtypeStruct(shape, inputs.dtype), vmap_method="broadcast_all"
    )
    return run(inputs, offset_mask, **_attributes(geometry, softmax))


def _forward(inputs, offset_mask, geometry, softmax):
    return call(inputs, offset_mask, geometry, softmax), (inputs, offset_mask)


def _backward(geometry, softmax, tensors, grad_output):
    run = jax.ffi.ffi_call(
        f"{_NAME}_backward",
        [jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for tensor in tensors],
        vmap_method="broadcast_all",
    )
    deterministic = "--xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", "")
    return run(grad_output, *tensors, **_attributes(geometry, softmax), deterministic=deterministic)


call.defvjp(_forward, _backward)


def _attributes(geometry, softmax):
    pairs = ("kernel_size", "strides", "padding", "dilation_rate")
    return {
        **{name: np.array(getattr(geometry, name), np.int64) for name in pairs},
        "groups": np.int64(geometry.groups),
        "offset_scale": np.float64(geometry.offset_scale),
        "remove_center": np.bool_(geometry.remove_center),
        "softmax": np.bool_(softmax),
    }
