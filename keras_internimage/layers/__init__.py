"""The layers InternImage is made of. They know nothing of the published variants."""

from keras_internimage.layers.attention_pool import AttentionPooling, PixelShuffleAdd
from keras_internimage.layers.blocks import (
    InternImageBlock,
    InternImageDownsample,
    InternImageStem,
)
from keras_internimage.layers.dcnv3 import DCNv3, set_implementation
from keras_internimage.layers.drop_path import DropPath

__all__ = [
    "AttentionPooling",
    "DCNv3",
    "DropPath",
    "InternImageBlock",
    "InternImageDownsample",
    "InternImageStem",
    "PixelShuffleAdd",
    "set_implementation",
]
