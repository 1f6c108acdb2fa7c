"""Whether the native kernels run on a GPU: its compute capability and its driver decide.

The library with the CUDA kernels tells which code it holds and which driver it meets. So what would
be an error in the middle of a call is a reason to take the next implementation.
"""

import ctypes
import dataclasses
import functools
import re


@dataclasses.dataclass(frozen=True)
class Library:
    """What a library with CUDA kernels holds and meets.

    Attributes:
        code: compute capabilities whose machine code it holds, such as `(7, 5)`.
        ptx: the one of its PTX, which a driver compiles for later GPUs.
        runtime: its version of CUDA, `(13, 0)`.
        driver: the latest version of CUDA that the driver supports; None where there is none.
    """

    code: tuple
    ptx: tuple
    runtime: tuple
    driver: tuple | None

    def why_not(self, capability):
        """None, or why its kernels cannot run on GPUs of a compute capability."""
        from keras_internimage.custom_ops import build

        made = f"The kernels were compiled by CUDA {_dotted(self.runtime)}"
        rebuild = f"`{build.COMMAND} build --cuda` with an nvcc of an older CUDA"
        if self.driver is None:
            return f"{made}, and there is no NVIDIA driver"
        if self.driver[0] < self.runtime[0]:
            return (
                f"{made}, and the driver supports CUDA {_dotted(self.driver)} at most: a newer "
                f"driver is needed, or {rebuild}"
            )
        # Machine code runs on GPUs of the same major version from its minor one on.
        if any(code[0] == capability[0] and code <= capability for code in self.code):
            return None
        here = f"this GPU's compute capability is {_dotted(capability)}"
        if capability < self.ptx:
            known = ", ".join(map(_dotted, self.code))
            return f"The kernels were compiled for the compute capabilities {known}; {here}"
        if self.driver < self.runtime:
            return (
                f"{made}; {here}, for which the driver compiles them, and it supports CUDA "
                f"{_dotted(self.driver)} at most: a newer driver is needed, or {rebuild}"
            )
        return None


def _dotted(pair):
    return "{}.{}".format(*pair)


def read(path):
    """The `Library` in a file.

    Raises:
        OSError: it is none, or one of another version of this package.
    """
    functions = ctypes.CDLL(str(path))
    try:
        functions.dcnv3_cuda_code.restype = ctypes.c_char_p
        told = functions.dcnv3_cuda_code().decode()
        runtime, driver = (
            divmod(getattr(functions, f"dcnv3_cuda_{of}_version")() // 10, 100)
            for of in ("runtime", "driver")
        )
    except AttributeError as error:
        raise OSError(f"{path} is of another version of keras_internimage: {error}") from error
    *code, ptx = [divmod(int(number), 10) for number in re.findall(r"_(\d+)", told)]
    return Library(tuple(code), ptx, runtime, driver if driver > (0, 0) else None)


def refused(request):
    """None, or why the kernels cannot run a `dispatch.Request` on any GPU."""
    if request.operator not in ("dcnv3", "roi_align"):
        return "the CUDA kernels compute DCNv3 and RoIAlign; suppression is portable on GPUs"
    if request.dtype == "float64":
        return "the CUDA kernels compute float32, float16 and bfloat16"
    return None


_loaded: dict[str, Library] = {}


def load(binding):
    """Takes in what the library beside a binding tells, which has the binding's CUDA kernels."""
    from keras_internimage.custom_ops import build

    _loaded["library"] = read(binding.parent / build.libraries.CUDA_CORE)


def why_not(backend, capabilities):
    """None, or why the kernels cannot run on some GPUs, all of them.

    Args:
        backend: which framework's kernels.
        capabilities: a function that returns the GPUs' compute capabilities.
    """
    if not _loaded:
        return _missing(backend)
    reasons = (_loaded["library"].why_not(capability) for capability in capabilities())
    return next(filter(None, reasons), None)


@functools.cache
def _missing(backend):
    from keras_internimage.custom_ops import build

    reason = build.why_no_cuda(backend) or f"the installed {backend} is built without CUDA"
    return f"the library was built without kernels for 'cuda' devices: {reason}"
