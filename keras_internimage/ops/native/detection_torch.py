"""RoIAlign and suppression in PyTorch: what tracing and differentiation need beside the kernels."""

import torch

from keras_internimage.ops.operator_torch import NAMESPACE


def register():
    """Registers all that is defined here, once, after the kernels."""
    align, backward = f"{NAMESPACE}::roi_align", f"{NAMESPACE}::roi_align_backward"
    torch.library.register_fake(align, _fake)
    torch.library.register_fake(backward, _fake_backward)
    torch.library.register_fake(f"{NAMESPACE}::nms", _fake_nms)
    torch.library.register_autograd(align, _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        backward, _backward_of_backward, setup_context=_setup_context_of_backward
    )


def why_not():
    """None, or why the operators cannot be called here."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "torch.func transforms the call, for which this operator has no rule"
    return None


def roi_align(maps, boxes, levels, strides, bins):
    """See `keras_internimage.ops.roi_align`; tensors are of the types that the kernels take."""
    return torch.ops.keras_internimage.roi_align(
        list(maps), boxes, levels, [float(stride) for stride in strides], bins
    )


def nms(boxes, scores, classes, threshold, count):
    """See `keras_internimage.ops.boxes.nms`, likewise."""
    return torch.ops.keras_internimage.nms(boxes, scores, classes, float(threshold), count)


def _fake(maps, boxes, levels, strides, bins):
    shape = (boxes.shape[0], boxes.shape[1], bins, bins, maps[0].shape[3])
    return maps[0].new_empty(shape)


def _fake_backward(grad_output, boxes, levels, sizes, strides, bins):
    count, channels = grad_output.shape[0], grad_output.shape[-1]
    return [
        grad_output.new_empty((count, sizes[2 * k], sizes[2 * k + 1], channels))
        for k in range(len(strides))
    ]


def _fake_nms(boxes, scores, classes, threshold, count):
    shape = (scores.shape[0], count)
    return classes.new_empty(shape), classes.new_empty(shape, dtype=torch.bool)


def _setup_context(ctx, inputs, output):
    maps, boxes, levels, ctx.strides, ctx.bins = inputs
    ctx.sizes = [size for x in maps for size in x.shape[1:3]]
    ctx.save_for_backward(boxes, levels)


def _backward(ctx, grad_output):
    grads = torch.ops.keras_internimage.roi_align_backward(
        grad_output, *ctx.saved_tensors, ctx.sizes, ctx.strides, ctx.bins
    )
    return grads, None, None, None, None


def _setup_context_of_backward(ctx, inputs, output):
    _, boxes, levels, _, ctx.strides, ctx.bins = inputs
    ctx.save_for_backward(boxes, levels)


def _backward_of_backward(ctx, grads):
    # The gradient is linear in `grad_output`: its transposed is RoIAlign.
    pooled = torch.ops.keras_internimage.roi_align(grads, *ctx.saved_tensors, ctx.strides, ctx.bins)
    return pooled, None, None, None, None, None
