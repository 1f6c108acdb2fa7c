"""Fine-tuning on a folder of images as a command: `internimage-train`, `internimage-predict`."""

from keras_internimage.train.folders import FolderError, Images, scan
from keras_internimage.train.loader import EpochOf, ImageFiles

__all__ = ["EpochOf", "FolderError", "ImageFiles", "Images", "scan"]
