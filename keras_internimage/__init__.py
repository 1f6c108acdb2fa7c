"""InternImage and its operator DCNv3 for Keras 3, on TensorFlow, JAX and PyTorch."""

# ruff: noqa: E402
from keras_internimage.backends import take_installed

take_installed()  # before anything imports Keras

from keras_internimage import exports, layers, models, ops, preprocessing, training
from keras_internimage.exports import export
from keras_internimage.models import (
    InternImage,
    InternImageB,
    InternImageBackbone,
    InternImageG,
    InternImageH,
    InternImageL,
    InternImageS,
    InternImageT,
    InternImageXL,
)
from keras_internimage.ops.tracing import portable_ops
from keras_internimage.preprocessing import decode_predictions, preprocess_input

__version__ = "0.2.0.dev0"

__all__ = [
    "InternImage",
    "InternImageB",
    "InternImageBackbone",
    "InternImageG",
    "InternImageH",
    "InternImageL",
    "InternImageS",
    "InternImageT",
    "InternImageXL",
    "decode_predictions",
    "export",
    "exports",
    "layers",
    "models",
    "ops",
    "portable_ops",
    "preprocess_input",
    "preprocessing",
    "training",
]
