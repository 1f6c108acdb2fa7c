"""Images on disk as data for training: folders by class, the loader, labels."""

from keras_internimage.data.balance import balanced_order, class_weights
from keras_internimage.data.folders import Images, scan
from keras_internimage.data.layout import FolderError
from keras_internimage.data.batches import EpochSetter
from keras_internimage.data.loader import ImageFiles

__all__ = [
    "EpochSetter",
    "FolderError",
    "ImageFiles",
    "Images",
    "balanced_order",
    "class_weights",
    "scan",
]
