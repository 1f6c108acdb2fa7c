"""The rename table of InternImage with a classifier's head, or without any."""

from keras_internimage.checkpoints.names import backbone
from keras_internimage.checkpoints.names.layouts import (
    ATTENTION_INPUT,
    BATCH_NORM,
    CONV,
    CONV_WITHOUT_BIAS,
    LINEAR,
    NORM,
    SHUFFLED_CONV,
)
from keras_internimage.checkpoints.names.table import RenameTable, Row, once, where


def _qkv(config):
    return ({"s": letter} for letter in "qkv")


def _has_clip_head(config):
    return config["use_clip_projector"]


def _has_average_head(config):
    return not config["use_clip_projector"]


_average_head = where(_has_average_head, once)
_clip_head = where(_has_clip_head, once)

HEAD = (
    Row("head_conv", "conv_head.0", CONV_WITHOUT_BIAS, _average_head),
    Row("head_norm", "conv_head.1.0", BATCH_NORM, _average_head),
    Row("head_x4", "dcnv3_head_x4.0", SHUFFLED_CONV, _clip_head),
    Row("head_x3", "dcnv3_head_x3", CONV, _clip_head),
    Row("attention_pool/norm_{s}", "clip_projector.norm1_{s}.0", NORM, where(_has_clip_head, _qkv)),
    Row("attention_pool/query", "clip_projector.cross_dcn.q", ATTENTION_INPUT, _clip_head),
    Row("attention_pool/key", "clip_projector.cross_dcn.k", ATTENTION_INPUT, _clip_head),
    Row("attention_pool/value", "clip_projector.cross_dcn.v", ATTENTION_INPUT, _clip_head),
    Row("attention_pool/proj", "clip_projector.cross_dcn.proj", LINEAR, _clip_head),
    Row("fc_norm", "fc_norm.0", NORM, _clip_head),
    Row("predictions", "head", LINEAR),
)

TABLE = RenameTable(
    backbone.ROWS,
    HEAD,
    classifiers=("predictions",),
    without_classifier="build the model with include_top=False",
)
