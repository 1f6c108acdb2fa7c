"""What model a checkpoint belongs to, read off the shapes of its tensors."""

import dataclasses
import math
from collections.abc import Mapping

from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.names import RenameTable, families
from keras_internimage.ops.dcnv4 import channels as packed_channels
from keras_internimage.variants import VARIANTS, title

Shapes = Mapping[str, tuple[int, ...]]

# What a model is called after its head, by the family of its rename table.
HEADS = {
    "upernet": "UperNet",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
}
# The last hidden layer of a detector's box head, or of the first.
_BOX_LAYERS = {
    "mask_rcnn": "roi_head.bbox_head.shared_fcs.1",
    "cascade_mask_rcnn": "roi_head.bbox_head.0.shared_fcs.0",
}

# A file with layer scales holds trained ones: the initial value no longer matters.
_TRAINED_SCALE = 1.0


@dataclasses.dataclass(frozen=True)
class Guess:
    """A model that fits a checkpoint.

    Attributes:
        config: arguments of `keras_internimage.InternImage`.
        variant: key of `VARIANTS` when the geometry is a published one, else None.
        classes: width of the classifier, None without one.
        unseen: arguments that leave no trace in shapes and were taken at their default.
        family: "classifier" (also for a backbone alone), "upernet", "mask_rcnn" or
            "cascade_mask_rcnn".
        head: arguments of `keras_internimage.UperNet`, `MaskRCNN` or `CascadeMaskRCNN` besides;
            empty for a classifier.
    """

    config: dict
    variant: str | None
    classes: int | None
    unseen: tuple[str, ...]
    family: str = "classifier"
    head: dict = dataclasses.field(default_factory=dict)

    @property
    def table(self) -> RenameTable:
        """The rename table of the model."""
        return families.TABLES[self.family]


def infer_config(shapes: Shapes, offset_scale: float | None = None) -> Guess:
    """Find the model a checkpoint belongs to.

    Shapes tell everything but two things. `offset_scale` leaves no trace: a published
    geometry has its own, others get 1 unless told. Which blocks of the third stage a layer
    norm follows is not stored either; as in the published models they are taken to be
    evenly spaced.

    Args:
        shapes: shapes by official name.
        offset_scale: factor of the sampling grid, where known.

    Returns:
        A `Guess`.

    Raises:
        CheckpointError: the names are not those of an InternImage.
    """
    try:
        config = _config(shapes)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            "The checkpoint must hold the tensors of an InternImage (or of a model with one "
            f"as its backbone); {error} is missing or does not fit. "
            f"Received: {len(shapes)} tensors, {', '.join(list(shapes)[:4])}, ..."
        ) from error
    variant = _variant(config)
    unseen: tuple[str, ...] = ()
    if offset_scale is not None:
        config["offset_scale"] = float(offset_scale)
    elif variant is not None:
        config["offset_scale"] = VARIANTS[variant].offset_scale
    else:
        config["offset_scale"] = 1.0
        unseen = ("offset_scale",)
    family = families.of_official(shapes)
    predictions = shapes.get(families.TABLES[family].classifier_names[-2])
    classes = predictions[0] if predictions else None
    return Guess(config, variant, classes, unseen, family, _head(family, shapes))


def _head(family, shapes):
    """Arguments of a head that its shapes tell."""
    if family in _BOX_LAYERS:
        widths = {
            "channels": shapes.get("neck.lateral_convs.0.conv.weight"),
            "units": shapes.get(f"{_BOX_LAYERS[family]}.bias"),
        }
        norm = "neck.lateral_convs.0.ln.weight" in shapes
        found = {name: shape[0] for name, shape in widths.items() if shape}
        return {**found, **({"pyramid_norm": True} if norm else {})}
    if family != "upernet":
        return {}
    predictions = shapes.get("decode_head.conv_seg.weight", ())
    auxiliary = any(map(families.TABLES[family].is_optional, shapes))
    return {
        "auxiliary": auxiliary,
        **({"channels": predictions[1]} if len(predictions) == 4 else {}),
    }


def _config(shapes):
    block = "levels.{}.blocks.{}."
    channels = shapes["patch_embed.conv2.weight"][0]
    depths = tuple(_count(shapes, f"levels.{level}.blocks.{{}}.") for level in range(4))
    first = block.format(0, 0)
    center = f"{first}dcn.center_feature_scale_proj_weight" in shapes
    flash = f"{first}dcn.offset_mask.weight" in shapes
    rows = "offset_mask" if flash else "mask"
    masks = [shapes[f"{block.format(level, 0)}dcn.{rows}.weight"][0] for level in range(4)]
    widths = [channels * 2**level for level in range(4)]
    if flash:
        points, groups = 9, _packed_groups(masks)
    else:
        if center:
            own = "dcn.center_feature_scale_proj_weight"
            points = masks[0] // shapes[first + own][0]
        else:
            points = _points(masks, widths)
        groups = tuple(rows // points for rows in masks)
    depthwise = "offset_mask_dw" if flash else "dw_conv.0"
    res_post_norm = f"{first}res_post_norm1.0.weight" in shapes
    # Without center_feature_scale a stage ends with a norm exactly if blocks normalise their
    # input. With it every stage does; of the published models one (G) is post_norm, the other
    # (H) has norms at both ends.
    post_norm = not res_post_norm if center else "levels.0.norm.0.weight" not in shapes
    norms = _count(shapes, "levels.2.post_norms.{}.")
    period = depths[2] // norms if norms else 0
    return {
        "channels": channels,
        "depths": depths,
        "groups": groups,
        "mlp_ratio": shapes[f"{first}mlp.fc1.weight"][0] / channels,
        "layer_scale": _TRAINED_SCALE if f"{first}gamma1" in shapes else None,
        "post_norm": post_norm,
        "res_post_norm": res_post_norm,
        "dw_kernel_size": _side(shapes, f"{first}dcn.{depthwise}.weight", optional=flash),
        "level2_post_norm": norms > 0,
        "level2_post_norm_block_ids": (
            tuple(period * (k + 1) - 1 for k in range(norms)) if norms else None
        ),
        "center_feature_scale": center,
        "use_clip_projector": "dcnv3_head_x3.weight" in shapes,
        "remove_center": points == 8,
        "core_op": "DCNv4" if flash else "DCNv3",
        # Of a file that lacks one of them, the others tell that it is missing.
        "dcn_output_bias": not flash or any(n.endswith(".dcn.output_proj.bias") for n in shapes),
        "mlp_fc2_bias": not flash or any(n.endswith(".mlp.fc2.bias") for n in shapes),
    }


def _side(shapes, name, optional):
    """Side of a convolution's window, None if the file need not have it and has not."""
    return None if optional and name not in shapes else shapes[name][-1]


def _packed_groups(rows):
    """Groups of DCNv4 in each stage: nine points of three numbers, then up to 7 unused rows."""
    groups = tuple(count // 27 for count in rows)
    if any(packed_channels(own, 9) != count for own, count in zip(groups, rows, strict=True)):
        raise ValueError(f"a number of groups for offsets and masks of {rows} channels")
    return groups


def _points(masks, widths):
    """Sampling points per group: 9, or 8 without the centre.

    A mask has points * groups channels; with the right number all stages have whole groups
    of one width, the paper's C'.
    """
    for points in (9, 8):
        if any(rows % points for rows in masks):
            continue
        groups = [rows // points for rows in masks]
        ratios = {width / count for width, count in zip(widths, groups, strict=True)}
        if len(ratios) == 1 and ratios.pop().is_integer():
            return points
    raise ValueError(f"a number of groups for masks of {masks} channels")


def _count(shapes, pattern):
    """How many of a numbered module there are, from 0 on."""
    heads = {".".join(name.split(".")[: pattern.count(".")]) + "." for name in shapes}
    number = 0
    while pattern.format(number) in heads:
        number += 1
    return number


def _variant(config):
    """The variant of a geometry. Layer scale may differ: T has one in dense tasks only."""
    if config["remove_center"] or config["mlp_ratio"] != 4:
        return None
    own = ("layer_scale", "offset_scale", "use_clip_projector")
    for key, variant in VARIANTS.items():
        known = {name: value for name, value in variant.config().items() if name not in own}
        if all(config[name] == value for name, value in known.items()):
            return key
    return None


def expected_names(guess: Guess) -> list[str]:
    """Names of all tensors that the official checkpoint of a guessed model holds."""
    entries = guess.table.expand({**guess.config, **guess.head}, head=guess.classes is not None)
    return [name for entry in entries for name in entry.official]


def describe(guess: Guess) -> str:
    """The guessed model in a few words."""
    config = guess.config
    size = f"channels={config['channels']}, depths={config['depths']}, groups={config['groups']}"
    family = "a FlashInternImage" if config["core_op"] == "DCNv4" else "an InternImage"
    name = title(guess.variant) if guess.variant else family
    prefix = f"{HEADS[guess.family]} on " if guess.family in HEADS else ""
    scale = ", layer_scale" if config["layer_scale"] else ""
    return f"{prefix}{name} ({size}{scale})"


def parameters(shapes: Shapes, table: RenameTable) -> int:
    """Number of trainable parameters: all values but batch normalisation's averages."""
    return sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if table.is_official(name) and not name.endswith(("running_mean", "running_var"))
    )
