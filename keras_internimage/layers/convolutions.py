"""What dense heads are made of: convolutions, most with a normalisation and an activation."""

import keras
from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import CompositeLayer, check_image_features, registered
from keras_internimage.layers.fusion import FusionConvolution
from keras_internimage.layers.initial_values import InitialValues
from keras_internimage.layers.norms import batch_normalization
from keras_internimage.layers.resampling import resize_bilinear


@registered
class Conv2D(keras.layers.Conv2D):
    """As `keras.layers.Conv2D`, without copies in PyTorch.

    The class is named as Keras' own is, because paths in files are made of class names.
    """

    def call(self, inputs):
        outputs = sublayers.fast_path(keras.layers.Conv2D, self, inputs)
        return super().call(inputs) if outputs is None else outputs


@registered
class NormalizedConvolution(CompositeLayer):
    """A convolution without bias, batch normalisation and ReLU.

    ```
    y = relu(batch_norm(conv(x)))       stride 1, zeros around
    ```

    As one layer its maps between are nobody's but its own: they need not be kept, and in inference
    the normalisation may be part of the convolution.

    Args:
        filters: number of output channels.
        kernel_size: odd side of the kernel.

    Call arguments:
        inputs: as below.
        training: whether the batch's statistics are used, which the moving averages follow.
        counted: `(N, 1, 1)` or `(N, H, W)`, the pixels that these statistics are of; None for all.

    Input shape: `(N, H, W, C)`, or a list of such maps to be fused (`FusionConvolution`).
    Output shape: `(N, H, W, filters)`, of the first map's size.
    """

    def __init__(self, filters: int, kernel_size: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.norm = batch_normalization("norm", self.dtype_policy)

    def build(self, input_shape):
        # An initializer for each layer: one would draw the same numbers for all.
        kaiming = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        if _several(input_shape):
            self.conv = FusionConvolution(
                self.filters,
                self.kernel_size,
                kernel_initializer=kaiming,
                name="conv",
                dtype=self.dtype_policy,
            )
        else:
            check_image_features(self, input_shape)
            self.conv = keras.layers.Conv2D(
                self.filters,
                self.kernel_size,
                padding="same",
                data_format="channels_last",
                use_bias=False,
                kernel_initializer=InitialValues(kaiming),
                name="conv",
                dtype=self.dtype_policy,
            )
        self.conv.build(input_shape)
        self.norm.build(NormalizedConvolution.compute_output_shape(self, input_shape))
        self.built = True

    def call(self, inputs, training=None, counted=None):
        return sublayers.normalized_convolution(
            self, self.conv, self.norm, inputs, training, counted
        )

    def compute_output_shape(self, inputs_shape, counted_shape=None):
        first = inputs_shape[0] if _several(inputs_shape) else inputs_shape
        return (*first[:3], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
        }


@registered
class TopDownConvolution(NormalizedConvolution):
    """A level of a feature pyramid's top-down path: one map and the coarser level above it.

    ```
    y = relu(batch_norm(conv(x))) + resize(above)
    ```

    Args:
        filters: number of output channels, those of `above`.
        kernel_size: odd side of the kernel.

    Input shape: a list `[x (N, H, W, C), above (N, h, w, filters)]`.
    Output shape: `(N, H, W, filters)`.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    def __init__(self, filters: int, kernel_size: int = 1, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)

    def build(self, input_shape):
        super().build(input_shape[0])

    def call(self, inputs, training=None):
        x, above = inputs
        x = super().call(x, training=training)
        return sublayers.add(x, resize_bilinear(above, ops.shape(x)[1:3]))

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape[0])


def _several(shape):
    return isinstance(shape[0], (list, tuple))
