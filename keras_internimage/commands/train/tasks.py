"""What a training is for: classes of images or pixels, or objects. Plain data, without Keras."""

import dataclasses
import importlib

from keras_internimage.variants import VARIANTS, base, title

# The published detectors: key of `checkpoints.names.families.TABLES`, by variant.
MASK_RCNN, CASCADE = "mask_rcnn", "cascade_mask_rcnn"
DETECTORS = {
    variant: CASCADE if base(variant) in ("L", "XL") else MASK_RCNN
    for variant in VARIANTS
    if base(variant) not in ("H", "G")
}
_DETECTOR_NAMES = {MASK_RCNN: "Mask R-CNN", CASCADE: "Cascade Mask R-CNN"}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, and what the command chooses for it.

    Attributes:
        name: of the task, and of the module beside this one that does what only this task needs.
        metric: what is measured in validation: its key in the history.
        measure: the same in words.
        recipe, scratch: keys of `training.RECIPES`, for pretrained weights and for random ones.
        variants: keys of `VARIANTS` that there is a model of.
        weights: what `--weights` takes, in words.
        head: what is on the network, in words.
        crops: what `resolution` is.
        try_it: the command that runs a finished model.
        decoder: channels of what follows the backbone, as in the published models; 0 for none.
        options: names of the options that only some tasks have, of those that this one has.
    """

    name: str
    metric: str
    measure: str
    recipe: str
    scratch: str
    variants: tuple[str, ...]
    weights: str
    head: str
    crops: str
    try_it: str
    decoder: int = 0
    options: tuple[str, ...] = ()

    def network(self, variant):
        """How the model of a variant is called, or of a network of another size."""
        head = _DETECTOR_NAMES[detector(variant)] if self is DETECTION else self.head
        backbone = title(variant) if variant in VARIANTS else "InternImage"
        return f"{head} on {backbone}" if head else backbone

    def box_heads(self, variant):
        """How many box heads a model has."""
        if self is not DETECTION:
            return 0
        return 3 if detector(variant) == CASCADE else 1

    def module(self):
        """The module of the task, which imports Keras."""
        return importlib.import_module(f"keras_internimage.commands.train.{self.name}")


CLASSIFICATION = Task(
    name="classification",
    metric="val_accuracy",
    measure="of the validation images right",
    recipe="finetune",
    scratch="scratch",
    variants=tuple(VARIANTS),
    weights="imagenet, imagenet22k",
    head="",
    crops="pixels",
    try_it="internimage-predict",
    options=("class_weights", "sampling"),
)
SEGMENTATION = Task(
    name="segmentation",
    metric="val_logits_mean_iou",
    measure="mIoU on the validation images",
    recipe="finetune-upernet",
    scratch="scratch-upernet",
    variants=tuple(name for name in VARIANTS if name != "G"),
    weights="imagenet, imagenet22k, ade20k, cityscapes",
    head="UperNet",
    crops="pixels: crops, and the shorter side in validation",
    try_it="internimage-segment",
    decoder=512,
    options=("decoder_channels", "reduce_zero_label"),
)
DETECTION = Task(
    name="detection",
    metric="val_box_ap",
    measure="box AP on the validation images",
    recipe="finetune-detection",
    scratch="scratch-detection",
    variants=tuple(DETECTORS),
    weights="coco, imagenet, imagenet22k",
    head="",
    crops="pixels: the shorter side, unless the longer one would exceed 5/3 of it",
    try_it="internimage-detect",
    decoder=256,
    options=("decoder_channels", "masks"),
)
TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION, DETECTION)}
# Options that are not for every task.
PARTIAL = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.options))


def detector(variant):
    """Which detector is on a variant; on a network of no published size Mask R-CNN."""
    return DETECTORS.get(variant, MASK_RCNN)


def of(options):
    """The `Task` of the options: the one given, or by what the folder of the data holds.

    Raises:
        ValueError: the folder does not tell.
    """
    from keras_internimage.data import coco_layout, mask_layout

    if options.task is not None:
        return TASKS[options.task]
    # First: `images/` and `annotations/` are also folders of images and masks.
    if coco_layout.holds_coco(options.data):
        return DETECTION
    if mask_layout.holds_masks(options.data):
        return SEGMENTATION
    others = mask_layout.without_masks(options.data)
    if others is not None:
        raise ValueError(
            "DATA_DIR must have masks/ beside images/, for segmentation; --task classification "
            "takes folders of any name for classes. "
            f"Received: {options.data} with images/ and {others}"
        )
    return CLASSIFICATION
