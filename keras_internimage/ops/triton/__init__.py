"""DCNv3 as Triton kernels, for PyTorch on NVIDIA GPUs: neither nvcc nor a C++ compiler is needed.

Triton itself needs gcc or clang, once, for a small program in C that launches kernels. It comes
with PyTorch's builds for CUDA, and is imported when a GPU is there, or with `TRITON_INTERPRET=1`,
under which Triton computes on any device, slowly: for tests.

The operators are opaque to `torch.compile`, as those in C++ are. `torch.library.triton_op` would
have it look into them, but Inductor fuses nothing with a kernel that it did not write, and what it
makes of one can be neither interpreted nor tested without a GPU.
"""

import functools
import os
import subprocess

import torch

DTYPES = ("float32", "float16", "bfloat16")
# The oldest GPUs for which the tests compile the kernels.
CAPABILITY = (7, 5)


@torch.compiler.assume_constant_result
def interpreted():
    """Whether Triton interprets what it decorates."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(request=None):
    """None, or why the kernels cannot run the request."""
    if interpreted() and not (request is not None and request.named):
        return "TRITON_INTERPRET=1 has Triton interpret its kernels: only where they are named"
    # First, for looking at a GPU initialises CUDA, which forked processes must not do.
    device = None if request is None else request.device
    if device not in (None, "meta", "cuda") and not (device == "cpu" and interpreted()):
        return f"Triton's kernels are for NVIDIA GPUs, not for {device!r} devices"
    if request is not None and request.dtype not in DTYPES:
        return f"Triton's kernels compute {', '.join(DTYPES)}, not {request.dtype}"
    return _why_not_here(None if device != "cuda" else request.device_index)


@torch.compiler.assume_constant_result
def _why_not_here(index=None):
    """Why nothing can run on a GPU; what is imported is imported outside a trace."""
    if interpreted():
        return _load()
    return _why_not_on_gpu(index) or _load() or _why_no_launcher()


@functools.cache
def _why_not_on_gpu(index):
    """None if the GPU of an index can run the kernels; where none is told, the current one."""
    if torch.version.hip is not None:
        return "Triton's kernels are for NVIDIA GPUs, not for AMD's"
    if not torch.cuda.is_available():
        return "Triton's kernels are for NVIDIA GPUs, and PyTorch sees none"
    capability = torch.cuda.get_device_capability(index)
    if capability < CAPABILITY:
        wanted, found = (".".join(map(str, pair)) for pair in (CAPABILITY, capability))
        return f"Triton's kernels need a compute capability of {wanted}. Received: {found}"
    return None


@functools.cache
def _load():
    """Defines the operators; returns why not where Triton cannot be imported."""
    try:
        from keras_internimage.ops.triton import operators
    except ImportError as error:
        return f"Triton, which comes with PyTorch's builds for CUDA, cannot be imported: {error}"
    operators.define()
    return None


@functools.cache
def _why_no_launcher():
    """None if Triton has what launches its kernels: a C compiler makes it at the first use."""
    from triton.runtime import driver

    try:
        _ = driver.active.utils
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        return (
            "Triton must be able to build what launches its kernels, once, with gcc or clang and "
            f"Python's headers. Received: {error}"
        )
    return None


def call(inputs, offset_mask, geometry, softmax):
    """The operator for tensors of one dtype."""
    from keras_internimage.ops.triton import operators

    return operators.OPERATOR(inputs, offset_mask, geometry, softmax)
