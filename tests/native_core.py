"""The kernels' plain C interface from Python, without any framework."""

import ctypes

import numpy as np
import oracle

DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}


class Call(ctypes.Structure):
    """`dcnv3_call` of `dcnv3.h`."""

    _fields_ = [
        *[
            (name, ctypes.c_int32)
            for name in (
                "dtype kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w "
                "groups remove_center softmax"
            ).split()
        ],
        ("offset_scale", ctypes.c_double),
        *[
            (name, ctypes.c_int64)
            for name in "batch height width channels out_height out_width points".split()
        ],
    ]


class Regions(ctypes.Structure):
    """`dcnv3_regions` of `detection.h`."""

    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("levels", ctypes.c_int32),
        *[(name, ctypes.c_int64) for name in ("bins", "batch", "regions", "channels")],
        ("heights", ctypes.c_int64 * 16),
        ("widths", ctypes.c_int64 * 16),
        ("strides", ctypes.c_double * 16),
    ]


class Status(ctypes.Structure):
    """`dcnv3_status`."""

    _fields_ = [("code", ctypes.c_int32), ("message", ctypes.c_char * 252)]


class CoreError(ValueError):
    """A status other than success."""


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def run(core, name, *arguments):
    """Calls a function of the interface that returns a status."""
    function = getattr(core.library, f"dcnv3_{name}")
    function.restype = Status
    status = function(*arguments)
    if status.code:
        raise CoreError(status.message.decode())


class Core:
    """`libdcnv3_core`, with NumPy arrays."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        for name in ("prepare", "cpu_forward", "cpu_backward"):
            getattr(self.library, f"dcnv3_{name}").restype = Status
        self.library.dcnv3_cpu_backward_tasks.restype = ctypes.c_int64
        self.library.dcnv3_cpu_isa.restype = ctypes.c_char_p

    @property
    def isa(self):
        return self.library.dcnv3_cpu_isa().decode()

    def set_isa(self, isa):
        return bool(self.library.dcnv3_cpu_set_isa(isa.encode()))

    def call(self, inputs, offset_mask, dtype=None, mask_activation=None, **geometry):
        """A checked `Call` for the shapes of two arrays."""
        geometry = {
            "kernel_size": 3,
            "strides": 1,
            "padding": 1,
            "dilation_rate": 1,
            "offset_scale": 1.0,
            "remove_center": False,
            **geometry,
        }
        call = Call(
            dtype=DTYPES[dtype or str(inputs.dtype)],
            groups=geometry["groups"],
            remove_center=geometry["remove_center"],
            softmax=mask_activation == "softmax",
            offset_scale=geometry["offset_scale"],
        )
        for name, of in (
            ("kernel", "kernel_size"),
            ("stride", "strides"),
            ("pad", "padding"),
            ("dilation", "dilation_rate"),
        ):
            pair = geometry[of]
            pair = (pair, pair) if isinstance(pair, int) else pair
            setattr(call, f"{name}_h", pair[0])
            setattr(call, f"{name}_w", pair[1])
        shapes = [(ctypes.c_int64 * 4)(*a.shape) for a in (inputs, offset_mask)]
        self._check(self.library.dcnv3_prepare(ctypes.byref(call), *shapes))
        return call

    def forward(self, call, inputs, offset_mask, parts=1):
        """The output, computed in `parts` ranges of pixels, the last one first."""
        output = np.full(
            (call.batch, call.out_height, call.out_width, call.channels), 113, inputs.dtype
        )
        pixels = call.batch * call.out_height * call.out_width
        for begin, end in ranges(pixels, parts):
            self._check(
                self.library.dcnv3_cpu_forward(
                    ctypes.byref(call),
                    *map(pointer, (inputs, offset_mask, output)),
                    begin,
                    end,
                )
            )
        return output

    def backward(self, call, grad_output, inputs, offset_mask, parts=1):
        """The gradients of inputs and of offsets and masks."""
        grads = np.full_like(inputs, 113), np.full_like(offset_mask, 113)
        tasks = self.library.dcnv3_cpu_backward_tasks(ctypes.byref(call))
        for begin, end in ranges(tasks, parts):
            self._check(
                self.library.dcnv3_cpu_backward(
                    ctypes.byref(call),
                    *map(pointer, (grad_output, inputs, offset_mask, *grads)),
                    begin,
                    end,
                )
            )
        return grads

    @staticmethod
    def _check(status):
        if status.code:
            raise CoreError(status.message.decode())


def ranges(count, parts):
    """The bounds of `parts` ranges of `count` tasks, the last one first."""
    bounds = [count * part // parts for part in range(parts + 1)]
    pairs = list(zip(bounds[:-1], bounds[1:], strict=True))[::-1]
    return [(ctypes.c_int64(begin), ctypes.c_int64(end)) for begin, end in pairs]


def joined(offset, mask):
    """Offsets and masks as the kernels take them."""
    return np.ascontiguousarray(np.concatenate([offset, mask], axis=-1))


def expected(inputs, offset_mask, grad_output, **options):
    """Output and gradients by the oracle, for joined offsets and masks."""
    split = offset_mask.shape[-1] // 3 * 2
    offset, mask = offset_mask[..., :split], offset_mask[..., split:]
    output = oracle.forward(inputs, offset, mask, **options)
    d_inputs, d_offset, d_mask = oracle.gradients(inputs, offset, mask, grad_output, **options)
    return output, d_inputs, joined(d_offset, d_mask)
