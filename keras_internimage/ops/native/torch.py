"""The native DCNv3 in PyTorch: `torch.ops.keras_internimage.dcnv3` and its gradient.

The library defines the operators for CPU and CUDA. Here they get what tracing and differentiation
need: shapes, the gradient, and a rule for `torch.vmap`. The gradient's own derivatives, for
`create_graph=True` and `torch.func.hessian`, are those of the portable operator.
"""

import functools

import keras
import torch

from keras_internimage.ops import portable
from keras_internimage.ops.geometry import DCNv3Geometry
from keras_internimage.ops.native import cuda
from keras_internimage.ops.portable.torch import differentiate_gradient, fold_mapped_axis

_NAME = "keras_internimage::dcnv3"
_ARGUMENTS = (
    "kernel_size", "strides", "padding", "dilation_rate", "groups", "offset_scale", "remove_center"
)  # fmt: skip


def load(path):
    """Loads the binding's library and registers what belongs to the operators, once."""
    torch.ops.load_library(str(path))
    if torch._C._dispatch_has_kernel_for_dispatch_key(_NAME, "CUDA"):
        cuda.load(path)
    torch.library.register_fake(_NAME, _fake)
    torch.library.register_fake(f"{_NAME}_backward", _fake_backward)
    torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        f"{_NAME}_backward", _backward_of_backward, setup_context=_setup_context_of_backward
    )
    torch.library.register_vmap(_NAME, _vmap)
    torch.library.register_vmap(f"{_NAME}_backward", _vmap_backward)


def why_not(request):
    """None, or why the kernels cannot run the request."""
    device = device_type() if request is None else request.device
    if device == "cuda":
        if request is None:
            return why_not_cuda()
        if request.dtype == "float64":
            return cuda.HALF_AND_SINGLE
        return why_not_cuda(request.device_index)
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


def call(inputs, offset_mask, geometry, softmax):
    """The operator for tensors of one dtype."""
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    operator = _Function.apply if transformed else torch.ops.keras_internimage.dcnv3
    return operator(
        inputs,
        offset_mask,
        geometry.kernel_size,
        geometry.strides,
        geometry.padding,
        geometry.dilation_rate,
        geometry.groups,
        geometry.offset_scale,
        geometry.remove_center,
        softmax,
    )


def _geometry(values):
    return DCNv3Geometry(**dict(zip(_ARGUMENTS, values, strict=True)))


def _fake(inputs, offset_mask, *arguments):
    geometry = _geometry([tuple(a) if isinstance(a, list) else a for a in arguments[:-1]])
    height, width = geometry.output_size(*inputs.shape[1:3])
    expected = 3 * geometry.groups * geometry.points
    torch._check(
        offset_mask.shape[3] == expected,
        lambda: (
            "The last size of `offset_mask` must be groups * points * 3 = "
            f"{expected}. Received: {offset_mask.shape[3]}"
        ),
    )
    return inputs.new_empty((inputs.shape[0], height, width, inputs.shape[3]))


def _fake_backward(grad_output, inputs, offset_mask, *arguments):
    return inputs.new_empty(inputs.shape), offset_mask.new_empty(offset_mask.shape)


def _setup_context(ctx, inputs, output):
    images, offset_mask, *ctx.arguments = inputs
    ctx.save_for_backward(images, offset_mask)


def _backward(ctx, grad_output, operator=None):
    operator = operator or torch.ops.keras_internimage.dcnv3_backward
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = operator(grad_output, *ctx.saved_tensors, *ctx.arguments, deterministic)
    return *grads, *[None] * len(ctx.arguments)


def _setup_context_of_backward(ctx, inputs, output):
    ctx.arguments = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _backward_of_backward(ctx, *upstreams):
    *geometry, softmax, _ = ctx.arguments
    geometry = _geometry([tuple(a) if isinstance(a, list) else a for a in geometry])

    def function(inputs, offset_mask):
        activation = "softmax" if softmax else None
        return portable.differentiable(inputs, offset_mask, None, geometry, activation)

    upstream, *tensors = ctx.saved_tensors
    grads = differentiate_gradient(function, upstream, tensors, upstreams)
    return *grads, *[None] * len(ctx.arguments)


class _Function(torch.autograd.Function):
    """The operator and its gradient for `torch.func`, which does not see registered gradients."""

    @staticmethod
    def forward(*arguments):
        return torch.ops.keras_internimage.dcnv3(*arguments)

    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, grad_output):
        return _backward(ctx, grad_output, _Gradient.apply)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmap(info, in_dims, *arguments)


class _Gradient(torch.autograd.Function):
    """The gradient and its own, likewise."""

    @staticmethod
    def forward(*arguments):
        return torch.ops.keras_internimage.dcnv3_backward(*arguments)

    setup_context = staticmethod(_setup_context_of_backward)
    backward = staticmethod(_backward_of_backward)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmap_backward(info, in_dims, *arguments)


def _vmap(info, in_dims, inputs, offset_mask, *arguments):
    tensors = fold_mapped_axis(info, in_dims[:2], (inputs, offset_mask))
    output = torch.ops.keras_internimage.dcnv3(*tensors, *arguments)
    return output.unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(info, in_dims, grad_output, inputs, offset_mask, *arguments):
    tensors = fold_mapped_axis(info, in_dims[:3], (grad_output, inputs, offset_mask))
    grads = torch.ops.keras_internimage.dcnv3_backward(*tensors, *arguments)
    return tuple(grad.unflatten(0, (info.batch_size, -1)) for grad in grads), (0, 0)
