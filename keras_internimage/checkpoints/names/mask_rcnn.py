"""The rename table of Mask R-CNN with an InternImage as its backbone."""

from keras_internimage.checkpoints.names import backbone
from keras_internimage.checkpoints.names.layouts import (
    CONV,
    CONV_WITHOUT_BIAS,
    LINEAR,
    NORM,
    POOLED_LINEAR,
)
from keras_internimage.checkpoints.names.table import RenameTable, Row, counted, where

_BOXES, _MASKS = "roi_head.bbox_head", "roi_head.mask_head"


def _pyramid(layer, official):
    """The rows of four convolutions with a bias, or with a norm in its place."""
    normed = where(lambda config: config.get("pyramid_norm", False), counted(4))
    biased = where(lambda config: not config.get("pyramid_norm", False), counted(4))
    return (
        Row(layer, f"{official}.conv", CONV, biased),
        Row(layer, f"{official}.conv", CONV_WITHOUT_BIAS, normed),
        Row(f"{layer}_norm", f"{official}.ln", NORM, normed),
    )


# What all detectors have between the backbone and what looks into regions.
PROPOSALS = (
    *_pyramid("fpn/lateral{k}", "neck.lateral_convs.{k-1}"),
    *_pyramid("fpn/output{k}", "neck.fpn_convs.{k-1}"),
    Row("rpn/conv", "rpn_head.rpn_conv", CONV),
    Row("rpn/objectness", "rpn_head.rpn_cls", CONV),
    Row("rpn/deltas", "rpn_head.rpn_reg", CONV),
)

HEAD = (
    *PROPOSALS,
    Row("box_head/fc1", f"{_BOXES}.shared_fcs.0", POOLED_LINEAR),
    Row("box_head/fc2", f"{_BOXES}.shared_fcs.1", LINEAR),
    Row("box_head/classes", f"{_BOXES}.fc_cls", LINEAR),
    Row("box_head/deltas", f"{_BOXES}.fc_reg", LINEAR),
    Row("mask_head/conv{k}", f"{_MASKS}.convs.{{k-1}}.conv", CONV, counted(4)),
    Row("mask_head/upsample", f"{_MASKS}.upsample", CONV),
    Row("mask_head/predictions", f"{_MASKS}.conv_logits", CONV),
)

TABLE = RenameTable(
    backbone.ROWS,
    HEAD,
    # The masks' has one output for each class, the boxes' have the background or four for each.
    classifiers=("box_head/classes", "box_head/deltas", "mask_head/predictions"),
    without_classifier="give it to the backbone as its weights",
)
