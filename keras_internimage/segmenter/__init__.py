"""A finished segmentation model: the class of each pixel of an image, of any size."""

from keras_internimage.segmenter.inference import SCALES, Segmenter
from keras_internimage.segmenter.loading import load_segmenter
from keras_internimage.segmenter.resizing import Resizing

__all__ = ["SCALES", "Resizing", "Segmenter", "load_segmenter"]
