"""The rename table of UperNet with an InternImage as its backbone."""

from keras_internimage.checkpoints.names import backbone
from keras_internimage.checkpoints.names.layouts import BATCH_NORM, CONV, CONV_WITHOUT_BIAS
from keras_internimage.checkpoints.names.table import RenameTable, Row, counted, once, where

AUXILIARY = "auxiliary_head."


def _units(layer, official, places=once):
    """The rows of a convolution without bias and the batch normalisation that follows it."""
    return (
        Row(f"{layer}/conv", f"{official}.conv", CONV_WITHOUT_BIAS, places),
        Row(f"{layer}/norm", f"{official}.bn", BATCH_NORM, places),
    )


_auxiliary = where(lambda config: config.get("auxiliary", True), once)

HEAD = (
    *_units("decoder/pool{k}", "decode_head.psp_modules.{k-1}.1", counted(4)),
    *_units("decoder/pool_fusion", "decode_head.bottleneck"),
    *_units("decoder/lateral{k}", "decode_head.lateral_convs.{k-1}", counted(3)),
    *_units("decoder/output{k}", "decode_head.fpn_convs.{k-1}", counted(3)),
    *_units("decoder/fusion", "decode_head.fpn_bottleneck"),
    *_units("auxiliary", f"{AUXILIARY}convs.0", _auxiliary),
    Row("auxiliary_predictions", f"{AUXILIARY}conv_seg", CONV, _auxiliary),
    Row("decode_predictions", "decode_head.conv_seg", CONV),
)

TABLE = RenameTable(
    backbone.ROWS,
    HEAD,
    classifiers=("auxiliary_predictions", "decode_predictions"),
    without_classifier="give it to the backbone as its weights (`backbone_weights`)",
    optional=(AUXILIARY,),
)
