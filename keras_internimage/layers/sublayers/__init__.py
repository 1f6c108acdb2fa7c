"""How a composite layer computes with its sub-layers: in time and memory, not in values.

`Layer.__call__` costs Keras some tenths of a millisecond, and InternImage-T has 350 sub-layers.
What it does for the composite layer (casts, scopes, checks of shapes) holds for its sub-layers as
well, so that only their `call` runs. Where a backend has a faster way to compute what a sub-layer
does on the device at hand, with the sub-layer's own variables, that runs: the sub-layer fast path.
"""

import contextvars
import importlib
from collections.abc import Callable

import keras

from keras_internimage.ops import convolution as native

# How sub-layers run while they are rematerialised: by `call`, or, in mixed precision, by
# `__call__`. Keras' scope that casts variables is over by then: each sub-layer opens its own.
BY_CALL, BY_LAYER_CALL = "call", "__call__"
_rematerializing = contextvars.ContextVar("rematerializing", default=None)


def run(owner: keras.layers.Layer, layer: keras.layers.Layer, inputs, **kwargs):
    """`layer(inputs)` for a sub-layer of `owner` that has been built, called within its call."""
    if _runs_by_layer_call(owner, layer):
        return layer(inputs, **kwargs)
    outputs = fast_path(type(layer), layer, inputs)
    return layer.call(inputs, **kwargs) if outputs is None else outputs


def _runs_by_layer_call(owner, layer):
    return (
        layer.quantization_mode is not None
        or layer.compute_dtype != owner.compute_dtype
        or _rematerializing.get() == BY_LAYER_CALL
    )


def fast_path(kind: type, layer: keras.layers.Layer, inputs):
    """The outputs of `layer` by the fast path of layers of type `kind`, None without one."""
    if kind is keras.layers.Conv2D and _is_plain(layer):
        outputs = native.convolution(inputs, *_weights(layer))
        if outputs is not None:
            return outputs
    fast = _backend.FAST.get(kind)
    return None if fast is None else fast(layer, inputs)


def chain(owner: keras.layers.Layer, layers: tuple, inputs, training: bool | None):
    """`run` one after the other; while training, only `inputs` is kept for the gradient.

    What lies between is rematerialised when the gradient is asked for. Only the last layer may be
    a matmul, so that this costs little, and InternImage keeps a good half of its activations.
    Functions may stand for layers.
    """
    if not training or isinstance(layers[0], keras.layers.Dense) or _rematerializing.get():
        return through(owner, layers, inputs)

    def function(inputs):
        return through(owner, layers, inputs)

    return _rematerialized(owner, function, inputs, matmul_last=True)


def through(owner: keras.layers.Layer, layers: tuple, inputs):
    """`run` one after the other; functions may stand for layers."""
    left = list(layers)
    while left:
        layer = left.pop(0)
        if not isinstance(layer, keras.layers.Layer):
            inputs = (gelu if layer is keras.activations.gelu else layer)(inputs)
            continue
        fused = None
        if left[:1] == [keras.activations.gelu] and isinstance(layer, keras.layers.Dense):
            fused = _dense_and_gelu(owner, layer, inputs)
        if fused is None:
            inputs = run(owner, layer, inputs)
        else:
            inputs = fused
            left.pop(0)
    return inputs


def gelu(inputs):
    """`keras.activations.gelu(inputs)`, as fast as the backend can."""
    return getattr(_backend, "gelu", keras.activations.gelu)(inputs)


def matmul(a, b):
    """`keras.ops.matmul` of a matrix and one or several others."""
    return _fast("matmul", keras.ops.matmul, a, b)


def add(own, other):
    """`own + other` of the shape of `own`, which is the caller's alone and may be overwritten."""
    return _fast("add", keras.ops.add, own, other)


def relu(own):
    """`keras.ops.relu(own)`, which is the caller's alone and may be overwritten."""
    return _fast("relu", keras.ops.relu, own)


def convolve(inputs, kernel):
    """A convolution `(N, H, W, C)` of stride 1 with zeros around."""
    outputs = native.convolution(inputs, kernel)
    return _fast("convolve", _convolve, inputs, kernel) if outputs is None else outputs


def _convolve(inputs, kernel):
    return keras.ops.conv(inputs, kernel, padding="same", data_format="channels_last")


def _fast(name, slow, *arguments):
    outputs = getattr(_backend, name, lambda *_: None)(*arguments)
    return slow(*arguments) if outputs is None else outputs


def convolution_and_relu(owner, convolution, inputs):
    """`relu(convolution(inputs))` with a sub-layer of `owner`."""
    if _is_plain(convolution) and not _runs_by_layer_call(owner, convolution):
        outputs = native.convolution(inputs, *_weights(convolution), relu=True)
        if outputs is not None:
            return outputs
    return relu(run(owner, convolution, inputs))


def _is_plain(convolution):
    """Whether it is a convolution of stride 1 with zeros around, and nothing else."""
    return (
        isinstance(convolution, keras.layers.Conv2D)
        and (convolution.strides, convolution.dilation_rate) == ((1, 1), (1, 1))
        and (convolution.padding, convolution.groups) == ("same", 1)
        and convolution.data_format == "channels_last"
        and convolution.activation is keras.activations.linear
    )


def _weights(convolution):
    kernel, bias = convolution.kernel, convolution.bias
    tensors = [keras.ops.convert_to_tensor(v) for v in (kernel, bias) if v is not None]
    return tensors if bias is not None else [*tensors, None]


def normalized_convolution(owner, convolution, norm, inputs, training, mask=None):
    """`relu(norm(convolution(inputs)))` with sub-layers of `owner`; `mask` is the norm's.

    The convolution has no bias.

    In inference the normalisation is part of the convolution where that is faster:
    `(k * x - mean) g / s + b = (k g / s) * x + (b - mean g / s)`.
    """
    if not training and not _runs_by_layer_call(owner, convolution):
        outputs = _folded(convolution, norm, inputs)
        if outputs is not None:
            return outputs
    x = run(owner, norm, run(owner, convolution, inputs), training=training, mask=mask)
    return keras.ops.relu(x)


def _folded(convolution, norm, inputs):
    if _is_plain(convolution):
        kernel, _ = _weights(convolution)
        if native.runs(inputs, kernel):
            scale, shift = _scale_and_shift(norm)
            return native.convolution(inputs, kernel * scale, shift, relu=True)
    folds = getattr(_backend, "folds", lambda *_: False)
    if not folds(convolution, norm, inputs):
        return None
    return _backend.folded(convolution, *_scale_and_shift(norm), inputs)


def _scale_and_shift(norm):
    scale = norm.gamma * keras.ops.rsqrt(norm.moving_variance + norm.epsilon)
    return scale, norm.beta - norm.moving_mean * scale


def _dense_and_gelu(owner, layer, inputs):
    fast = getattr(_backend, "dense_and_gelu", None)
    if fast is None or _runs_by_layer_call(owner, layer):
        return None
    return fast(layer, inputs)


def rematerialize(owner: keras.layers.Layer, function: Callable, inputs):
    """`function(inputs)`, which runs sub-layers; only `inputs` is kept for the gradient."""
    return _rematerialized(owner, function, inputs, matmul_last=False)


def _rematerialized(owner, function, inputs, matmul_last):
    how = BY_CALL if owner.compute_dtype == owner.variable_dtype else BY_LAYER_CALL

    def scoped(inputs):
        token = _rematerializing.set(how)
        try:
            return function(inputs)
        finally:
            _rematerializing.reset(token)

    return _backend.rematerialized(scoped, inputs, matmul_last)


if keras.backend.backend() not in ("tensorflow", "jax", "torch"):
    raise ImportError(
        "Keras' backend must be tensorflow, jax or torch, by KERAS_BACKEND in the environment or "
        f"in keras.json. Received: {keras.backend.backend()!r}"
    )
# Of each backend: `FAST`, the fast paths `(layer, inputs)` by the type of layer, and functions of
# the names above, all of which may return None for "not faster here"; and
# `rematerialized(function, inputs, matmul_last)`, which with `matmul_last` may leave out the last
# operation, a matmul, when it rematerialises.
_backend = importlib.import_module(f"keras_internimage.layers.sublayers.{keras.backend.backend()}")
