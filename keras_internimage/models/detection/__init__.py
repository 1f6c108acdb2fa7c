"""Detectors: Mask R-CNN over InternImage or another backbone."""

from keras_internimage.models.detection.mask_rcnn import MaskRCNN

__all__ = ["MaskRCNN"]
