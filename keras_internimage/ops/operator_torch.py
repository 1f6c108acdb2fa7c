"""DCNv3 as an operator of PyTorch: what tracing and differentiation need beside its kernels.

Kernels in C++ or Triton define `NAME` and `NAME_backward`, with the arguments of `ARGUMENTS`. Here
they get shapes, the gradient, and a rule for `torch.vmap`. The gradient's own derivatives, for
`create_graph=True` and `torch.func.hessian`, are those of the portable operator.
"""

import torch

from keras_internimage.ops import portable
from keras_internimage.ops.geometry import DCNv3Geometry
from keras_internimage.ops.portable.torch import differentiate_gradient, fold_mapped_axis

NAMESPACE = "keras_internimage"
# Of the operator's schema; the one in C++ writes the same.
ARGUMENTS = (
    "Tensor inputs, Tensor offset_mask, int[] kernel_size, int[] strides, int[] padding, "
    "int[] dilation_rate, int groups, float offset_scale, bool remove_center, bool softmax"
)
_GEOMETRY = (
    "kernel_size", "strides", "padding", "dilation_rate", "groups", "offset_scale", "remove_center"
)  # fmt: skip


class Operator:
    """The operator `torch.ops.keras_internimage.NAME` and its gradient, `NAME_backward`."""

    def __init__(self, name):
        self.name = name
        self._function, self._gradient = _functions(self)

    @property
    def forward(self):
        """The operator itself, once its kernels are defined."""
        return getattr(torch.ops.keras_internimage, self.name)

    @property
    def backward(self):
        """Its gradient: `grad_output` first, and whether it has to be deterministic last."""
        return getattr(torch.ops.keras_internimage, f"{self.name}_backward")

    def register(self):
        """Registers all that is defined here, once, after the kernels."""
        forward, backward = f"{NAMESPACE}::{self.name}", f"{NAMESPACE}::{self.name}_backward"
        torch.library.register_fake(forward, _fake)
        torch.library.register_fake(backward, _fake_backward)
        torch.library.register_autograd(
            forward,
            lambda ctx, grad_output: _backward(ctx, grad_output, self.backward),
            setup_context=_setup_context,
        )
        torch.library.register_autograd(
            backward, _backward_of_backward, setup_context=_setup_context_of_backward
        )

        def map_forward(info, in_dims, *arguments):
            return _vmap(self.forward, info, in_dims, *arguments)

        def map_backward(info, in_dims, *arguments):
            return _vmap_backward(self.backward, info, in_dims, *arguments)

        torch.library.register_vmap(forward, map_forward)
        torch.library.register_vmap(backward, map_backward)

    def __call__(self, inputs, offset_mask, geometry, softmax):
        """The operator for tensors of one dtype."""
        transformed = (
            not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        )
        operator = self._function.apply if transformed else self.forward
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


def geometry_of(values):
    """The geometry of an operator's arguments, from `kernel_size` to `remove_center`."""
    values = [tuple(value) if isinstance(value, list) else value for value in values]
    return DCNv3Geometry(**dict(zip(_GEOMETRY, values, strict=True)))


def _fake(inputs, offset_mask, *arguments):
    geometry = geometry_of(arguments[:-1])
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


def _backward(ctx, grad_output, operator):
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = operator(grad_output, *ctx.saved_tensors, *ctx.arguments, deterministic)
    return *grads, *[None] * len(ctx.arguments)


def _setup_context_of_backward(ctx, inputs, output):
    ctx.arguments = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _backward_of_backward(ctx, *upstreams):
    *geometry, softmax, _ = ctx.arguments
    geometry = geometry_of(geometry)

    def function(inputs, offset_mask):
        activation = "softmax" if softmax else None
        return portable.differentiable(inputs, offset_mask, None, geometry, activation)

    upstream, *tensors = ctx.saved_tensors
    grads = differentiate_gradient(function, upstream, tensors, upstreams)
    return *grads, *[None] * len(ctx.arguments)


def _functions(operator):
    """The operator and its gradient for `torch.func`, which does not see registered gradients."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return operator.forward(*arguments)

        setup_context = staticmethod(_setup_context)

        @staticmethod
        def backward(ctx, grad_output):
            return _backward(ctx, grad_output, Gradient.apply)

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return _vmap(operator.forward, info, in_dims, *arguments)

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return operator.backward(*arguments)

        setup_context = staticmethod(_setup_context_of_backward)
        backward = staticmethod(_backward_of_backward)

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return _vmap_backward(operator.backward, info, in_dims, *arguments)

    return Function, Gradient


def _vmap(operator, info, in_dims, inputs, offset_mask, *arguments):
    tensors = fold_mapped_axis(info, in_dims[:2], (inputs, offset_mask))
    output = operator(*tensors, *arguments)
    return output.unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(operator, info, in_dims, grad_output, inputs, offset_mask, *arguments):
    tensors = fold_mapped_axis(info, in_dims[:3], (grad_output, inputs, offset_mask))
    grads = operator(*tensors, *arguments)
    return tuple(grad.unflatten(0, (info.batch_size, -1)) for grad in grads), (0, 0)
