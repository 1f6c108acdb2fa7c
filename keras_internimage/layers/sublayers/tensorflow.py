"""Dense layers and GELU in TensorFlow, layer norms, and what is kept for the gradient.

- Keras makes a dense layer of a matmul over rows, a reshape and a sum. Without the reshape between
  them TensorFlow computes matmul, bias and a GELU that follows in one pass: on a server with AMD's
  EPYC it took 0.45 of the time, in bfloat16 0.15.
- Its error function takes half the time of the complementary one, which Keras and TensorFlow make
  GELU of, and of half-precision numbers many times that of float32 ones.

`tf.nn.moments`, which Keras' layer norm is made of, stops the
gradient of the mean within the variance. That gradient is zero, its derivatives are not: through
Keras' layer norm, derivatives of gradients are wrong without a word. So it is written out here.
"""

import math

import keras
import tensorflow as tf

from keras_internimage.layers.sublayers.stateless import in_stateless_scope
from keras_internimage.ops import tracing


def _dense(layer, inputs):
    return _by_rows(layer, inputs, lambda rows: rows)


def dense_and_gelu(layer, inputs):
    """GELU (exact) of a dense layer's outputs, None for "not faster here"."""
    # In half precision only what Keras makes is fused.
    half = inputs.dtype in (tf.bfloat16, tf.float16)
    return _by_rows(layer, inputs, keras.activations.gelu if half else gelu)


def _by_rows(layer, inputs, activation):
    rank = len(inputs.shape)
    if (
        layer.activation is not keras.activations.linear
        or rank < 3
        or tracing.required_implementation() is not None  # files keep the nodes that Keras makes
    ):
        return None
    kernel = keras.ops.convert_to_tensor(layer.kernel)
    bias = keras.ops.convert_to_tensor(layer.bias) if layer.use_bias else None
    if inputs.dtype != kernel.dtype or bias is not None and bias.dtype != kernel.dtype:
        return None
    outputs = tf.matmul(tf.reshape(inputs, (-1, kernel.shape[0])), kernel)
    outputs = activation(outputs if bias is None else tf.nn.bias_add(outputs, bias))
    shape = inputs.shape[:-1].as_list()
    if shape.count(None) > 1:
        shape = tf.unstack(tf.shape(inputs), rank)[:-1]
    else:
        shape = [-1 if size is None else size for size in shape]
    outputs = tf.reshape(outputs, (*shape, kernel.shape[1]))
    outputs.set_shape((*inputs.shape[:-1], kernel.shape[1]))
    return outputs


def gelu(inputs):
    """GELU (exact), computed in float32 or better."""
    if tracing.required_implementation() is not None:
        return keras.activations.gelu(inputs)  # files keep the nodes that Keras makes
    x = tf.cast(inputs, _wide(inputs))
    return tf.cast(0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5))), inputs.dtype)


def _wide(inputs):
    return tf.float64 if inputs.dtype == tf.float64 else tf.float32


def _layer_norm(layer, inputs):
    if (
        layer.axis not in (-1, [-1], [len(inputs.shape) - 1])
        or not layer.scale
        or not layer.center
        or layer.rms_scaling
        or tracing.required_implementation() is not None  # files keep the nodes that Keras makes
    ):
        return None
    wide = _wide(inputs)
    x, gamma, beta = (tf.cast(t, wide) for t in (inputs, layer.gamma, layer.beta))
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    outputs = centred * (tf.math.rsqrt(variance + layer.epsilon) * gamma) + beta
    return tf.cast(outputs, layer.compute_dtype)


FAST = {keras.layers.Dense: _dense, keras.layers.LayerNormalization: _layer_norm}


def rematerialized(function, inputs, matmul_last):
    """`function(inputs)`; only `inputs` is kept for the gradient.

    `tf.recompute_grad` does the same, but walks through the whole graph at every use: it made
    tracing a model for training half as long again.
    """
    if in_stateless_scope():
        return function(inputs)

    @tf.custom_gradient
    def run(inputs):
        def gradient(upstream, variables=()):
            with tf.GradientTape() as tape:
                # A zero that depends on the gradient of the output: rematerialisation must not
                # start earlier, or its activations would be kept all the same.
                entry = tf.reduce_max(tf.reshape(upstream, [-1])[:1])
                zero = tf.where(tf.math.is_nan(entry), float("nan"), 0.0)
                again = inputs + tf.cast(zero, inputs.dtype)
                tape.watch([again, *variables])
                outputs = function(again)
            to_inputs, *to_variables = tape.gradient(
                outputs, [again, *variables], upstream, tf.UnconnectedGradients.ZERO
            )
            return to_inputs, to_variables

        return function(inputs), gradient

    return run(inputs)
