"""What models that look at every place of an image share: the pyramid they start from."""

import itertools
from typing import Any

import keras
from keras import KerasTensor

from keras_internimage.variants import VARIANTS

LEVELS = 4
# The initial layer scale of the official models where the classifier of the size has none.
_LAYER_SCALE = 1.0


def dense_config(variant: str) -> dict[str, Any]:
    """Arguments of a variant's backbone in the official models of segmentation and detection."""
    config = VARIANTS[variant].config()
    config.pop("use_clip_projector")
    if not config["res_post_norm"]:
        config["layer_scale"] = config["layer_scale"] or _LAYER_SCALE
    return config


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
