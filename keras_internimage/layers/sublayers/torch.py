"""Dense layers and convolutions in PyTorch, without detours of the general ones.

- Keras computes a convolution of channels-last images on copies in the other order. A permuted view
  is what PyTorch itself calls channels last, and needs no copy.
- PyTorch computes float32 matmuls by MKL, which does not use all of the vector width of
  processors that are not Intel's. oneDNN, which PyTorch brings as well, does: on a server with
  AMD's EPYC it took 0.45 of the time, forward and backward. In bfloat16, where the processor has
  instructions for it, it adds the bias within the matmul, and GELU after it.
- In inference, a convolution of feature maps whose batch normalisation and ReLU follow takes the
  former into its kernel and bias, and the latter into its pass over the outputs: three fewer.
- Keras computes a layer norm of half-precision inputs on a float32 copy. PyTorch's own widens in
  registers, and rounds once as well.

Measured by `benchmarks/model.py`. Whatever traces the model sees Keras' own operations.
"""

import contextlib
import contextvars
import functools
import math
import platform

import keras
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from keras_internimage.layers.sublayers.stateless import in_stateless_scope

_X86 = platform.machine().lower() in ("x86_64", "amd64")
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _X86 else None
_fused_convolution = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


@functools.cache
def _types_of_linear():
    """The data types that oneDNN's matmul has instructions for on this processor."""
    types = [torch.float32]
    bfloat16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if bfloat16 is not None and bfloat16():
        types.append(torch.bfloat16)
    return types


def _eager(tensor):
    return not (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or tensor.device.type == "meta"
    )


def _dense(layer, inputs):
    kernel, bias = _weights(layer)
    if not _by_onednn(layer, inputs, kernel):
        return None
    if _needs_gradient(inputs, kernel, bias):
        return _Linear.apply(inputs, kernel, bias)
    return _matmul(inputs, kernel.t(), bias)


def dense_and_gelu(layer, inputs):
    """GELU (exact) of a dense layer's outputs, None for "not faster here"."""
    kernel, bias = _weights(layer)
    if not _by_onednn(layer, inputs, kernel) or _needs_gradient(inputs, kernel, bias):
        return None
    return _matmul(inputs, kernel.t(), bias, "gelu")


def _weights(layer):
    return (getattr(v, "value", v) for v in (layer.kernel, layer.bias))


def _by_onednn(layer, inputs, kernel):
    return layer.activation is keras.activations.linear and _multiplies(inputs, kernel)


def _multiplies(a, b):
    """Whether oneDNN's matmul is the faster one for these tensors."""
    return (
        _linear is not None
        and a.device.type == "cpu"
        and a.dtype == b.dtype
        and a.dtype in _types_of_linear()
        and _eager(a)
        and a.numel()
        and b.numel()
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
    )


def matmul(a, b):
    """`a @ b` of two matrices, or of one matrix and several; None for "not faster here"."""
    if a.ndim == 2 and b.ndim == 3 and a.dtype == b.dtype and _eager(a):
        return torch.bmm(a.expand(len(b), -1, -1), b)  # `torch.matmul` copies `b`
    if a.ndim != 2 or not _multiplies(a, b):
        return None
    return _product(a, b)


def _product(a, b):
    # A dense layer without bias.
    return _Linear.apply(a, b, None) if _needs_gradient(a, b) else _matmul(a, b.t())


def _needs_gradient(*tensors):
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _matmul(inputs, weight, bias=None, activation="none"):
    """`inputs @ weight.T + bias`, and GELU (exact) of it for `activation="gelu"`."""
    # Of columns of a wider matrix oneDNN's matmul takes seconds.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return _linear(inputs, weight, bias, activation, [], "none" if activation == "gelu" else "")


class _Linear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(inputs, kernel, bias):
        if _rematerializing.get():
            return inputs.new_empty((*inputs.shape[:-1], kernel.shape[1]))
        return _matmul(inputs, kernel.t(), bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, upstream):
        inputs, kernel = ctx.saved_tensors
        # A gradient that is to be differentiated again is made of operations that can be.
        differentiable = torch.is_grad_enabled()
        matmul = F.linear if differentiable else _matmul
        flat = upstream.reshape(-1, upstream.shape[-1])
        grads = [None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = matmul(upstream, kernel)
        if ctx.needs_input_grad[1]:
            rows = inputs.reshape(-1, inputs.shape[-1])
            # oneDNN copies the first factor when it is transposed: the smaller one.
            if rows.shape[1] <= flat.shape[1]:
                grads[1] = matmul(rows.t(), flat.t())
            else:
                grads[1] = matmul(flat.t(), rows.t()).t().contiguous()
        if ctx.needs_input_grad[2]:
            grads[2] = flat.sum(0)
        return tuple(grads)


# Whether a chain is being rematerialised: the output of its last matmul is not needed then.
_rematerializing = contextvars.ContextVar("rematerializing", default=False)


class _Rematerialization:
    """A context to be entered several times: derivatives of gradients rematerialise again."""

    def __enter__(self):
        self._token = _rematerializing.set(True)

    def __exit__(self, *_):
        _rematerializing.reset(self._token)


def rematerialized(function, inputs, matmul_last):
    """`function(inputs)`; only `inputs` is kept for the gradient."""
    if (
        not torch.is_grad_enabled()
        or not _eager(inputs)
        or torch._C._functorch.peek_interpreter_stack() is not None
        or in_stateless_scope()
    ):
        return function(inputs)
    return torch.utils.checkpoint.checkpoint(
        function,
        inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (
            contextlib.nullcontext(),
            _Rematerialization() if matmul_last else contextlib.nullcontext(),
        ),
    )


def _layer_norm(layer, inputs):
    if (
        inputs.dtype not in (torch.bfloat16, torch.float16)
        or layer.axis not in (-1, [-1], [inputs.ndim - 1])
        or not layer.scale
        or not layer.center
        or layer.rms_scaling
        or not _eager(inputs)
    ):
        return None
    gamma, beta = (getattr(v, "value", v).to(inputs.dtype) for v in (layer.gamma, layer.beta))
    return F.layer_norm(inputs, gamma.shape, gamma, beta, layer.epsilon)


def _convolution(layer, inputs, weight, groups):
    bias = None if layer.bias is None else getattr(layer.bias, "value", layer.bias)
    padding = 0
    if layer.padding == "same":
        if max(layer.strides) > 1 or not all(k % 2 for k in layer.kernel_size):
            return None
        padding = tuple(
            d * (k - 1) // 2 for d, k in zip(layer.dilation_rate, layer.kernel_size, strict=True)
        )
    outputs = F.conv2d(
        inputs.permute(0, 3, 1, 2),
        weight,
        bias,
        stride=layer.strides,
        padding=padding,
        dilation=layer.dilation_rate,
        groups=groups,
    )
    return outputs.permute(0, 2, 3, 1)


def add(own, other):
    """`own + other` in place, None where `own` is needed for a gradient or may be traced."""
    ends_alike = own.shape[max(0, own.ndim - other.ndim) :] == other.shape
    if own.dtype != other.dtype or not ends_alike or not _changeable(own, other):
        return None
    return own.add_(other)


def relu(own):
    """`relu(own)` in place, None likewise."""
    return own.relu_() if _changeable(own) else None


def _changeable(own, *others):
    return (
        not _needs_gradient(own, *others)
        and _eager(own)
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def convolve(inputs, kernel):
    """A convolution of stride 1 with zeros around, None for "not faster here"."""
    if not inputs.numel() or not _eager(inputs) or not all(k % 2 for k in kernel.shape[:2]):
        return None
    outputs = F.conv2d(
        inputs.permute(0, 3, 1, 2),
        kernel.permute(3, 2, 0, 1),
        padding=tuple(k // 2 for k in kernel.shape[:2]),
    )
    return outputs.permute(0, 2, 3, 1)


def folds(convolution, norm, inputs):
    """Whether a convolution whose batch normalisation is part of it, in inference, is faster."""
    maps = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    kernel, gamma = (getattr(v, "value", v) for v in (convolution.kernel, norm.gamma))
    tensors = (maps[0], kernel, gamma)
    if maps[0].device.type != "cpu" or any(t.dtype != torch.float32 for t in tensors):
        return False
    if not _eager(maps[0]) or _needs_gradient(kernel, gamma, *maps):
        return False
    by_onednn = _fused_convolution is not None and torch.backends.mkldnn.enabled
    is_convolution = isinstance(convolution, keras.layers.Conv2D)
    return not is_convolution or bool(by_onednn and maps[0].numel())


def folded(convolution, scale, shift, inputs):
    """`relu(convolution(inputs) scale + shift)`."""
    if not isinstance(convolution, keras.layers.Conv2D):
        return torch.addcmul(shift, convolution.call(inputs), scale).relu_()
    outputs = _fused_convolution(
        inputs.permute(0, 3, 1, 2),
        (convolution.kernel * scale).permute(3, 2, 0, 1),
        shift,
        [k // 2 for k in convolution.kernel_size],
        [1, 1],
        [1, 1],
        1,
        *("relu", [], ""),
    )
    return outputs.permute(0, 2, 3, 1)


def _conv2d(layer, inputs):
    if not _plain(layer, inputs):
        return None
    kernel = getattr(layer.kernel, "value", layer.kernel)
    return _convolution(layer, inputs, kernel.permute(3, 2, 0, 1), layer.groups)


def _depthwise(layer, inputs):
    if not _plain(layer, inputs) or layer.depth_multiplier != 1:
        return None
    kernel = getattr(layer.kernel, "value", layer.kernel)
    return _convolution(layer, inputs, kernel.permute(2, 3, 0, 1), inputs.shape[-1])


def _plain(layer, inputs):
    return (
        layer.data_format == "channels_last"
        and layer.activation is keras.activations.linear
        and math.prod(inputs.shape) > 0
        and _eager(inputs)
    )


FAST = {
    keras.layers.Dense: _dense,
    keras.layers.Conv2D: _conv2d,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.LayerNormalization: _layer_norm,
}
