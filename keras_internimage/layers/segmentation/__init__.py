"""The parts of segmentation models."""

from keras_internimage.layers.segmentation.decoder import UperNetDecoder

__all__ = ["UperNetDecoder"]
