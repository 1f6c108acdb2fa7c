"""A convolution over feature maps of several sizes, as one layer."""

import keras
from keras import ops

from keras_internimage.layers.composite import InitialValues, check_image_features, registered
from keras_internimage.layers.resampling import resize_bilinear


@registered
class FusionConvolution(keras.layers.Layer):
    """A convolution of feature maps that are resized to the first one's size and concatenated.

    ```
    y = conv(concat(x1, resize(x2), resize(x3), ...))       zeros around, stride 1, no bias
    ```

    One layer, because what it computes can be had in a cheaper order than the formula's.

    Args:
        filters: number of output channels.
        kernel_size: odd side of the kernel.
        kernel_initializer: of the one kernel for all maps, of the shape
            `(side, side, sum of channels, filters)`.

    Input shape: a list of `(N, Hk, Wk, Ck)`; heights and widths may be unknown.
    Output shape: `(N, H1, W1, filters)`.

    Raises:
        ValueError: an argument is not as said above.
    """

    def __init__(
        self, filters: int, kernel_size: int = 3, kernel_initializer="glorot_uniform", **kwargs
    ):
        super().__init__(**kwargs)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be a positive odd int. Received: kernel_size={kernel_size!r}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        for shape in input_shape:
            check_image_features(self, shape)
        channels = sum(shape[-1] for shape in input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels, self.filters),
            initializer=InitialValues(self.kernel_initializer),
        )
        self.built = True

    def call(self, inputs):
        first, *others = inputs
        size = ops.shape(first)[1:3]
        maps = [first, *(resize_bilinear(x, size) for x in others)]
        return ops.conv(
            ops.concatenate(maps, axis=-1),
            self.kernel,
            padding="same",
            data_format="channels_last",
        )

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:3], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
