"""The convolutions that the parts of detectors share."""

import keras

from keras_internimage.layers.composite import CompositeLayer, InitialValues


class ConvolutionalLayer(CompositeLayer):
    """A layer made of plain convolutions and matrices."""

    def _convolution(self, filters, kernel_size, name, initializer, full_precision=False):
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            data_format="channels_last",
            kernel_initializer=InitialValues(initializer),
            name=name,
            dtype=self._policy(full_precision),
        )

    def _linear(self, units, name, initializer, full_precision=False):
        return keras.layers.Dense(
            units,
            kernel_initializer=InitialValues(initializer),
            name=name,
            dtype=self._policy(full_precision),
        )

    def _policy(self, full_precision):
        """In mixed precision the last matrices compute in the type of their variables."""
        policy = self.dtype_policy
        mixed = policy.compute_dtype != policy.variable_dtype
        return policy.variable_dtype if full_precision and mixed else policy


def normal(deviation):
    """Normal numbers of a standard deviation."""
    return keras.initializers.RandomNormal(stddev=deviation)


def kaiming():
    """Normal numbers that keep the size of gradients through a ReLU."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
