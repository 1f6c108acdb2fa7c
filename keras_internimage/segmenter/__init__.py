"""A finished segmentation model: the class of each pixel of an image, of any size."""

from keras_internimage.data.resizing import Resizing
from keras_internimage.segmenter.inference import SCALES, Segmenter
from keras_internimage.segmenter.loading import load_segmenter

__all__ = ["SCALES", "Resizing", "Segmenter", "load_segmenter"]
