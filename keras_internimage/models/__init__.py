"""InternImage and FlashInternImage: classifiers, backbones, segmentation, detection; variants."""

from keras_internimage.imports import when_imported as _when_imported
from keras_internimage.models.applications import (
    FlashInternImageB,
    FlashInternImageL,
    FlashInternImageS,
    FlashInternImageT,
    InternImageB,
    InternImageG,
    InternImageH,
    InternImageL,
    InternImageS,
    InternImageT,
    InternImageXL,
)
from keras_internimage.models.backbone import FlashInternImageBackbone, InternImageBackbone
from keras_internimage.models.classifier import InternImage
from keras_internimage.models.detection import (
    CascadeMaskRCNN,
    CascadeMaskRCNNFlashL,
    CascadeMaskRCNNL,
    CascadeMaskRCNNXL,
    MaskRCNN,
    MaskRCNNB,
    MaskRCNNFlashB,
    MaskRCNNFlashS,
    MaskRCNNFlashT,
    MaskRCNNS,
    MaskRCNNT,
    paste_masks,
)
from keras_internimage.models.presets import from_preset
from keras_internimage.models.segmentation import (
    UperNet,
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
from keras_internimage.variants import VARIANTS, Variant, scale, stack

__all__ = [
    "CascadeMaskRCNN",
    "CascadeMaskRCNNFlashL",
    "CascadeMaskRCNNL",
    "CascadeMaskRCNNXL",
    "FlashInternImageB",
    "FlashInternImageBackbone",
    "FlashInternImageL",
    "FlashInternImageS",
    "FlashInternImageT",
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
    "MaskRCNNFlashB",
    "MaskRCNNFlashS",
    "MaskRCNNFlashT",
    "MaskRCNNS",
    "MaskRCNNT",
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
    "VARIANTS",
    "Variant",
    "from_preset",
    "paste_masks",
    "scale",
    "stack",
]


def _register_with_keras_hub():
    import importlib
    import warnings

    try:
        for package in ("", ".segmentation", ".detection"):
            importlib.import_module(f"{__name__}{package}.keras_hub")
    except (ImportError, AttributeError, TypeError) as error:  # its own users go on
        warnings.warn(
            "KerasHub's `from_preset` will not find InternImage, whose classes could not be made "
            f"with this version of KerasHub: {type(error).__name__}: {error}",
            stacklevel=2,
        )


# Then KerasHub's own functions find InternImage's classes, whichever was imported first.
_when_imported("keras_hub", _register_with_keras_hub)
