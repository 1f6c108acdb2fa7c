"""The parts of detectors: feature pyramid, proposals, and what looks into regions."""

from keras_internimage.layers.detection.cascade import CascadeBoxHead
from keras_internimage.layers.detection.heads import BoxHead, MaskHead
from keras_internimage.layers.detection.pyramid import FeaturePyramid
from keras_internimage.layers.detection.regions import RegionAlign
from keras_internimage.layers.detection.rpn import RegionProposalHead

__all__ = [
    "BoxHead",
    "CascadeBoxHead",
    "FeaturePyramid",
    "MaskHead",
    "RegionAlign",
    "RegionProposalHead",
]
