"""Images on disk as data for training: folders by class, the loader, labels."""

from keras_internimage.data.folders import FolderError, Images, scan
from keras_internimage.data.loader import EpochSetter, ImageFiles

__all__ = ["EpochSetter", "FolderError", "ImageFiles", "Images", "scan"]
