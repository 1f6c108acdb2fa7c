"""What models that look at every place of an image share: the pyramid they start from."""

import itertools
import os
from collections.abc import Collection
from typing import Any

import keras
from keras import KerasTensor

from keras_internimage.checkpoints import load_weights, published, read
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.layers.initial_values import skip_initialization
from keras_internimage.models.arguments import check_weights as check_backbone_weights
from keras_internimage.models.backbone import InternImageBackbone
from keras_internimage.variants import VARIANTS, model_name

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


def check_weights(weights: str | os.PathLike | None, task: str, keywords: Collection[str]) -> None:
    """Raise unless `weights` is None, a keyword, a published name of the task or a path."""
    names = published.names(task)
    if weights is None or weights in keywords or weights in names:
        return
    if isinstance(weights, (str, os.PathLike)) and os.path.exists(weights):
        return
    raise ValueError(
        f"`weights` must be None (random initialization), {' or '.join(map(repr, keywords))}, the "
        f"name of a published checkpoint ({', '.join(names)}), or the path of a weights file. "
        "Weights of a backbone alone are given to the backbone (`backbone_weights`). "
        f"Received: weights={weights!r} (there is no such file)"
    )


def build_backbone(
    variant: str,
    weights: str | os.PathLike | None,
    backbone_weights: str | os.PathLike | None,
    **options: Any,
) -> keras.Model:
    """The backbone of a model of which `weights` will be loaded, or else of the backbone alone.

    Args:
        **options: what of `InternImageBackbone` differs from the variant's.

    Raises:
        ValueError: both weights are given, or those of the backbone do not fit.
    """
    if weights is not None and backbone_weights is not None:
        raise ValueError(
            "`weights` hold the backbone's, so that `backbone_weights` must be None. "
            f"Received: weights={weights!r}, backbone_weights={backbone_weights!r}"
        )
    check_backbone_weights(backbone_weights, published.names())
    with skip_initialization(weights is not None or backbone_weights is not None):
        backbone = InternImageBackbone(
            **{**dense_config(variant), **options}, name=model_name(variant)
        )
    # As the official code, which starts T's layer scales at 1: the classifier has none.
    load_weights(
        backbone,
        backbone_weights,
        table=TABLE,
        variant=variant,
        containers=read.of_backbone(VARIANTS[variant].core_op),
        keep_layer_scale=True,
    )
    return backbone


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
