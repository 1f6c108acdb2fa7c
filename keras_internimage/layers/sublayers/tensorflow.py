"""What TensorFlow keeps for the gradient, and layer norms whose gradients can be differentiated.

Its layers are fast as they are. But `tf.nn.moments`, which Keras' layer norm is made of, stops the
gradient of the mean within the variance. That gradient is zero, its derivatives are not: through
Keras' layer norm, derivatives of gradients are wrong without a word.
"""

import keras
import tensorflow as tf

from keras_internimage.layers.sublayers.stateless import in_stateless_scope
from keras_internimage.ops import tracing


def _layer_norm(layer, inputs):
    if (
        layer.axis not in (-1, [-1], [len(inputs.shape) - 1])
        or not layer.scale
        or not layer.center
        or layer.rms_scaling
        or tracing.required_implementation() is not None  # files keep the nodes that Keras makes
    ):
        return None
    wide = "float64" if inputs.dtype == tf.float64 else "float32"
    x, gamma, beta = (keras.ops.cast(t, wide) for t in (inputs, layer.gamma, layer.beta))
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    outputs = centred * (tf.math.rsqrt(variance + layer.epsilon) * gamma) + beta
    return tf.cast(outputs, layer.compute_dtype)


FAST = {keras.layers.LayerNormalization: _layer_norm}


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
