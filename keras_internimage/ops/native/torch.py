"""The native DCNv3 in PyTorch: `torch.ops.keras_internimage.dcnv3` and its gradient.

The library defines the operators for CPU and CUDA; `operator_torch` adds what tracing and
differentiation need.
"""

import torch

from keras_internimage.ops.operator_torch import NAMESPACE, Operator

call = Operator("dcnv3")
_devices = {"cpu"}


def load(path):
    """Loads the binding's library and registers what belongs to the operators, once."""
    torch.ops.load_library(str(path))
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{call.name}", "CUDA"):
        _devices.add("cuda")
    call.register()


def why_not(request):
    """None, or why the kernels cannot run the request."""
    if request is None or request.device is None or request.device == "meta":
        return None
    if request.device not in _devices:
        return f"the library was built without kernels for {request.device!r} devices"
    if request.device == "cuda" and request.dtype == "float64":
        return "the CUDA kernels compute float32, float16 and bfloat16"
    return None
