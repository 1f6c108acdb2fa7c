"""The graph of UperNet's heads: feature maps to class scores."""

import keras
from keras import KerasTensor

from keras_internimage.layers import (
    AdaptiveAveragePooling2D,
    BilinearResizing,
    FusionConvolution,
)
from keras_internimage.layers.composite import InitialValues
from keras_internimage.layers.norms import BatchNormalization

# Sides of the grids that the coarsest map is pooled to.
POOL_SIZES = (1, 2, 3, 6)
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
        *fine, coarsest = maps
        laterals = [
            self._unit(
                self._convolution(x, channels, 1, f"decode_lateral{k}"), f"decode_lateral{k}"
            )
            for k, x in enumerate(fine, start=1)
        ]
        laterals.append(self._pool_pyramid(coarsest, channels))
        # From the coarsest to the finest: each map receives the one below it.
        for k in range(len(fine) - 1, -1, -1):
            above = BilinearResizing(name=f"decode_up{k + 1}", dtype=self.dtype)(
                [laterals[k + 1], laterals[k]]
            )
            laterals[k] = keras.layers.Add(name=f"decode_add{k + 1}", dtype=self.dtype)(
                [laterals[k], above]
            )
        levels = [
            self._unit(self._convolution(x, channels, 3, f"decode_fpn{k}"), f"decode_fpn{k}")
            for k, x in enumerate(laterals[:-1], start=1)
        ]
        x = self._fusion([*levels, laterals[-1]], channels, "decode_fusion")
        return self._predictions(x, "decode")

    def auxiliary(self, x: KerasTensor) -> KerasTensor:
        """Class scores from one map alone, for a second loss while training."""
        x = self._convolution(x, AUXILIARY_CHANNELS, 3, "auxiliary")
        return self._predictions(self._unit(x, "auxiliary"), "auxiliary")

    def _pool_pyramid(self, x, channels):
        pooled = []
        for k, size in enumerate(POOL_SIZES, start=1):
            name = f"decode_pool{k}"
            y = AdaptiveAveragePooling2D(size, name=f"{name}_pool", dtype=self.dtype)(x)
            pooled.append(self._unit(self._convolution(y, channels, 1, name), name))
        return self._fusion([x, *pooled], channels, "decode_pool_fusion")

    def _fusion(self, maps, channels, name):
        layer = FusionConvolution(
            channels, kernel_initializer=_kaiming(), name=f"{name}_conv", dtype=self.dtype
        )
        return self._unit(layer(maps), name)

    def _convolution(self, x, filters, kernel_size, name):
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            kernel_initializer=InitialValues(_kaiming()),
            name=f"{name}_conv",
            dtype=self.dtype,
        )(x)

    def _unit(self, x, name):
        """Normalisation and activation, which follow every convolution but the last."""
        x = BatchNormalization(
            axis=-1, momentum=0.9, epsilon=1e-5, name=f"{name}_norm", dtype=self.dtype
        )(x)
        return keras.layers.ReLU(name=f"{name}_relu", dtype=self.dtype)(x)

    def _predictions(self, x, name):
        if self.drop_rate:
            x = keras.layers.SpatialDropout2D(
                self.drop_rate,
                data_format="channels_last",
                name=f"{name}_dropout",
                dtype=self.dtype,
            )(x)
        return keras.layers.Conv2D(
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


def _kaiming():
    # An initializer for each layer: one would draw the same numbers for all.
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
