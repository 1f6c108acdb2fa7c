"""The graph of UperNet's heads: feature maps to class scores."""

import keras
from keras import KerasTensor

from keras_internimage.layers import BilinearResizing, NormalizedConvolution
from keras_internimage.layers.convolutions import Conv2D
from keras_internimage.layers.segmentation import UperNetDecoder

AUXILIARY_CHANNELS = 256


class Heads:
    """Makes the layers of both heads, which share all but their inputs.

    Args:
        classes: number of classes.
        drop_rate: of whole channels, before the last convolutions.
        dtype: data type or policy of all layers.
    """

    def __init__(self, classes: int, drop_rate: float, dtype=None):
        self.classes = classes
        self.drop_rate = drop_rate
        self.dtype = dtype

    def decode(self, maps: list[KerasTensor], channels: int) -> KerasTensor:
        """Class scores at the first map's size from the four maps, finest first."""
        x = UperNetDecoder(channels, name="decoder", dtype=self.dtype)(maps)
        return self._predictions(x, "decode")

    def auxiliary(self, x: KerasTensor) -> KerasTensor:
        """Class scores from one map alone, for a second loss while training."""
        x = NormalizedConvolution(AUXILIARY_CHANNELS, 3, name="auxiliary", dtype=self.dtype)(x)
        return self._predictions(x, "auxiliary")

    def _predictions(self, x, name):
        if self.drop_rate:
            x = keras.layers.SpatialDropout2D(
                self.drop_rate,
                data_format="channels_last",
                name=f"{name}_dropout",
                dtype=self.dtype,
            )(x)
        return Conv2D(
            self.classes,
            1,
            data_format="channels_last",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            name=f"{name}_predictions",
            dtype=_full_precision(self.dtype),
        )(x)


def logits(scores: KerasTensor, images: KerasTensor | None, name: str) -> KerasTensor:
    """The scores in float32 or better, at the size of `images` where given."""
    dtype = "float64" if scores.dtype == "float64" else "float32"
    if images is not None:
        return BilinearResizing(name=name, dtype=dtype)([scores, images])
    return keras.layers.Activation("linear", name=name, dtype=dtype)(scores)


def _full_precision(dtype):
    """In mixed precision the last convolution computes in the type of its variables."""
    policy = keras.dtype_policies.get(keras.config.dtype_policy() if dtype is None else dtype)
    return policy if policy.compute_dtype == policy.variable_dtype else policy.variable_dtype
