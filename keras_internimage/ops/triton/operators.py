"""`torch.ops.keras_internimage.dcnv3_triton` and its gradient: checks, and launches of the kernels.

Importing this module imports Triton.
"""

import contextlib
import dataclasses
import functools
import types

import torch
import triton

from keras_internimage.ops.operator_torch import ARGUMENTS, NAMESPACE, Operator, geometry_of
from keras_internimage.ops.portable import torch as portable_torch
from keras_internimage.ops.triton import kernels

OPERATOR = Operator("dcnv3_triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

VECTOR = 16  # bytes that a lane reads at once: the most that there is
UNROLLED = 9  # points; more are a loop, or the code and the time to compile it grow with them
STEP = 5  # of such a loop at most; longer ones lack registers on older GPUs
WARPS = 4
# With fewer programs than this, smaller ones leave fewer multiprocessors idle: an H100 has 132.
MANY = 1024
# Numbers of a lane's share in what is kept of all points. More would not fit its registers.
KEPT = 16
# From here on indices have 64 bits. The last program counts a little further than the samples.
WIDE = 2**31 - 2**16


def define():
    """Defines the operators, once."""
    name = f"{NAMESPACE}::{OPERATOR.name}"
    torch.library.define(name, f"({ARGUMENTS}) -> Tensor")
    torch.library.define(
        f"{name}_backward",
        f"(Tensor grad_output, {ARGUMENTS}, bool deterministic) -> (Tensor, Tensor)",
    )
    # Triton decides about that where it decorates the kernels.
    compiled = isinstance(kernels.forward_kernel, triton.runtime.JITFunction)
    devices = ["cuda"] if compiled else ["cuda", "cpu"]
    torch.library.impl(name, devices, forward)
    torch.library.impl(f"{name}_backward", devices, backward)
    OPERATOR.register()


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the samples are given to programs: `block` of them to one, of `warps` warps.

    So many that each lane has one vector, the numbers that it reads at once. `lanes` and `taps` are
    the channels of a group and its points, rounded up to a power of two as Triton asks.
    """

    block: int
    lanes: int
    taps: int
    warps: int

    @classmethod
    def forward(cls, samples, depth, points, itemsize):
        for warps in (WARPS, 1):
            plan = cls._of(depth, points, VECTOR // itemsize, warps)
            if samples >= MANY * plan.block:
                break
        return plan

    @classmethod
    def backward(cls, depth, points, capability):
        """The vector is that of a float32, whatever the inputs: so atomic additions find their
        numbers in the lanes that add them. Before compute capability 9 they add one number at a
        time, and a lane's numbers change places first; one warp needs no barriers for that.
        """
        plan = cls._of(depth, points, VECTOR // 4, WARPS if capability >= (9, 0) else 1)
        block = max(1, 32 * plan.warps * KEPT // plan.taps)
        return plan if plan.block <= block else dataclasses.replace(plan, block=block)

    @classmethod
    @functools.lru_cache(256)
    def _of(cls, depth, points, vector, warps):
        lanes = triton.next_power_of_2(depth)
        vector = min(vector, depth & -depth)  # what does not divide the depth is not aligned
        while 64 * warps * vector < lanes and warps < 16:  # a row alone fills more warps
            warps *= 2
        block = max(1, 32 * warps * vector // lanes)
        return cls(block, lanes, triton.next_power_of_2(points), warps)


@functools.lru_cache(256)
def constants(geometry, depth, softmax, wide):
    """The kernels' constants but for the plan's, a mapping that is kept."""
    (start_y, start_x), (center_y, center_x) = (
        [c - p for c, p in zip(geometry.center, geometry.padding, strict=True)],
        geometry.center,
    )
    rows, columns = geometry.kernel_size
    found = {
        "ROWS": rows,
        # Points from here on are one further; none without a removed one.
        "MIDDLE": rows * columns // 2 if geometry.remove_center else rows * columns,
        "STRIDE_Y": geometry.strides[0],
        "STRIDE_X": geometry.strides[1],
        "START_Y": start_y,
        "START_X": start_x,
        "DILATION_Y": geometry.dilation_rate[0],
        "DILATION_X": geometry.dilation_rate[1],
        "CENTER_Y": center_y,
        "CENTER_X": center_x,
        "SCALE": geometry.offset_scale,
        "GROUPS": geometry.groups,
        "DEPTH": depth,
        "POINTS": geometry.points,
        "SOFTMAX": softmax,
        "UNROLL": _step(geometry.points),
        "WIDE": wide,
    }
    return types.MappingProxyType(found)


def _step(points):
    """How many points the kernels' loops unroll."""
    if points <= UNROLLED:
        return points
    return max(n for n in range(1, STEP + 1) if points % n == 0)


@functools.lru_cache(256)
def _geometry(*values):
    return geometry_of(values)


def _prepare(arguments):
    """The geometry, and what follows it; checking one anew takes longer than a launch."""
    *values, softmax = (tuple(a) if isinstance(a, list) else a for a in arguments)
    return _geometry(*values), softmax


def forward(inputs, offset_mask, *arguments):
    """The operator for tensors of one dtype."""
    geometry, softmax = _prepare(arguments)
    shape = _check(inputs, offset_mask, geometry)
    inputs, offset_mask = inputs.contiguous(), offset_mask.contiguous()
    outputs = inputs.new_empty(shape)
    depth = shape[3] // geometry.groups
    samples = outputs.numel() // depth
    if samples:
        plan = Plan.forward(samples, depth, geometry.points, inputs.element_size())
        _launch(
            kernels.forward_kernel,
            (inputs, offset_mask, outputs),
            (samples, *inputs.shape[1:3], *shape[1:3]),
            plan,
            **constants(geometry, depth, softmax, _wide(inputs, offset_mask, outputs)),
        )
    return outputs


def backward(grad_output, inputs, offset_mask, *arguments):
    """The gradients by `inputs` and `offset_mask`."""
    *arguments, deterministic = arguments
    geometry, softmax = _prepare(arguments)
    shape = _check(inputs, offset_mask, geometry)
    if grad_output.shape != shape or grad_output.dtype != inputs.dtype:
        raise ValueError(
            f"`grad_output` must have the shape {shape} and the dtype {inputs.dtype}. "
            f"Received: grad_output.shape={tuple(grad_output.shape)}, "
            f"grad_output.dtype={grad_output.dtype}"
        )
    tensors = [t.contiguous() for t in (grad_output, inputs, offset_mask)]
    if deterministic:
        return _deterministic(*tensors, geometry, softmax)
    grad_output, inputs, offset_mask = tensors
    grad_inputs = torch.zeros_like(inputs, dtype=torch.float32)
    grad_offset_mask = torch.empty_like(offset_mask)
    depth = shape[3] // geometry.groups
    samples = grad_output.numel() // depth
    if samples:
        plan = Plan.backward(depth, geometry.points, _capability(inputs))
        _launch(
            kernels.backward_kernel,
            (grad_output, inputs, offset_mask, grad_inputs, grad_offset_mask),
            (samples, *inputs.shape[1:3], *shape[1:3]),
            plan,
            TAPS=plan.taps,
            **constants(geometry, depth, softmax, _wide(inputs, offset_mask, grad_output)),
        )
    return grad_inputs.to(inputs.dtype), grad_offset_mask


def _deterministic(grad_output, inputs, offset_mask, geometry, softmax):
    """By the portable implementation, as atomic additions have no order."""
    wide = [t.float() for t in (grad_output, inputs, offset_mask)]
    grad_output, wide_inputs, wide_offset_mask = wide
    split = 2 * geometry.groups * geometry.points
    grad_inputs, *grads = portable_torch.gradient(
        grad_output,
        wide_inputs,
        wide_offset_mask[..., :split],
        wide_offset_mask[..., split:],
        geometry,
        "softmax" if softmax else None,
    )
    return grad_inputs.to(inputs.dtype), torch.cat(grads, -1).to(inputs.dtype)


def _launch(kernel, tensors, sizes, plan, **options):
    grid = (triton.cdiv(sizes[0], plan.block),)
    device = tensors[0].device
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with current:
        kernel[grid](
            *tensors,
            *sizes,
            **options,
            BLOCK=plan.block,
            LANES=plan.lanes,
            num_warps=plan.warps,
            enable_fp_fusion=True,
        )


def _wide(*tensors):
    return max(tensor.numel() for tensor in tensors) >= WIDE


def _capability(tensor):
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (0, 0)


def _check(inputs, offset_mask, geometry):
    """Raises unless the tensors are as they should; returns the output's shape."""
    if inputs.dtype not in DTYPES or offset_mask.dtype != inputs.dtype:
        raise ValueError(
            f"`inputs` and `offset_mask` must have one dtype of {DTYPES}. "
            f"Received: inputs.dtype={inputs.dtype}, offset_mask.dtype={offset_mask.dtype}"
        )
    if inputs.device != offset_mask.device:
        raise ValueError(
            "`inputs` and `offset_mask` must be on one device. "
            f"Received: inputs.device={inputs.device}, offset_mask.device={offset_mask.device}"
        )
    if inputs.dim() != 4 or inputs.shape[3] == 0 or inputs.shape[3] % geometry.groups:
        raise ValueError(
            "`inputs` must be (N, H, W, C) with a multiple of `groups` as C. "
            f"Received: inputs.shape={tuple(inputs.shape)}, groups={geometry.groups}"
        )
    shape = (inputs.shape[0], *geometry.output_size(*inputs.shape[1:3]))
    expected = (*shape, 3 * geometry.groups * geometry.points)
    if tuple(offset_mask.shape) != expected:
        raise ValueError(
            "`offset_mask` must have the shape (N, Ho, Wo, groups * points * 3) = "
            f"{expected}. Received: offset_mask.shape={tuple(offset_mask.shape)}"
        )
    return *shape, inputs.shape[3]
