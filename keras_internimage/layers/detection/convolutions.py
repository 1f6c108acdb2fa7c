"""The convolutions that the parts of detectors share."""

import keras

from keras_internimage.layers.composite import CompositeLayer
from keras_internimage.layers.initial_values import InitialValues


class ConvolutionalLayer(CompositeLayer):
    """A layer made of plain convolutions and matrices.

    Those that are `last` are small and may keep their initial values while all others are loaded.
    In mixed precision they compute in the type of their variables.
    """

    def _convolution(self, filters, kernel_size, name, initializer, last=False, use_bias=True):
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer=InitialValues(initializer, skipped=not last),
            bias_initializer=InitialValues("zeros"),
            name=name,
            dtype=self._policy(last),
        )

    def _linear(self, units, name, initializer, last=False):
        return keras.layers.Dense(
            units,
            kernel_initializer=InitialValues(initializer, skipped=not last),
            bias_initializer=InitialValues("zeros"),
            name=name,
            dtype=self._policy(last),
        )

    def _policy(self, last):
        policy = self.dtype_policy
        mixed = policy.compute_dtype != policy.variable_dtype
        return policy.variable_dtype if last and mixed else policy


def normal(deviation):
    """Normal numbers of a standard deviation."""
    return keras.initializers.RandomNormal(stddev=deviation)


def kaiming():
    """Normal numbers that keep the size of gradients through a ReLU."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
