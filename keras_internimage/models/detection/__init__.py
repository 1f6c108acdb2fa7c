"""Detectors: Mask R-CNN and Cascade Mask R-CNN over InternImage or another backbone."""

from keras_internimage.models.detection.applications import (
    CascadeMaskRCNNL,
    CascadeMaskRCNNXL,
    MaskRCNNB,
    MaskRCNNS,
    MaskRCNNT,
)
from keras_internimage.models.detection.cascade_mask_rcnn import CascadeMaskRCNN
from keras_internimage.models.detection.mask_rcnn import MaskRCNN
from keras_internimage.models.detection.pasting import paste_masks

__all__ = [
    "CascadeMaskRCNN",
    "CascadeMaskRCNNL",
    "CascadeMaskRCNNXL",
    "MaskRCNN",
    "MaskRCNNB",
    "MaskRCNNS",
    "MaskRCNNT",
    "paste_masks",
]
