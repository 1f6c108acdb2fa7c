"""Checks of the detectors' arguments."""

import os

import numpy as np

from keras_internimage.checkpoints import published
from keras_internimage.models import dense
from keras_internimage.variants import VARIANTS

FORMATS = (
    "xyxy",
    "yxyx",
    "xywh",
    "center_xywh",
    "center_yxhw",
    "rel_xyxy",
    "rel_yxyx",
    "rel_xywh",
    "rel_center_xywh",
)
_POSITIVE = (
    "classes",
    "max_detections",
    "proposals",
    "proposals_per_level",
    "channels",
    "units",
)


def check(**options) -> None:
    """Raise unless the arguments of `MaskRCNN` are as it says."""
    for name in _POSITIVE:
        value = options[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive int. Received: {name}={value!r}")
    for name, value in options.items():
        if not name.endswith("threshold"):
            continue
        if not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1. Received: {name}={value!r}")
    if not isinstance(options["pyramid_norm"], bool):
        raise ValueError(
            "`pyramid_norm` must be None, True or False. "
            f"Received: pyramid_norm={options['pyramid_norm']!r}"
        )
    box_format = options["bounding_box_format"]
    if box_format not in FORMATS:
        raise ValueError(
            f"`bounding_box_format` must be one of {', '.join(FORMATS)}. "
            f"Received: bounding_box_format={box_format!r}"
        )


def check_variant(variant: str) -> str:
    """The variant, if it is one.

    Raises:
        ValueError: it is not.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"`backbone` must be a Keras model or one of {', '.join(VARIANTS)}. "
            f"Received: backbone={variant!r}"
        )
    return variant


def check_weights(weights: str | os.PathLike | None) -> None:
    """Raise unless `weights` is None, a keyword, a published name or an existing path."""
    dense.check_weights(weights, "detection", published.DETECTION_DATA)
