"""Official weights: the published files, reading them, and loading them into models."""

from keras_internimage.checkpoints import names, published
from keras_internimage.checkpoints.assign import load_weights
from keras_internimage.checkpoints.errors import CheckpointError, DownloadError, MismatchError
from keras_internimage.checkpoints.infer import infer_config
from keras_internimage.checkpoints.read import open_checkpoint

__all__ = [
    "CheckpointError",
    "DownloadError",
    "MismatchError",
    "infer_config",
    "load_weights",
    "names",
    "open_checkpoint",
    "published",
]
