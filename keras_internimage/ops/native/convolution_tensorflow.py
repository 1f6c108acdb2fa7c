"""Convolutions in TensorFlow: a custom operation, and its gradient's registration."""

from typing import Any

import tensorflow as tf

_loaded: dict[str, Any] = {}


def register(operations):
    """Takes the loaded operations and registers the gradient, once."""
    _loaded["operations"] = operations
    tf.RegisterGradient("KerasInternimageConvolution")(_gradient)


def convolution(inputs, kernel, bias, relu):
    """See `keras_internimage.ops.convolution`; tensors are float32."""
    return _loaded["operations"].keras_internimage_convolution(
        inputs=inputs, kernel=kernel, bias=bias, relu=relu
    )


def _gradient(op, upstream):
    inputs, kernel, _ = op.inputs
    if op.get_attr("relu"):
        upstream = tf.where(op.outputs[0] > 0, upstream, 0.0)
    options = {"strides": [1, 1, 1, 1], "padding": "SAME"}
    to_inputs = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(inputs), filter=kernel, out_backprop=upstream, **options
    )
    to_kernel = tf.raw_ops.Conv2DBackpropFilter(
        input=inputs, filter_sizes=tf.shape(kernel), out_backprop=upstream, **options
    )
    return to_inputs, to_kernel, tf.reduce_sum(upstream, (0, 1, 2))
