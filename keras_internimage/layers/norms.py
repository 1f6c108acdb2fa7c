"""Keras' norms for between the blocks and in the head, with right derivatives and variances.

In TensorFlow, Keras makes both of `tf.nn.moments`, through which derivatives of gradients are
wrong without a word (see `sublayers.tensorflow`). In PyTorch, the variance of its batch
normalisation is `mean(x^2) - mean(x)^2`, which rounding makes negative where few values differ
little, as in UperNet's pooling to one pixel: the outputs are then NaN. The classes are
named as Keras' are, because paths in `.weights.h5` and `.keras` files are made of class names.
"""

import keras
from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import registered
from keras_internimage.layers.initial_values import InitialValues, initial_scale_and_shift


@registered
class LayerNormalization(keras.layers.LayerNormalization):
    """As `keras.layers.LayerNormalization`; its gradients can be differentiated."""

    def call(self, inputs):
        outputs = sublayers.fast_path(keras.layers.LayerNormalization, self, inputs)
        return super().call(inputs) if outputs is None else outputs


@registered
class BatchNormalization(keras.layers.BatchNormalization):
    """As `keras.layers.BatchNormalization`; see above for the two differences."""

    def _moments(self, inputs, mask):
        if self.synchronized or mask is not None:
            return super()._moments(inputs, mask)
        mean = ops.mean(inputs, axis=self._reduction_axes, keepdims=True)
        variance = ops.mean(ops.square(inputs - mean), axis=self._reduction_axes)
        return ops.squeeze(mean, self._reduction_axes), variance


def batch_normalization(name, dtype) -> BatchNormalization:
    """As PyTorch's default: epsilon 1e-5, and 0.9 of the moving values kept."""
    return BatchNormalization(
        axis=-1,
        momentum=0.9,
        epsilon=1e-5,
        moving_mean_initializer=InitialValues("zeros"),
        moving_variance_initializer=InitialValues("ones"),
        name=name,
        dtype=dtype,
        **initial_scale_and_shift(),
    )
