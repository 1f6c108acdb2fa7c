"""The official training recipes as data, and six of our own: `finetune`, `scratch` and their
namesakes for segmentation, `finetune-upernet` and `scratch-upernet`, and for detection,
`finetune-detection` and `scratch-detection`.

Source of all other rows: https://github.com/OpenGVLab/InternImage, the configuration files of
`classification`, `detection` and `segmentation`, and those of https://github.com/OpenGVLab/DCNv4
for FlashInternImage. This module imports no Keras.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_internimage.training.recipe_types import RandAugment, Recipe
from keras_internimage.variants import VARIANTS, base

_CLASSIFICATION: dict[str, Any] = {
    "color_jitter": 0.4,
    "rand_augment": RandAugment(2, 9.0, 0.5, 0.5),
    "crop_scale": (0.08, 1.0),
    "ema": 0.9999,
}
_FROM_22K: dict[str, Any] = {
    **_CLASSIFICATION,
    "epochs": 20,
    "warmup_epochs": 2,
    "optional_layer_decay": 0.9,
    "label_smoothing": 0.3,
}
# Detection and segmentation: the ramp of mmdetection and mmsegmentation, images of 16 per step.
_DENSE: dict[str, Any] = {
    "batch_size": 16,
    "reference_batch_size": 16,
    "layer_decay_scheme": "dense",
    "clip_norm": None,
}
_DETECTION: dict[str, Any] = {
    **_DENSE,
    "resolution": 800,
    "schedule": "step",
    "warmup_iterations": 500,
    "learning_rate": 1e-4,
    "warmup_learning_rate": 1e-7,
}
_ONE: dict[str, Any] = {"epochs": 12, "milestones": (8, 11)}
_THREE: dict[str, Any] = {
    "epochs": 36,
    "milestones": (27, 33),
    "short_sides": tuple(range(480, 801, 32)),
    "crop_probability": 0.5,
}
_SEGMENTATION: dict[str, Any] = {
    **_DENSE,
    "schedule": "poly",
    "iterations": 160_000,
    "warmup_iterations": 1500,
}
_LARGE_SEGMENTATION: dict[str, Any] = {
    **_SEGMENTATION,
    "learning_rate": 2e-5,
    "warmup_learning_rate": 2e-11,
    "clip_norm": 0.1,
}
_SMALL = {"T": 0.2, "S": 0.3, "B": 0.4, "FlashT": 0.2, "FlashS": 0.3, "FlashB": 0.3}
_SMALL_VARIANTS, _LARGE_VARIANTS = tuple(_SMALL), ("L", "XL", "FlashL")
_ALL = tuple(VARIANTS)
_WITH_DETECTOR = tuple(variant for variant in _ALL if base(variant) not in ("H", "G"))
_WITH_UPERNET = tuple(variant for variant in _ALL if variant != "G")


def _both(by_variant):
    """Values by variant, of which FlashInternImage has those of the same size."""
    return {name: by_variant[base(name)] for name in VARIANTS if base(name) in by_variant}


# Not official: a user's own photographs, on one device.
_OWN: dict[str, Any] = {
    "official": False,
    "resolution": {name: row.resolution for name, row in VARIANTS.items()},
    "batch_size": None,
    "drop_path_rate": _both(
        {"T": 0.1, "S": 0.2, "B": 0.2, "L": 0.2, "XL": 0.2, "H": 0.2, "G": 0.4}
    ),
    "label_smoothing": 0.1,
}

_OWN_SEGMENTATION: dict[str, Any] = {
    **_DENSE,
    **_OWN,
    "resolution": _both({"T": 512, "S": 512, "B": 512, "L": 640, "XL": 640, "H": 896}),
    "schedule": "poly",
    "clip_norm": 5.0,
    "label_smoothing": 0.0,
}

# Detection: the official size and batch of reference. Few photographs are seen at several sizes,
# which is what keeps them apart; crops of 3x need longer.
_OWN_DETECTION: dict[str, Any] = {
    **_DENSE,
    **_OWN,
    "resolution": 800,
    "short_sides": tuple(range(640, 801, 32)),
    "clip_norm": 5.0,
    "label_smoothing": 0.0,
}

_ROWS = (
    # From ImageNet weights, in few epochs: the rate is 6e-5 at 16 images in a step, earlier blocks
    # learn more slowly, the images change mildly.
    Recipe(
        "finetune",
        _ALL,
        epochs=10,
        warmup_epochs=0.5,
        learning_rate=2e-3,
        layer_decay=0.9,
        crop_scale=(0.4, 1.0),
        color_jitter=0.2,
        **_OWN,
    ),
    # From random weights, which know nothing that could be lost: ten times as long, at twice the
    # rate (1.25e-4 at 16 images in a step), the same for all blocks. What is seen so often must
    # change more, hence smaller crops and the official RandAugment. No mixing, which needs still
    # more epochs, and no moving average, whose memory of 10,000 steps is longer than many a
    # training.
    Recipe(
        "scratch",
        _ALL,
        epochs=100,
        warmup_epochs=5,
        learning_rate=4e-3,
        crop_scale=(0.2, 1.0),
        rand_augment=RandAugment(2, 9.0, 0.5, 0.5),
        **_OWN,
    ),
    # The same of UperNet: its decoder is random, and learns faster than the blocks below it.
    Recipe(
        "finetune-upernet",
        _WITH_UPERNET,
        epochs=50,
        warmup_epochs=1,
        learning_rate=2e-4,
        layer_decay=0.9,
        **_OWN_SEGMENTATION,
    ),
    Recipe(
        "scratch-upernet",
        _WITH_UPERNET,
        epochs=200,
        warmup_epochs=5,
        learning_rate=5e-4,
        **_OWN_SEGMENTATION,
    ),
    # From the weights for COCO, or of the backbone alone.
    Recipe(
        "finetune-detection",
        _WITH_DETECTOR,
        epochs=24,
        warmup_epochs=1,
        learning_rate=2e-4,
        layer_decay=0.9,
        **_OWN_DETECTION,
    ),
    # With the crops of 3x: what is seen so often must change more.
    Recipe(
        "scratch-detection",
        _WITH_DETECTOR,
        epochs=150,
        warmup_epochs=5,
        learning_rate=4e-4,
        **{**_OWN_DETECTION, "short_sides": tuple(range(480, 801, 32)), "crop_probability": 0.5},
    ),
    Recipe(
        "in1k-224",
        _SMALL_VARIANTS,
        resolution=224,
        batch_size=4096,
        epochs=300,
        warmup_epochs=20,
        learning_rate=5e-4,
        warmup_learning_rate=5e-7,
        minimum_learning_rate=5e-6,
        drop_path_rate=_both({"T": 0.1, "S": 0.4, "B": 0.5}),
        label_smoothing=0.1,
        random_erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        **_CLASSIFICATION,
    ),
    Recipe(
        "22kto1k-384",
        _LARGE_VARIANTS,
        resolution=384,
        drop_path_rate=_both({"L": 0.1, "XL": 0.2}),
        **_FROM_22K,
    ),
    Recipe("22kto1k-640", ("H",), resolution=640, drop_path_rate=0.2, **_FROM_22K),
    Recipe("22kto1k-512", ("G",), resolution=512, drop_path_rate=0.4, **_FROM_22K),
    Recipe(
        "inat18-384",
        ("H",),
        resolution=384,
        drop_path_rate=0.6,
        **dict(_FROM_22K, epochs=100, warmup_epochs=0, ema=None, optional_layer_decay=None),
    ),
    Recipe("mask-rcnn-1x", _SMALL_VARIANTS, drop_path_rate=_SMALL, **_DETECTION, **_ONE),
    Recipe("mask-rcnn-3x", _SMALL_VARIANTS, drop_path_rate=_SMALL, **_DETECTION, **_THREE),
    Recipe(
        "cascade-1x",
        _LARGE_VARIANTS,
        layer_decay=0.94,
        drop_path_rate=0.4,
        **_DETECTION,
        **_ONE,
    ),
    Recipe(
        "cascade-3x",
        _LARGE_VARIANTS,
        layer_decay=0.9,
        drop_path_rate=_both({"L": 0.4, "XL": 0.6}),
        # mmcv's momentum 1e-4 is the weight of the new value.
        ema=0.9999,
        ema_ramp=2000,
        **{
            **_DETECTION,
            **_THREE,
            "batch_size": 64,
            "reference_batch_size": 64,
            "learning_rate": 2e-4,
            "warmup_learning_rate": 2e-7,
        },
    ),
    Recipe(
        "dino-1x",
        ("T", "L"),
        layer_decay=0.9,
        drop_path_rate={"T": 0.2, "L": 0.4},
        epochs=12,
        milestones=(11,),
        **{**_DETECTION, "weight_decay": 1e-4, "clip_norm": 0.1},
    ),
    # Objects365, then COCO: the lengths of the two runs are not among the published facts.
    Recipe(
        "dino-objects365",
        ("H", "G"),
        layer_decay=0.94,
        drop_path_rate=0.5,
        ema=0.9999,
        **{**_DETECTION, "batch_size": None, "weight_decay": 1e-4, "clip_norm": 0.1},
    ),
    Recipe(
        "upernet-512",
        _SMALL_VARIANTS,
        resolution=512,
        learning_rate=6e-5,
        warmup_learning_rate=6e-11,
        drop_path_rate=_SMALL,
        **_SEGMENTATION,
    ),
    Recipe(
        "upernet-640",
        _LARGE_VARIANTS,
        resolution=640,
        layer_decay=0.94,
        drop_path_rate=0.4,
        **_LARGE_SEGMENTATION,
    ),
    Recipe(
        "upernet-896",
        ("H", "G"),
        resolution=896,
        layer_decay=0.95,
        drop_path_rate=0.5,
        **_LARGE_SEGMENTATION,
    ),
    # 1e-5 for ADE20K, 2e-5 for the other data sets.
    Recipe(
        "mask2former-896",
        ("H",),
        resolution=896,
        layer_decay=0.95,
        drop_path_rate=0.5,
        **{
            **_LARGE_SEGMENTATION,
            "iterations": 80_000,
            "learning_rate": 1e-5,
            "warmup_learning_rate": 1e-11,
        },
    ),
)

RECIPES = {row.name: row for row in _ROWS}


def recipe(name: str, variant: str | None = None, **changes: Any) -> Recipe:
    """A row of the table, its values chosen for one variant.

    ```python
    recipe("finetune", "T", epochs=5)     # from pretrained weights
    recipe("scratch", "T")                # from random ones
    ```

    Args:
        name: key of `RECIPES`.
        variant: one of the row's `variants`; None where no value differs between variants.
        **changes: values to put in place of the row's, by the names of `Recipe`.

    Returns:
        A `Recipe` without mappings.

    Raises:
        ValueError: there is no such row, the row is not for this variant, or None was given where
            values differ between variants.
        TypeError: a change names no attribute of `Recipe`.
    """
    if name not in RECIPES:
        raise ValueError(f"`name` must be one of {', '.join(RECIPES)}. Received: name={name!r}")
    row = RECIPES[name]
    if variant is not None and variant not in row.variants:
        raise ValueError(
            f"`variant` must be one of {', '.join(row.variants)} for the recipe '{name}'. "
            f"Received: variant={variant!r}"
        )
    row = dataclasses.replace(row, **changes)
    by_variant = unresolved(row)
    if not by_variant:
        return row
    if variant is None:
        raise ValueError(
            f"`variant` must be one of {', '.join(row.variants)}: in the recipe '{name}', "
            f"{', '.join(by_variant)} differ between them. Received: variant=None"
        )
    return dataclasses.replace(row, **{field: getattr(row, field)[variant] for field in by_variant})


def unresolved(row: Recipe) -> list[str]:
    """Names of the attributes that still have a value for each variant."""
    fields = (field.name for field in dataclasses.fields(row))
    return [name for name in fields if isinstance(getattr(row, name), Mapping)]


def check_resolved(row: object) -> None:
    """Raise unless `row` is a `Recipe` for one variant."""
    if not isinstance(row, Recipe):
        raise ValueError(
            f"`recipe` must be a Recipe, as `recipe(name, variant)` gives. Received: recipe={row!r}"
        )
    if unresolved(row):
        raise ValueError(
            f"`recipe` must be for one variant, as `recipe({row.name!r}, variant)` gives. "
            f"Received: a recipe with a {unresolved(row)[0]} for each variant"
        )
