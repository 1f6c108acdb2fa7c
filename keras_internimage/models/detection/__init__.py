"""Detectors: Mask R-CNN over InternImage or another backbone."""

from keras_internimage.models.detection.applications import MaskRCNNB, MaskRCNNS, MaskRCNNT
from keras_internimage.models.detection.mask_rcnn import MaskRCNN
from keras_internimage.models.detection.pasting import paste_masks

__all__ = ["MaskRCNN", "MaskRCNNB", "MaskRCNNS", "MaskRCNNT", "paste_masks"]
