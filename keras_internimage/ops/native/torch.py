"""The native kernels in PyTorch: `torch.ops.keras_internimage.dcnv3` and its gradient, and others.

The library defines the operators for CPU and CUDA; `operator_torch` adds what tracing and
differentiation need.
"""

import functools

import keras
import torch

from keras_internimage.ops.native import convolution_torch as convolution
from keras_internimage.ops.native import cuda
from keras_internimage.ops.native import detection_torch as detection
from keras_internimage.ops.operator_torch import NAMESPACE, Operator

call = Operator("dcnv3")


def load(path):
    """Loads the binding's library and registers what belongs to the operators, once."""
    torch.ops.load_library(str(path))
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{call.name}", "CUDA"):
        cuda.load(path)
    call.register()
    detection.register()
    convolution.register()


def why_not(request):
    """None, or why the kernels cannot run the request."""
    device = device_type() if request is None else request.device
    if request is not None and request.operator != "dcnv3":
        reason = detection.why_not()
        if reason is not None:
            return reason
    if device == "cuda":
        if request is None:
            return why_not_cuda()
        return cuda.refused(request) or why_not_cuda(request.device_index)
    if device not in (None, "meta", "cpu"):
        return f"the library was built without kernels for {device!r} devices"
    return None


def device_type():
    """Where Keras places tensors by itself: "cpu", "cuda", "mps" and so on."""
    return keras.ops.zeros(()).device.type


# While PyTorch traces, GPUs are asked outside the trace.
@torch.compiler.assume_constant_result
def why_not_cuda(index=None):
    """None, or why they cannot run on the GPU of an index; None: the current one."""
    return _why_not_cuda(index)


@functools.cache
def _why_not_cuda(index):
    return cuda.why_not("torch", lambda: [torch.cuda.get_device_capability(index)])
