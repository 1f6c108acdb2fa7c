"""What TensorFlow keeps for the gradient. Its layers are fast as they are."""

import tensorflow as tf

FAST = {}


def recomputed(function, inputs, whole):
    """`function(inputs)`, computed anew for its gradient.

    `tf.recompute_grad` does the same, but walks through the whole graph at every use: it made
    tracing a model for training half as long again.
    """

    @tf.custom_gradient
    def run(inputs):
        def gradient(upstream, variables=()):
            with tf.GradientTape() as tape:
                # A zero that is not known to be one before the gradient of the output is there.
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
