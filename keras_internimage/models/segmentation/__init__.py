"""Segmentation models as Keras Functional models: UperNet over InternImage or another backbone."""

from keras_internimage.models.segmentation.applications import (
    UperNetB,
    UperNetFlashB,
    UperNetFlashL,
    UperNetFlashS,
    UperNetFlashT,
    UperNetH,
    UperNetL,
    UperNetS,
    UperNetT,
    UperNetXL,
)
from keras_internimage.models.segmentation.upernet import UperNet

__all__ = [
    "UperNet",
    "UperNetB",
    "UperNetFlashB",
    "UperNetFlashL",
    "UperNetFlashS",
    "UperNetFlashT",
    "UperNetH",
    "UperNetL",
    "UperNetS",
    "UperNetT",
    "UperNetXL",
]
