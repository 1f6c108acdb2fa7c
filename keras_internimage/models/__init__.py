"""InternImage as Keras Functional models: classifiers, backbones, the table of variants."""

from keras_internimage.models.applications import (
    InternImageB,
    InternImageG,
    InternImageH,
    InternImageL,
    InternImageS,
    InternImageT,
    InternImageXL,
)
from keras_internimage.models.backbone import InternImageBackbone
from keras_internimage.models.classifier import InternImage
from keras_internimage.models.segmentation import (
    UperNet,
    UperNetB,
    UperNetH,
    UperNetL,
    UperNetS,
    UperNetT,
    UperNetXL,
)
from keras_internimage.variants import VARIANTS, Variant, scale, stack

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
    "UperNet",
    "UperNetB",
    "UperNetH",
    "UperNetL",
    "UperNetS",
    "UperNetT",
    "UperNetXL",
    "VARIANTS",
    "Variant",
    "scale",
    "stack",
]
