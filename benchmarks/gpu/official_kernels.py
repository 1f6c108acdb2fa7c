"""The official kernels' algorithm (`official.cu`) for arrays, and for tensors of PyTorch.

Beside them the floor: the time to move as many bytes as a call must read and write, which is that
of copying half of them.
"""

import ctypes
import functools
import math
import pathlib

import numpy as np

SOURCE = pathlib.Path(__file__).with_name("official.cu")
THREADS = 256  # of a block, forward
DTYPES = ("float16", "float32")
_PAIRS = ("kernel_size", "strides", "padding", "dilation_rate")


@functools.cache
def driver(device):
    """The `Driver` of this process, or in a rehearsal what stands for it."""
    if device == "cpu":
        from benchmarks.gpu.emulated import EmulatedDriver

        return EmulatedDriver(SOURCE)
    from benchmarks.gpu.driver import Driver

    return Driver(SOURCE)


class _Sizes(ctypes.Structure):
    """`Sizes` of official.cu."""

    _fields_ = [
        *(
            (name, ctypes.c_int)
            for name in ("batch", "height", "width", "channels", "out_height", "out_width")
        ),
        ("groups", ctypes.c_int),
        *((f"{name}_{axis}", ctypes.c_int) for name in _PAIRS for axis in "hw"),
        ("scale", ctypes.c_float),
    ]


def _sizes(shape, geometry):
    if geometry.remove_center:
        raise ValueError("The official kernels here have all points. Received: remove_center=True")
    out = geometry.output_size(*shape[1:3])
    largest = shape[0] * max(
        math.prod(shape[1:]), math.prod(out) * max(shape[3], 2 * geometry.groups * geometry.points)
    )
    if largest >= 2**31:
        raise ValueError(f"Tensors must have less than 2**31 numbers. Received: {largest}")
    pairs = [number for name in _PAIRS for number in getattr(geometry, name)]
    return _Sizes(*shape, *out, geometry.groups, *pairs, geometry.offset_scale)


class Kernels:
    """The launches for one geometry, shape and dtype, on addresses.

    Args:
        device: "cuda", or "cpu" in a rehearsal.
        shape: of the inputs, `(N, H, W, C)`.
        geometry: a `DCNv3Geometry`.
        dtype: one of `DTYPES`.
    """

    def __init__(self, device, shape, geometry, dtype):
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {DTYPES}. Received: dtype={dtype!r}")
        self.driver, self.dtype = driver(device), dtype
        self._size = _sizes(shape, geometry)
        pixels = shape[0] * self._size.out_height * self._size.out_width
        self.outputs, self.inputs = pixels * shape[3], math.prod(shape)
        self.points = pixels * geometry.groups * geometry.points
        self._sites = pixels * geometry.groups
        self._depth = shape[3] // geometry.groups

    def forward(self, inputs, offset, mask, output, stream=None):
        addresses = map(ctypes.c_void_p, (inputs, offset, mask, output))
        blocks = -(-self.outputs // THREADS)
        name = f"forward_{self.dtype}"
        self.driver.launch(name, blocks, THREADS, 0, [self._size, *addresses], stream)

    def backward(self, grad_output, inputs, offset, mask, sums, grads, stream=None):
        """`sums` are float32 of the inputs' size; `grads` of inputs, offset, mask. In float32, the
        sums are the gradient of the inputs, and their address is the same."""
        self.driver.zero(sums, self.inputs, stream)
        tensors = (grad_output, inputs, offset, mask, sums, *grads[1:])
        self.driver.launch(
            f"backward_{self.dtype}",
            self._sites,
            self._depth,
            3 * 4 * self._depth,
            [self._size, *map(ctypes.c_void_p, tensors)],
            stream,
        )
        if self.dtype == "float16":
            arguments = [
                ctypes.c_void_p(sums),
                ctypes.c_void_p(grads[0]),
                ctypes.c_int(self.inputs),
            ]
            blocks = -(-self.inputs // THREADS)
            self.driver.launch("round_to_float16", blocks, THREADS, 0, arguments, stream)


class OnArrays:
    """The kernels and the floor on memory of their own, with an operator's arguments in it.

    Args:
        device, geometry, dtype: as for `Kernels`.
        inputs, offset, mask, grad_output: arrays; masks are normalised already.
    """

    def __init__(self, device, geometry, dtype, inputs, offset, mask, grad_output):
        self._kernels = Kernels(device, inputs.shape, geometry, dtype)
        self._driver, self._dtype = self._kernels.driver, dtype
        self._shapes = [inputs.shape, offset.shape, mask.shape]
        self._output_shape = grad_output.shape
        self._addresses = []
        self._arguments = [self._new(a.size, a) for a in (inputs, offset, mask)]
        self._upstream = self._new(grad_output.size, grad_output)
        self._output = self._new(grad_output.size)
        self._grads = [self._new(a.size) for a in (inputs, offset, mask)]
        self._sums = self._grads[0] if dtype == "float32" else self._new(2 * inputs.size)
        size = np.dtype(dtype).itemsize
        read = size * (inputs.size + offset.size + mask.size)
        self.bytes = {
            "forward": read + size * grad_output.size,
            "backward": 2 * read + size * grad_output.size,
        }
        # Of the largest floor: what is read, and what is written.
        self._source, self._target = (
            self._new(self.bytes["backward"] // size // 2 + 1) for _ in range(2)
        )

    def _new(self, count, array=None):
        address = self._driver.allocate(count * np.dtype(self._dtype).itemsize)
        self._addresses.append(address)
        if array is not None:
            self._driver.upload(address, np.ascontiguousarray(array, self._dtype))
        return address

    def close(self):
        for address in self._addresses:
            self._driver.free(address)
        self._addresses = []

    def run(self, kind):
        """Enqueues the `forward` or the `backward` pass."""
        if kind == "forward":
            self._kernels.forward(*self._arguments, self._output)
        else:
            self._kernels.backward(self._upstream, *self._arguments, self._sums, self._grads)

    def run_floor(self, kind):
        """Enqueues a copy that reads and writes as many bytes as the pass."""
        self._driver.copy(self._target, self._source, self.bytes[kind] // 2)

    def seconds(self, kind, floor=False):
        """A function of `repeat`: seconds of one pass, or of its floor."""
        run = self.run_floor if floor else self.run
        return lambda repeat: self._driver.seconds(lambda: run(kind), repeat)

    def results(self, kind):
        """The output, or the gradients of inputs, offset and mask, as float64 arrays."""
        self.run(kind)
        found = [(self._output, self._output_shape)]
        if kind == "backward":
            found = list(zip(self._grads, self._shapes, strict=True))
        arrays = [np.empty(shape, self._dtype) for _, shape in found]
        for (address, _), array in zip(found, arrays, strict=True):
            self._driver.download(address, array)
        return [array.astype("float64") for array in arrays]


def torch_operator(device):
    """The operator as the official model calls it: `(inputs, offset, mask, groups, offset_scale)`,
    for tensors of PyTorch, with gradients."""
    import torch

    from keras_internimage.ops import DCNv3Geometry

    def stream():
        return torch.cuda.current_stream().cuda_stream if device == "cuda" else None

    def pointers(*tensors):
        return [t.data_ptr() for t in tensors]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs, offset, mask, geometry):
            dtype = str(inputs.dtype).removeprefix("torch.")
            kernels = Kernels(device, tuple(inputs.shape), geometry, dtype)
            output = torch.empty(
                (*offset.shape[:3], inputs.shape[3]), dtype=inputs.dtype, device=inputs.device
            )
            kernels.forward(*pointers(inputs, offset, mask, output), stream())
            ctx.kernels = kernels
            ctx.save_for_backward(inputs, offset, mask)
            return output

        @staticmethod
        def backward(ctx, grad_output):
            tensors = ctx.saved_tensors
            grads = [torch.empty_like(t) for t in tensors]
            sums = grads[0]
            if sums.dtype != torch.float32:
                sums = torch.empty_like(sums, dtype=torch.float32)
            places = pointers(grad_output.contiguous(), *tensors, sums)
            ctx.kernels.backward(*places, pointers(*grads), stream())
            return *grads, None

    def operator(inputs, offset, mask, groups, offset_scale=1.0):
        geometry = DCNv3Geometry(groups=groups, offset_scale=offset_scale)
        # Under autocast the softmax gives float32.
        tensors = [t.to(inputs.dtype).contiguous() for t in (inputs, offset, mask)]
        return Function.apply(*tensors, geometry)

    return operator
