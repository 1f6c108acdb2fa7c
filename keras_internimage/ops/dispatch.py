"""Which code computes DCNv3: the implementations, in order of preference, and the choice.

An implementation is an object with a `name`, a one-line `description`, `why_not(request)`,
which is None where it can run and otherwise the reason why it cannot, and
`run(inputs, offset, mask, geometry, mask_activation)`; `mask` is None where `offset` holds the
masks behind the offsets. That one predicate makes the choice,
explains it (`table()`) and raises.
"""

import dataclasses
import importlib

import keras

from keras_internimage.ops import portable, tracing
from keras_internimage.ops.geometry import DCNv3Geometry
from keras_internimage.ops.native import Native, run_joined, tell_slow_gpu


@dataclasses.dataclass(frozen=True)
class Request:
    """What an implementation needs to know of a call in order to say whether it can run it.

    `operator` is "dcnv3" or as in `native_kernels`; geometry and activation are of the first alone.
    `input_shape` is `(N, H, W, C)`; a size is None where it is not known while tracing. `device` is
    "cpu", "cuda", "tpu" or another type of device, None where nothing is known of it;
    `device_index` tells which of that type, None where that is not known. `named` says that the
    implementation was asked for by its name.
    """

    backend: str
    geometry: DCNv3Geometry | None = None
    dtype: str = "float32"
    input_shape: tuple = (None, None, None, None)
    mask_activation: str | None = None
    device: str | None = None
    device_index: int | None = None
    named: bool = False
    operator: str = "dcnv3"


class Portable:
    """The implementation made of `keras.ops`: any backend, any device, never refuses."""

    name = "portable"
    description = "keras.ops and the backend's own gathers; every backend and device"
    backends = ("tensorflow", "jax", "torch")

    def why_not(self, request=None):
        return None

    def run(self, inputs, offset, mask, geometry, mask_activation):
        return portable.dcnv3(inputs, offset, mask, geometry, mask_activation)


class Pallas:
    """The Pallas kernels, for JAX on GPUs where the native ones are not built."""

    name = "pallas"
    description = "Pallas kernels for NVIDIA GPUs, compiled by JAX"
    backends = ("jax",)

    def why_not(self, request=None):
        from keras_internimage.ops import pallas

        return pallas.why_not(request)

    def run(self, *arguments):
        from keras_internimage.ops import pallas

        return run_joined(pallas.call, *arguments)


class Triton:
    """The Triton kernels, for PyTorch on GPUs where the native ones are not built."""

    name = "triton"
    description = "Triton kernels for NVIDIA GPUs, compiled by Triton"
    backends = ("torch",)

    def why_not(self, request=None):
        from keras_internimage.ops import triton

        return triton.why_not(request)

    def run(self, *arguments):
        from keras_internimage.ops import triton

        return run_joined(triton.call, *arguments)


class DeformConv:
    """For exporters that know a standard deformable convolution; see `tracing.operators`."""

    def run(self, *arguments):
        from keras_internimage.ops import deform_conv

        return deform_conv.dcnv3(*arguments)


# In order of preference: the first that can run is taken. The last one always can.
IMPLEMENTATIONS: list[Native | Pallas | Triton | Portable] = [
    Native(),
    Pallas(),
    Triton(),
    Portable(),
]


def names() -> list[str]:
    """The names `implementation=` accepts."""
    return [implementation.name for implementation in IMPLEMENTATIONS]


def check_name(implementation: str | None) -> None:
    """Raises ValueError unless `implementation` is None or a known name."""
    if implementation is not None and implementation not in names():
        raise ValueError(
            f"`implementation` must be None or one of {names()}. "
            f"Received: implementation={implementation!r}"
        )


def candidates(backend=None):
    """Implementations written for `backend` (default: the current one), preferred first."""
    backend = backend or keras.backend.backend()
    return [i for i in IMPLEMENTATIONS if backend in i.backends]


def device_of(tensor):
    """The type of device that computes with `tensor`, as `Request.device` names it."""
    if keras.backend.backend() == "torch":
        return tensor.device.type
    if keras.backend.backend() == "jax":
        return importlib.import_module("keras_internimage.ops.native.jax").device_type(tensor)
    return importlib.import_module("keras_internimage.ops.portable.tensorflow").device_type()


def device_index_of(tensor):
    """Which device of its type computes with `tensor`, None where that is not known."""
    return tensor.device.index if keras.backend.backend() == "torch" else None


def devices() -> list[str]:
    """Names of the devices that the current backend may compute on: "cuda:0", "cpu" and so on."""
    if keras.backend.backend() != "torch":
        return keras.distribution.list_devices()
    import torch

    usual = device_of(keras.ops.zeros(()))
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return list(dict.fromkeys([*found, *([] if usual == "cuda" else [usual]), "cpu"]))


def select(request, implementation=None):
    """The implementation which runs `request`.

    Args:
        request: A `Request`.
        implementation: None for the first candidate that can run, or a name, which is an
            order: that one, or an error saying what it lacks. What is exported is portable
            in either case; see `tracing`.

    Raises:
        ValueError: If the name is unknown.
        RuntimeError: If the named implementation cannot run the request, or none is written for
            the backend.
    """
    check_name(implementation)
    available = candidates(request.backend)
    if not available:
        known = sorted({name for i in IMPLEMENTATIONS for name in i.backends})
        raise RuntimeError(
            f"Keras' backend must be one of {known}. Received: backend={request.backend!r}"
        )
    required = tracing.required_implementation()
    if required == "deform_conv":
        return DeformConv()
    implementation = required or implementation
    if implementation is None:
        chosen = next(i for i in available if i.why_not(request) is None)
        if chosen.name == "portable" and request.device == "cuda":
            tell_slow_gpu(request.device_index, request.dtype)
        return chosen
    chosen = next((i for i in available if i.name == implementation), None)
    if chosen is None:
        raise RuntimeError(
            f"The {implementation!r} implementation of DCNv3 does not support this backend. "
            f"Received: backend={request.backend!r}"
        )
    reason = chosen.why_not(dataclasses.replace(request, named=True))
    if reason is not None:
        raise RuntimeError(f"The {implementation!r} implementation of DCNv3 cannot run: {reason}")
    return chosen


def native_kernels(operator, tensor, implementation=None):
    """The module with a native operator other than DCNv3, None where the portable one has to run.

    Args:
        operator: "roi_align", "nms" or "convolution".
        tensor: one that they compute with, which tells device and type.
        implementation: None for the kernels where they can run, "native" or "portable".

    Raises:
        ValueError: `implementation` is another name.
        RuntimeError: it is "native", and the kernels cannot run.
    """
    if implementation not in (None, "native", "portable"):
        raise ValueError(
            "`implementation` must be None, 'native' or 'portable'. "
            f"Received: implementation={implementation!r}"
        )
    if implementation == "portable" or tracing.required_implementation() is not None:
        return None
    if isinstance(tensor, keras.KerasTensor):
        return None
    native = next((i for i in IMPLEMENTATIONS if isinstance(i, Native)), None)
    request = Request(
        backend=keras.backend.backend(),
        dtype=keras.backend.standardize_dtype(tensor.dtype),
        device=device_of(tensor),
        device_index=device_index_of(tensor),
        named=implementation is not None,
        operator=operator,
    )
    if native is None or request.backend not in native.backends:
        reason = f"there are no kernels for the {request.backend} backend"
    else:
        reason = native.why_not(request)
        if reason is None:
            return native.module_of(operator)
    if implementation == "native":
        raise RuntimeError(f"The 'native' implementation of {operator} cannot run: {reason}")
    return None


def runs(name: str) -> bool:
    """Whether the implementation of this name can run on the current backend and machine."""
    return any(i.name == name and i.why_not(None) is None for i in candidates())


def table(backend: str | None = None, device: str | None = None) -> list[tuple]:
    """Rows `(name, backends, runs, reason)` of all implementations, preferred first.

    `backends` is a comma-separated string, `runs` says whether the implementation can run on
    `backend` (default: the current one) and `device` (one of `devices()`; default: the one that
    computes where nothing is said), `reason` why not, or else what it is.
    """
    backend = backend or keras.backend.backend()
    request = None if device is None else _plain_request(backend, device)
    rows = []
    for implementation in IMPLEMENTATIONS:
        if backend in implementation.backends:
            reason = implementation.why_not(request)
        else:
            reason = f"not written for the {backend} backend"
        rows.append(
            (
                implementation.name,
                ", ".join(implementation.backends),
                reason is None,
                reason or implementation.description,
            )
        )
    return rows


def _plain_request(backend, device):
    kind, _, index = device.partition(":")
    return Request(
        backend=backend,
        geometry=DCNv3Geometry(),
        device="cuda" if kind == "gpu" else kind,
        device_index=int(index) if index.isdigit() else None,
    )
