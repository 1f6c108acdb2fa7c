"""Checks of the arguments every model function shares, in the manner of keras.applications."""

import os
import warnings
from collections.abc import Callable, Collection

import keras
from keras import KerasTensor

MINIMUM_SIZE = 32
# The image heads of InternImage-H and -G join two levels that must fit each other.
CLIP_HEAD_MULTIPLE = 32

KEYWORD_WEIGHTS = ("imagenet", "imagenet22k")


def check_weights(weights: str | os.PathLike | None, published: Collection[str]) -> None:
    """Raise unless `weights` is None, a keyword, a published name or an existing path."""
    if weights is None or weights in KEYWORD_WEIGHTS or weights in published:
        return
    if isinstance(weights, (str, os.PathLike)) and os.path.exists(weights):
        return
    raise ValueError(
        "The `weights` argument should be either `None` (random initialization), `imagenet` or "
        "`imagenet22k` (pre-training on ImageNet), the name of a published checkpoint "
        f"({', '.join(published)}), or the path to the weights file to be loaded. "
        f"Received: weights={weights!r} (there is no such file)"
    )


def check_top(include_top: bool, pooling: str | None, classes: int) -> None:
    """Raise unless the arguments about the model's end fit each other."""
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"`pooling` must be None, 'avg' or 'max'. Received: pooling={pooling!r}")
    if not include_top:
        return
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"`classes` must be a positive int. Received: classes={classes!r}")


def check_activation(
    classifier_activation: str | Callable | None,
    classes: int,
    pretrained_classes: Callable[[], int | None],
) -> None:
    """Raise unless the activation is that of the pretrained classifier, or that is not loaded.

    Args:
        classifier_activation, classes: as given to the model function.
        pretrained_classes: returns the number of classes of the weights.
    """
    activation = keras.activations.get(classifier_activation)
    if activation in (keras.activations.get(None), keras.activations.softmax):
        return
    if pretrained_classes() == classes:
        raise ValueError(
            "When using a pretrained classifier, `classifier_activation` must be None or "
            "'softmax'; with another number of `classes` it is newly initialised, and may have "
            f"any. Received: classifier_activation={classifier_activation!r}, classes={classes}"
        )


def image_shape(
    input_shape: tuple | None,
    default_size: int | None,
    include_top: bool,
    weights: str | os.PathLike | None,
    clip_head: bool,
) -> tuple[int | None, int | None, int]:
    """The model's input shape (height, width, channels), checked.

    Args:
        input_shape: the user's, or None for the default.
        default_size: side in pixels of the default with the classifier.
        include_top, weights: as given to the model function.
        clip_head: whether the model ends with the attention pooling of H and G.

    Returns:
        A tuple of three, height and width may be None.

    Raises:
        ValueError: the shape is not one of three, too small, or does not fit the weights.
    """
    if input_shape is None:
        side = default_size if include_top else None
        return (side, side, 3)
    input_shape = tuple(input_shape)
    if len(input_shape) != 3 or not isinstance(input_shape[-1], int):
        raise ValueError(
            "`input_shape` must be a tuple (height, width, channels), channels last. "
            f"Received: input_shape={input_shape}"
        )
    height, width, channels = input_shape
    if height is not None and height <= 4 and channels >= MINIMUM_SIZE:
        raise ValueError(
            "`input_shape` must be (height, width, channels), channels last. "
            f"Received: input_shape={input_shape}, which is channels first"
        )
    if weights is not None and channels != 3:
        raise ValueError(
            "The input must have 3 channels when `weights` are loaded. "
            f"Received: input_shape={input_shape}, weights={weights!r}"
        )
    if channels not in (1, 3):
        warnings.warn(
            f"This model usually expects 1 or 3 input channels. However, it was passed an "
            f"input_shape with {channels} input channels.",
            stacklevel=3,
        )
    sides = [side for side in (height, width) if side is not None]
    if any(side < MINIMUM_SIZE for side in sides):
        raise ValueError(
            f"Input size must be at least {MINIMUM_SIZE}x{MINIMUM_SIZE}. "
            f"Received: input_shape={input_shape}"
        )
    if clip_head and include_top and any(side % CLIP_HEAD_MULTIPLE for side in sides):
        raise ValueError(
            "Height and width of `input_shape` must be multiples of "
            f"{CLIP_HEAD_MULTIPLE} for InternImage-H and -G. Received: input_shape={input_shape}"
        )
    return input_shape


def image_input(
    input_tensor: KerasTensor | None, shape: tuple, dtype=None
) -> tuple[KerasTensor, KerasTensor]:
    """The tensor a model starts from and the Input it belongs to: `(tensor, model inputs)`."""
    if input_tensor is None:
        inputs = keras.Input(shape=shape, name="image", dtype=dtype)
        return inputs, inputs
    if not keras.backend.is_keras_tensor(input_tensor):
        inputs = keras.Input(tensor=input_tensor, shape=shape, name="image")
        return inputs, inputs
    return input_tensor, keras.utils.get_source_inputs(input_tensor)[0]
