"""What a detector is trained with: the objects of each image of a batch, and checks of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

KEYS = ("boxes", "labels", "masks")


@dataclasses.dataclass(frozen=True)
class Targets:
    """The objects of a batch, at least one place for one in each image.

    `boxes` `(N, M, 4)`, left, top, right, bottom in pixels of the resized images, zero where there
    is no object; `labels` and `valid` `(N, M)`; `masks` `(N, M, H, W)`, bools, or None.
    """

    boxes: Any
    labels: Any
    valid: Any
    masks: Any


def read_targets(y, sizes, box_format: str) -> Targets:
    """The targets of `fit` as tensors.

    An object of a label below 0 is none, nor is one without extent.

    Args:
        y: checked by `check_targets`.
        sizes: `(N, 2)`, heights and widths of the images.
        box_format: of `y["boxes"]`.
    """
    boxes, labels = ops.cast(y["boxes"], "float32"), ops.cast(y["labels"], "int32")
    sides = ops.cast(sizes, "float32")[:, None]
    boxes = keras.utils.bounding_boxes.convert_format(
        boxes, source=box_format, target="xyxy", height=sides[..., :1], width=sides[..., 1:]
    )
    masks = y.get("masks")
    if masks is not None:
        # Masks of pictures are often 0 and 255: as numbers, a pixel at the edge would be all.
        masks = _covered(masks)
    count = ops.shape(boxes)[1]
    if not isinstance(count, int) or count < 1:
        missing = ((0, 0), (0, ops.maximum(1 - count, 0) if not isinstance(count, int) else 1))
        labels = ops.pad(labels, missing, constant_values=-1)
        boxes = ops.pad(boxes, (*missing, (0, 0)))
        if masks is not None:
            masks = ops.cast(masks, "uint8")
            masks = ops.cast(ops.pad(masks, (*missing, (0, 0), (0, 0))), "bool")
    extent = ops.min(boxes[..., 2:] - boxes[..., :2], axis=-1)
    valid = (labels >= 0) & (extent > 0)
    boxes = ops.where(valid[..., None], boxes, 0)
    return Targets(ops.stop_gradient(boxes), labels, valid, masks)


def _covered(masks):
    """Where masks of any type are set, bools: half and more of a float's 1, any other integer."""
    dtype = keras.backend.standardize_dtype(masks.dtype)
    if dtype == "bool":
        return ops.convert_to_tensor(masks)
    return masks >= 0.5 if keras.backend.is_float_dtype(dtype) else ops.not_equal(masks, 0)


def check_targets(x, y, classes: int, mask_heads: Sequence[str]) -> None:
    """Raise unless `y` fits `x`, as far as shapes and, where they are known, values tell.

    Args:
        x: the images, or the dict that the model takes.
        y: what should be a dict of "boxes", "labels" and "masks".
        classes: number of classes.
        mask_heads: attributes of the mask heads that learn: without any, masks may be missing.

    Raises:
        ValueError: something is missing, or not as `MaskRCNN` says.
    """
    if not isinstance(y, dict) or not set(y) <= set(KEYS) or not {"boxes", "labels"} <= set(y):
        received = sorted(y) if isinstance(y, dict) else type(y).__name__
        raise ValueError(
            f"`y` must be a dict of {', '.join(map(repr, KEYS))}. Received: y={received}"
        )
    if mask_heads and y.get("masks") is None:
        freezing = ", ".join(f"`model.{name}.trainable = False`" for name in mask_heads)
        raise ValueError(
            f'`y` must have "masks", or the model no mask head that learns: {freezing} before '
            f"`compile` leaves masks out. Received: y={sorted(y)}"
        )
    images = _shape(x["images"] if isinstance(x, dict) else x)
    shapes = {key: _shape(value) for key, value in y.items() if value is not None}
    objects = shapes["labels"][1:2] or (None,)
    wanted = {
        "labels": (images[0], *objects),
        "boxes": (images[0], *objects, 4),
        "masks": (images[0], *objects, *images[1:3]),
    }
    for key, shape in shapes.items():
        if len(shape) != len(wanted[key]) or any(
            a != b for a, b in zip(shape, wanted[key], strict=True) if None not in (a, b)
        ):
            raise ValueError(
                'Of N images of H x W pixels with M places for objects, `y["boxes"]` must be '
                '(N, M, 4), `y["labels"]` (N, M) and `y["masks"]` (N, M, H, W). Received: images '
                f"of {images}, " + ", ".join(f"{name} of {shapes[name]}" for name in shapes)
            )
    labels = y["labels"]
    if not keras.backend.is_int_dtype(keras.backend.standardize_dtype(labels.dtype)):
        raise ValueError(f'`y["labels"]` must be ints. Received: labels of {labels.dtype}')
    values = _values(labels)
    if values is not None and values.size and not -1 <= values.min() <= values.max() < classes:
        wrong = values[(values < -1) | (values >= classes)]
        raise ValueError(
            f'`y["labels"]` must be from 0 to {classes - 1}, or -1 for no object. '
            f"Received: a label of {wrong[0]}"
        )
    boxes = _values(y["boxes"])
    if boxes is not None and not np.isfinite(boxes[values >= 0]).all():
        raise ValueError('`y["boxes"]` must be finite. Received: a box that is not')


def _shape(x):
    return tuple(x.shape)


def _values(x):
    """The values of an array, or of a tensor that has some; None while functions are traced."""
    if isinstance(x, np.ndarray):
        return x
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        known = isinstance(x, torch.Tensor) and not torch.compiler.is_compiling()
    elif backend == "jax":
        import jax

        known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    else:
        known = hasattr(x, "numpy")
    return ops.convert_to_numpy(x) if known else None
