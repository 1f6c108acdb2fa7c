"""The published variants as functions in the manner of keras.applications."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import keras
from keras import KerasTensor

from keras_internimage.models.classifier import InternImage
from keras_internimage.variants import VARIANTS

_Function = TypeVar("_Function", bound=Callable[..., keras.Model])
_Weights = str | os.PathLike | None
_Shape = tuple[int | None, int | None, int] | None
_Activation = str | Callable | None

_REFERENCES = {
    "DCNv3": """[InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
        Convolutions](https://arxiv.org/abs/2211.05778) (CVPR 2023)""",
    "DCNv4": """[Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
        Applications](https://arxiv.org/abs/2401.06197) (CVPR 2024)""",
}

_ARGUMENTS = """

    Images must be preprocessed by `keras_internimage.preprocess_input`, or read by
    `keras_internimage.preprocessing.load_image`.

    Args:
        include_top: whether to include the classification head.
        weights: {keywords}, None (random initialization), the name of
            a published checkpoint, or a path to `.weights.h5`, `.keras` or an official
            `.pth` or `.safetensors`.
        input_tensor: Keras tensor to use as the image input.
        input_shape: (height, width, channels), channels last; default ({side}, {side}, 3) with
            the head, (None, None, 3) without. Height and width may be None{sides}.
        pooling: for `include_top=False`: None, "avg" or "max".
        classes: number of classes. If the weights have another number, all layers but the
            last are loaded and a line says so.
        classifier_activation: activation of the last layer, None for logits.
        name: name of the model.
        **kwargs: further arguments of `keras_internimage.InternImage`: `drop_path_rate`,
            `drop_rate`, `implementation`, `dtype`, or any that changes the architecture.

    Returns:
        A Keras Functional model.

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        {reference}
    """


def _with_arguments(function: _Function) -> _Function:
    """Add what all variants' arguments mean to the first line of a function's docstring."""
    row = VARIANTS[function.__name__.replace("InternImage", "")]
    text = _ARGUMENTS.format(
        side=row.resolution,
        keywords='"imagenet", "imagenet22k"' if row.resolution > 224 else '"imagenet"',
        sides=", multiples of 32 otherwise" if row.use_clip_projector else "",
        reference=_REFERENCES[row.core_op],
    )
    function.__doc__ = (function.__doc__ or "") + text
    return function


def _build(variant, kwargs, **arguments):
    """The model of a variant; `kwargs` and the others are what a function below was called with."""
    row = VARIANTS[variant]
    config = {**row.config(), **kwargs}
    return InternImage(**config, **arguments, default_size=row.resolution, variant=variant)


@_with_arguments
def InternImageT(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "internimage_t",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates InternImage-T: 30 M parameters, 224 x 224 pixels."""
    return _build("T", **locals())


@_with_arguments
def InternImageS(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "internimage_s",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates InternImage-S: 50 M parameters, 224 x 224 pixels."""
    return _build("S", **locals())


@_with_arguments
def InternImageB(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "internimage_b",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates InternImage-B: 97 M parameters, 224 x 224 pixels."""
    return _build("B", **locals())


@_with_arguments
def InternImageL(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "internimage_l",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates InternImage-L: 223 M parameters, 384 x 384 pixels."""
    return _build("L", **locals())


@_with_arguments
def InternImageXL(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "internimage_xl",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates InternImage-XL: 335 M parameters, 384 x 384 pixels."""
    return _build("XL", **locals())


@_with_arguments
def InternImageH(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "internimage_h",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates InternImage-H: 1.09 B parameters, 640 x 640 pixels."""
    return _build("H", **locals())


@_with_arguments
def InternImageG(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "internimage_g",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates InternImage-G: 3.08 B parameters, 512 x 512 pixels."""
    return _build("G", **locals())


@_with_arguments
def FlashInternImageT(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "flash_internimage_t",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates FlashInternImage-T: 30 M parameters, 224 x 224 pixels."""
    return _build("FlashT", **locals())


@_with_arguments
def FlashInternImageS(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "flash_internimage_s",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates FlashInternImage-S: 50 M parameters, 224 x 224 pixels."""
    return _build("FlashS", **locals())


@_with_arguments
def FlashInternImageB(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "flash_internimage_b",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates FlashInternImage-B: 97 M parameters, 224 x 224 pixels."""
    return _build("FlashB", **locals())


@_with_arguments
def FlashInternImageL(
    include_top: bool = True,
    weights: _Weights = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: _Shape = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: _Activation = "softmax",
    name: str = "flash_internimage_l",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates FlashInternImage-L: 223 M parameters, 384 x 384 pixels."""
    return _build("FlashL", **locals())
