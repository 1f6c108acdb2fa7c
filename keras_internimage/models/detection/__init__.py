"""Detectors: Mask R-CNN and Cascade Mask R-CNN over InternImage, FlashInternImage or another."""

from keras_internimage.models.detection.applications import (
    CascadeMaskRCNNFlashL,
    CascadeMaskRCNNL,
    CascadeMaskRCNNXL,
    MaskRCNNB,
    MaskRCNNFlashB,
    MaskRCNNFlashS,
    MaskRCNNFlashT,
    MaskRCNNS,
    MaskRCNNT,
)
from keras_internimage.models.detection.cascade_mask_rcnn import CascadeMaskRCNN
from keras_internimage.models.detection.mask_rcnn import MaskRCNN
from keras_internimage.models.detection.pasting import paste_masks

__all__ = [
    "CascadeMaskRCNN",
    "CascadeMaskRCNNFlashL",
    "CascadeMaskRCNNL",
    "CascadeMaskRCNNXL",
    "MaskRCNN",
    "MaskRCNNB",
    "MaskRCNNFlashB",
    "MaskRCNNFlashS",
    "MaskRCNNFlashT",
    "MaskRCNNS",
    "MaskRCNNT",
    "paste_masks",
]
