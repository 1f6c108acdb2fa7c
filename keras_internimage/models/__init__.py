"""InternImage as Keras models: classifiers, backbones, segmentation, detection; the variants."""

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
from keras_internimage.models.detection import (
    CascadeMaskRCNN,
    CascadeMaskRCNNL,
    CascadeMaskRCNNXL,
    MaskRCNN,
    MaskRCNNB,
    MaskRCNNS,
    MaskRCNNT,
    paste_masks,
)
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
    "CascadeMaskRCNN",
    "CascadeMaskRCNNL",
    "CascadeMaskRCNNXL",
    "InternImage",
    "InternImageB",
    "InternImageBackbone",
    "InternImageG",
    "InternImageH",
    "InternImageL",
    "InternImageS",
    "InternImageT",
    "InternImageXL",
    "MaskRCNN",
    "MaskRCNNB",
    "MaskRCNNS",
    "MaskRCNNT",
    "UperNet",
    "UperNetB",
    "UperNetH",
    "UperNetL",
    "UperNetS",
    "UperNetT",
    "UperNetXL",
    "VARIANTS",
    "Variant",
    "paste_masks",
    "scale",
    "stack",
]
