"""What PyTorch asks of an operator on a GPU: memory layouts, streams, graphs, compilation."""

import importlib.util
import math

import numpy as np

from benchmarks.gpu import operator_calls
from benchmarks.gpu.correctness import SOFTMAX, NotHere


def checks(check):
    """Title to a function and its arguments, for a `correctness.Check`."""
    return {
        "views": (_views, check),
        "misaligned, float32": (_misaligned, check, "float32"),
        "misaligned, float16": (_misaligned, check, "float16"),
        "same bits in deterministic mode": (_deterministic, check),
        "torch.compile": (_compiled, check),
        "on another stream": (_stream, check),
        "CUDA graph": (_graph, check),
        "more than 2**31 numbers": (_large, check),
    }


def _views(check):
    """Arguments and the upstream gradient are not contiguous."""

    def wrap(function):
        def seen(inputs, offset_mask):
            inputs = inputs.transpose(1, 2).contiguous().transpose(1, 2)
            wide = offset_mask.repeat_interleave(2, dim=-1)
            return function(inputs, wide[..., ::2]).transpose(1, 2).contiguous().transpose(1, 2)

        return seen

    check.compare(SOFTMAX, operator_calls.arrays(**SOFTMAX), wrap=wrap)


def _misaligned(check, dtype):
    """Contiguous tensors whose memory begins one number behind an aligned address."""
    import torch

    def shifted(tensor):
        room = torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])
        return room[1:].view(tensor.shape)

    def wrap(function):
        return lambda *tensors: function(*map(shifted, tensors))

    check.compare(SOFTMAX, operator_calls.arrays(**SOFTMAX), dtype, wrap=wrap)


def _deterministic(check):
    import torch

    torch.use_deterministic_algorithms(True)
    try:
        check.same_bits()
    finally:
        torch.use_deterministic_algorithms(False)


def _compiled(check):
    import torch

    generates = not check.context.rehearsal and importlib.util.find_spec("triton")
    backend = "inductor" if generates else "aot_eager"  # which generates no code
    check.compare(
        SOFTMAX,
        operator_calls.arrays(**SOFTMAX),
        wrap=lambda function: torch.compile(function, fullgraph=True, backend=backend),
    )
    return f"backend {backend}"


class _Leaves:
    """Tensors on the device that get their values later, and what they are to become.

    `judge()` compares what was computed with the oracle: call it after the device is done.
    """

    def __init__(self, check):
        import torch

        self._check, self._torch = check, torch
        arrays = operator_calls.arrays(seed=5, **SOFTMAX)
        arrays = [*operator_calls.joined(arrays[:3]), arrays[3]]
        self.arrays = [np.asarray(a, "float32") for a in arrays]
        self._new = [torch.from_numpy(a).to(check.context.device) for a in self.arrays]
        *self.leaves, self._upstream = (torch.zeros_like(t) for t in self._new)
        for leaf in self.leaves:
            leaf.requires_grad_()
        self._function = operator_calls.operator(check.name, **SOFTMAX)

    def compute(self):
        output = self._function(*self.leaves)
        self._found = [output, *self._torch.autograd.grad(output, self.leaves, self._upstream)]

    def fill(self):
        with self._torch.no_grad():
            for tensor, new in zip([*self.leaves, self._upstream], self._new, strict=True):
                tensor.copy_(new)

    def rehearse(self):
        """Where there is no GPU: all but what is checked."""
        self.compute()
        self.fill()
        self.compute()
        self.judge()
        raise NotHere("only on a GPU")

    def judge(self):
        output, *grads = (t.detach().cpu().numpy() for t in self._found)
        self._check.judge(SOFTMAX, self.arrays[:2], self.arrays[2], output, grads)


def _stream(check):
    """The arguments get their values on a stream that is kept busy before: who computes on another
    stream finds zeros."""
    import torch

    leaves = _Leaves(check)
    if check.context.rehearsal:
        leaves.rehearse()
    leaves.compute()  # what is loaded and compiled now does not wait for the stream later
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        leaves.fill()
        leaves.compute()
    stream.synchronize()
    leaves.judge()


def _graph(check):
    """Captured with zeros, replayed with the values."""
    import torch

    leaves = _Leaves(check)
    if check.context.rehearsal:
        leaves.rehearse()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            leaves.compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        leaves.compute()
    leaves.fill()
    graph.replay()
    torch.cuda.synchronize()
    leaves.judge()


def _large(check):
    """The last image of a batch whose tensors have more than 2**31 numbers, next to it alone."""
    import torch

    if check.context.rehearsal:
        _compare_last_images(check, 3, 4, 8)
        raise NotHere("only on a GPU")
    if check.name == "portable":
        raise NotHere("it would take more memory than a GPU has")
    needed = 48 * 2**30
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    if free < needed:
        raise NotHere(
            f"it takes {needed / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} are free"
        )
    size, channels = 64, 128
    batch = math.ceil((2**31 + 1) / (size * size * channels))
    _may_run(check, (batch, size, size, channels))
    try:
        _compare_last_images(check, batch, size, channels)
    finally:
        torch.cuda.empty_cache()


def _may_run(check, shape):
    from keras_internimage.ops import DCNv3Geometry, dispatch

    request = dispatch.Request(
        backend="torch",
        geometry=DCNv3Geometry(),
        dtype="float16",
        input_shape=shape,
        mask_activation="softmax",
        device="cuda",
    )
    chosen = next(i for i in dispatch.candidates("torch") if i.name == check.name)
    reason = chosen.why_not(request)
    if reason is not None:
        raise NotHere(reason)


def _compare_last_images(check, batch, size, channels):
    import torch

    function = operator_calls.operator(check.name, groups=1, mask_activation="softmax")
    shapes = [(batch, size, size, last) for last in (channels, 27, channels)]
    kind = {"dtype": torch.float16, "device": check.context.device}
    *tensors, upstream = (torch.zeros(shape, **kind) for shape in shapes)
    for tensor in (*tensors, upstream):
        tensor[-1].normal_()
    alone = [t[-1:].clone().requires_grad_() for t in tensors]
    output = function(*alone)
    expected = [output.detach(), *torch.autograd.grad(output, alone, upstream[-1:])]
    leaves = [t.requires_grad_() for t in tensors]
    output = function(*leaves)
    found = [output.detach(), *torch.autograd.grad(output, leaves, upstream)]
    for what, one, many in zip(("output", "inputs", "offsets"), expected, found, strict=True):
        difference = (one[0].float() - many[-1].float()).abs().max() / one.float().abs().max()
        if not difference < 2e-3:
            raise AssertionError(
                f"the last image must be as alone. Received: {what} off by {difference}"
            )
        if not torch.isfinite(many[0]).all():
            raise AssertionError(f"the first image must be finite. Received: {what} is not")
