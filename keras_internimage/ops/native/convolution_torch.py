"""Convolutions in PyTorch: what tracing and differentiation need beside the kernels."""

import torch

from keras_internimage.ops.operator_torch import NAMESPACE


def register():
    """Registers all that is defined here, once, after the kernels."""
    name = f"{NAMESPACE}::convolution"
    torch.library.register_fake(name, _fake)
    torch.library.register_autograd(name, _backward, setup_context=_setup_context)


def convolution(inputs, kernel, bias, relu):
    """See `keras_internimage.ops.convolution`; tensors are float32."""
    return torch.ops.keras_internimage.convolution(inputs, kernel, bias, relu)


def _fake(inputs, kernel, bias, relu):
    return inputs.new_empty((*inputs.shape[:3], kernel.shape[3]))


def _setup_context(ctx, inputs, output):
    images, kernel, _, ctx.relu = inputs
    ctx.save_for_backward(images, kernel, *([output] if ctx.relu else []))


def _backward(ctx, grad_output):
    inputs, kernel, *output = ctx.saved_tensors
    if ctx.relu:
        grad_output = grad_output * (output[0] > 0)
    to_inputs, to_kernel, to_bias = torch.ops.aten.convolution_backward(
        grad_output.permute(0, 3, 1, 2),
        inputs.permute(0, 3, 1, 2),
        kernel.permute(3, 2, 0, 1),
        [kernel.shape[3]],
        *([1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        ctx.needs_input_grad[:3],
    )
    return (
        None if to_inputs is None else to_inputs.permute(0, 2, 3, 1),
        None if to_kernel is None else to_kernel.permute(2, 3, 1, 0),
        to_bias,
        None,
    )
