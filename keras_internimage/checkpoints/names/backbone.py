"""Stem and stages of InternImage and FlashInternImage: the rows that all tables begin with."""

from keras_internimage.checkpoints.names.layouts import (
    CENTER_SCALE,
    CONV,
    CONV_WITHOUT_BIAS,
    DEPTHWISE_CONV,
    LINEAR,
    LINEAR_WITHOUT_BIAS,
    NORM,
    OFFSET_MASK,
    PACKED_OFFSET_MASK,
    SCALES,
)
from keras_internimage.checkpoints.names.table import (
    Row,
    between_stages,
    blocks,
    once,
    stages,
    twice,
    where,
)

_BLOCK = "stage{i}_block{j}"
_OFFICIAL_BLOCK = "levels.{i-1}.blocks.{j-1}"


def _stage_norms(config):
    return stages(config) if not config["post_norm"] or config["center_feature_scale"] else ()


def _norms_after_blocks(config):
    ids = config["level2_post_norm_block_ids"] if config["level2_post_norm"] else None
    return ({"k": k} for k in range(1, len(ids or ()) + 1))


_scaled_blocks = where(lambda config: config["layer_scale"] is not None, blocks)
_center_scaled_blocks = where(lambda config: config["center_feature_scale"], blocks)
_dcnv3_blocks = where(lambda config: config["core_op"] == "DCNv3", blocks)
_dcnv4_blocks = where(lambda config: config["core_op"] == "DCNv4", blocks)
_dcnv4_dw_blocks = where(lambda config: config["dw_kernel_size"] is not None, _dcnv4_blocks)
_res_post_norm_blocks = where(lambda config: config["res_post_norm"], blocks)


def _optional_bias(layer, official, argument):
    """The rows of a layer of each block that has a bias where an argument says so."""
    return (
        Row(layer, official, LINEAR, where(lambda config: config[argument], blocks)),
        Row(layer, official, LINEAR_WITHOUT_BIAS, where(lambda c: not c[argument], blocks)),
    )


ROWS = (
    Row("stem/conv{k}", "patch_embed.conv{k}", CONV, twice(once)),
    Row("stem/norm{k}", "patch_embed.norm{k}.1", NORM, twice(once)),
    Row(f"{_BLOCK}/norm{{k}}", f"{_OFFICIAL_BLOCK}.norm{{k}}.0", NORM, twice(blocks)),
    Row(f"{_BLOCK}/dcn/center_feature_scale",
        f"{_OFFICIAL_BLOCK}.dcn.center_feature_scale_proj", CENTER_SCALE, _center_scaled_blocks),
    Row(f"{_BLOCK}/dcn/dw_conv", f"{_OFFICIAL_BLOCK}.dcn.dw_conv.0", DEPTHWISE_CONV, _dcnv3_blocks),
    Row(f"{_BLOCK}/dcn/dw_norm", f"{_OFFICIAL_BLOCK}.dcn.dw_conv.1.1", NORM, _dcnv3_blocks),
    Row(f"{_BLOCK}/dcn/offset_mask", f"{_OFFICIAL_BLOCK}.dcn", OFFSET_MASK, _dcnv3_blocks),
    Row(f"{_BLOCK}/dcn/input_proj", f"{_OFFICIAL_BLOCK}.dcn.input_proj", LINEAR, _dcnv3_blocks),
    Row(f"{_BLOCK}/dcn/value_proj", f"{_OFFICIAL_BLOCK}.dcn.value_proj", LINEAR, _dcnv4_blocks),
    Row(f"{_BLOCK}/dcn/offset_mask_dw", f"{_OFFICIAL_BLOCK}.dcn.offset_mask_dw", DEPTHWISE_CONV,
        _dcnv4_dw_blocks),
    Row(f"{_BLOCK}/dcn/offset_mask_proj", f"{_OFFICIAL_BLOCK}.dcn.offset_mask",
        PACKED_OFFSET_MASK, _dcnv4_blocks),
    *_optional_bias(f"{_BLOCK}/dcn/output_proj", f"{_OFFICIAL_BLOCK}.dcn.output_proj",
        "dcn_output_bias"),
    Row(f"{_BLOCK}/mlp_fc1", f"{_OFFICIAL_BLOCK}.mlp.fc1", LINEAR, blocks),
    *_optional_bias(f"{_BLOCK}/mlp_fc2", f"{_OFFICIAL_BLOCK}.mlp.fc2", "mlp_fc2_bias"),
    Row(_BLOCK, _OFFICIAL_BLOCK, SCALES, _scaled_blocks),
    Row(f"{_BLOCK}/res_post_norm{{k}}", f"{_OFFICIAL_BLOCK}.res_post_norm{{k}}.0", NORM,
        twice(_res_post_norm_blocks)),
    Row("stage3_post_norm{k}", "levels.2.post_norms.{k-1}.0", NORM, _norms_after_blocks),
    Row("stage{i}_norm", "levels.{i-1}.norm.0", NORM, _stage_norms),
    Row("stage{i}_downsample/conv", "levels.{i-1}.downsample.conv", CONV_WITHOUT_BIAS,
        between_stages),
    Row("stage{i}_downsample/norm", "levels.{i-1}.downsample.norm.1", NORM, between_stages),
)  # fmt: skip
