"""Checks of the segmentation models' arguments."""

import itertools
import os

import keras
from keras import KerasTensor

from keras_internimage.checkpoints import published

OUTPUT_SIZES = ("input", "quarter")
LEVELS = 4


def pyramid(backbone: keras.Model) -> list[KerasTensor]:
    """The four coarsest feature maps of a backbone, finest first.

    Raises:
        ValueError: it is no Functional model of one input with such maps.
    """
    outputs = getattr(backbone, "pyramid_outputs", None)
    if not isinstance(outputs, dict) or len(outputs) < LEVELS:
        raise ValueError(
            f"`backbone` must be a Keras model with `pyramid_outputs`, a dict of at least {LEVELS} "
            "feature maps. Received: "
            f"backbone={backbone!r}"
            + (f" with {sorted(outputs)}" if isinstance(outputs, dict) else "")
        )
    inputs = backbone.inputs
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise ValueError(
            f"`backbone` must have one input, images (N, H, W, channels). Received: inputs={inputs}"
        )
    # "P10" would come after "P9".
    names = sorted(outputs, key=lambda name: (len(name), name))[-LEVELS:]
    maps = [outputs[name] for name in names]
    wrong = [
        f"{name}: {tuple(x.shape)}"
        for name, x in zip(names, maps, strict=True)
        if len(x.shape) != 4 or x.shape[-1] is None
    ]
    for finer, coarser in itertools.pairwise(maps):
        known = [
            (a, b)
            for a, b in zip(finer.shape[1:3], coarser.shape[1:3], strict=True)
            if a is not None and b is not None
        ]
        if any(a < b for a, b in known):
            wrong.append(f"{tuple(finer.shape)} before {tuple(coarser.shape)}")
    if wrong:
        raise ValueError(
            "The backbone's feature maps must be (N, h, w, C), channels last, each no larger than "
            f"the one before. Received: {', '.join(wrong)}"
        )
    return maps


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
    names = published.names("segmentation")
    if weights is None or weights in published.SEGMENTATION_DATA or weights in names:
        return
    if isinstance(weights, (str, os.PathLike)) and os.path.exists(weights):
        return
    raise ValueError(
        "`weights` must be None (random initialization), 'ade20k' or 'cityscapes', the name of a "
        f"published checkpoint ({', '.join(names)}), or the path of a weights file. Weights of a "
        "backbone alone are given to the backbone (`backbone_weights`). "
        f"Received: weights={weights!r} (there is no such file)"
    )
