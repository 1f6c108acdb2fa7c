"""Checks of the segmentation models' arguments."""

import os

from keras_internimage.checkpoints import published
from keras_internimage.models import dense

OUTPUT_SIZES = ("input", "quarter")


def check(classes: int, output_size: str, channels: int, drop_rate: float) -> None:
    """Raise unless the arguments of `UperNet` are as it says."""
    for name, value in (("classes", classes), ("channels", channels)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive int. Received: {name}={value!r}")
    if output_size not in OUTPUT_SIZES:
        raise ValueError(
            f"`output_size` must be 'input' or 'quarter'. Received: output_size={output_size!r}"
        )
    if not 0 <= drop_rate < 1:
        raise ValueError(
            f"`drop_rate` must be at least 0 and less than 1. Received: drop_rate={drop_rate!r}"
        )


def check_weights(weights: str | os.PathLike | None) -> None:
    """Raise unless `weights` is None, a keyword, a published name or an existing path."""
    dense.check_weights(weights, "segmentation", published.SEGMENTATION_DATA)
