"""The rename table of Mask R-CNN with an InternImage as its backbone."""

from keras_internimage.checkpoints.names import backbone
from keras_internimage.checkpoints.names.layouts import CONV, LINEAR, POOLED_LINEAR
from keras_internimage.checkpoints.names.table import RenameTable, Row, counted

_BOXES, _MASKS = "roi_head.bbox_head", "roi_head.mask_head"

# What all detectors have between the backbone and what looks into regions.
PROPOSALS = (
    Row("fpn/lateral{k}", "neck.lateral_convs.{k-1}.conv", CONV, counted(4)),
    Row("fpn/output{k}", "neck.fpn_convs.{k-1}.conv", CONV, counted(4)),
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
