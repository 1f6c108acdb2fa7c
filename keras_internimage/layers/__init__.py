"""The layers of InternImage and FlashInternImage. They know nothing of the published variants."""

from keras_internimage.layers.attention_pool import AttentionPooling, PixelShuffleAdd
from keras_internimage.layers.blocks import (
    InternImageBlock,
    InternImageDownsample,
    InternImageStem,
)
from keras_internimage.layers.convolutions import NormalizedConvolution, TopDownConvolution
from keras_internimage.layers.dcnv3 import DCNv3
from keras_internimage.layers.dcnv4 import DCNv4
from keras_internimage.layers.deformable import set_implementation
from keras_internimage.layers.drop_path import DropPath
from keras_internimage.layers.fusion import FusionConvolution
from keras_internimage.layers.resampling import AdaptiveAveragePooling2D, BilinearResizing

__all__ = [
    "AdaptiveAveragePooling2D",
    "AttentionPooling",
    "BilinearResizing",
    "DCNv3",
    "DCNv4",
    "DropPath",
    "FusionConvolution",
    "InternImageBlock",
    "InternImageDownsample",
    "InternImageStem",
    "NormalizedConvolution",
    "PixelShuffleAdd",
    "TopDownConvolution",
    "set_implementation",
]
