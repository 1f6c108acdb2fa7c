"""The rename table of Cascade Mask R-CNN with an InternImage as its backbone."""

from keras_internimage.checkpoints.names import backbone
from keras_internimage.checkpoints.names.layouts import (
    BATCH_NORM,
    CONV,
    CONV_WITHOUT_BIAS,
    LINEAR,
    POOLED_LINEAR,
)
from keras_internimage.checkpoints.names.mask_rcnn import PROPOSALS
from keras_internimage.checkpoints.names.table import Places, RenameTable, Row, counted

STAGES = 3
_BOXES, _MASKS = "roi_head.bbox_head.{k-1}", "roi_head.mask_head.{k-1}"


def _four_in(places: Places) -> Places:
    """Four layers `{j}`, from 1, in each place."""
    return lambda config: ({**place, "j": j} for place in places(config) for j in range(1, 5))


_stages = counted(STAGES)
_convolutions = _four_in(_stages)

HEAD = (
    *PROPOSALS,
    Row(
        "box_head{k}/conv{j}/conv",
        f"{_BOXES}.shared_convs.{{j-1}}.conv",
        CONV_WITHOUT_BIAS,
        _convolutions,
    ),
    Row("box_head{k}/conv{j}/norm", f"{_BOXES}.shared_convs.{{j-1}}.bn", BATCH_NORM, _convolutions),
    Row("box_head{k}/fc", f"{_BOXES}.shared_fcs.0", POOLED_LINEAR, _stages),
    Row("box_head{k}/classes", f"{_BOXES}.fc_cls", LINEAR, _stages),
    Row("box_head{k}/deltas", f"{_BOXES}.fc_reg", LINEAR, _stages),
    Row("mask_head{k}/conv{j}", f"{_MASKS}.convs.{{j-1}}.conv", CONV, _convolutions),
    Row("mask_head{k}/upsample", f"{_MASKS}.upsample", CONV, _stages),
    Row("mask_head{k}/predictions", f"{_MASKS}.conv_logits", CONV, _stages),
)

TABLE = RenameTable(
    backbone.ROWS,
    HEAD,
    # The masks' have one output for each class, the boxes' have the background or four for each.
    classifiers=tuple(
        layer.format(k=k)
        for k in range(1, STAGES + 1)
        for layer in ("box_head{k}/classes", "box_head{k}/deltas", "mask_head{k}/predictions")
    ),
    without_classifier="give it to the backbone as its weights (`backbone_weights`)",
)
