"""Whether a built library loads in its framework, and for which devices it registers kernels.

It is asked in a process of its own, for a library is loaded once, and what crashes there does no
harm here. That process runs this file alone. No GPU and no driver are needed.
"""

import ctypes
import subprocess
import sys

OPERATOR = "KerasInternimageDcnv3"


def check(backend, path, wanted):
    """Raises unless a library loads and registers kernels.

    Args:
        backend: the framework that the library binds.
        path: of the library.
        wanted: the devices of the kernels, some of "cpu" and "cuda".

    Raises:
        KernelsUnavailable: it does not load, or lacks kernels.
    """
    from .toolchain import LAST_LINES, KernelsUnavailable

    # -P, because the folders beside this file have the frameworks' names.
    result = subprocess.run(
        [sys.executable, "-P", __file__, backend, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = result.stdout.rstrip().splitlines()
    registered = lines[-1].split() if result.returncode == 0 and lines else []
    if not set(wanted) <= set(registered):
        told = [f"  {line}" for line in lines[-LAST_LINES:]]
        first = (
            f"The library must load in {backend} and register kernels for {' and '.join(wanted)}. "
            f"Received: {path}, exit status {result.returncode}:"
        )
        raise KernelsUnavailable("\n".join([first, *told]))


def _torch(path):
    import torch

    torch.ops.load_library(path)
    for device in ("cpu", "cuda"):
        names = ("keras_internimage::dcnv3", "keras_internimage::dcnv3_backward")
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        if all(has(name, device.upper()) for name in names):
            yield device


def _tensorflow(path):
    import tensorflow as tf
    from tensorflow.python.framework import kernels

    tf.load_op_library(path)
    for device, name in (("cpu", "CPU"), ("cuda", "GPU")):
        kinds = [
            {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(each).kernel}
            for each in (OPERATOR, f"{OPERATOR}Backward")
        ]
        if all(name in registered for registered in kinds):
            yield device


def _jax(path):
    import jax

    library = ctypes.CDLL(path)
    for device in ("cpu", "cuda"):
        names = [f"keras_internimage_dcnv3{part}_{device}" for part in ("", "_backward")]
        if all(hasattr(library, name) for name in names):
            for name in names:
                handler = jax.ffi.pycapsule(getattr(library, name))
                jax.ffi.register_ffi_target(
                    name, handler, platform={"cpu": "cpu", "cuda": "CUDA"}[device]
                )
            yield device


if __name__ == "__main__":
    find = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}[sys.argv[1]]
    print(*find(sys.argv[2]))
