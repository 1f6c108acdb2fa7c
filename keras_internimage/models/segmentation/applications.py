"""The published sizes of UperNet on both families, in the manner of keras.applications."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_internimage.models.dense import build_backbone
from keras_internimage.models.segmentation import arguments
from keras_internimage.models.segmentation.upernet import UperNet
from keras_internimage.variants import VARIANTS

_Function = TypeVar("_Function", bound=Callable[..., keras.Model])
_Weights = str | os.PathLike | None
_Shape = tuple[int | None, int | None, int]

_ARGUMENTS = """

    The backbone is that of the official segmentation models: in the size T it has layer scales,
    too.
    Images must be preprocessed by `keras_internimage.preprocess_input`.

    Args:
        weights: None (random initialization), {keywords}, the name of a published checkpoint, or
            a path to `.weights.h5`, `.keras` or an official `.pth` or `.safetensors`. The heads
            for Cityscapes have 150 outputs as well, of which the first 19 mean something.
        input_shape: (height, width, channels), channels last; height and width may be None.
        classes: number of classes. If the weights have another number, everything but the last
            convolutions is loaded and a line says so.
        auxiliary: whether the model also gives the auxiliary head's logits; see `UperNet`.
        output_size: "input" or "quarter": the size of the logits; see `UperNet`.
        backbone_weights: what the backbone starts from: None, or whatever `InternImage` takes as
            `weights`, such as {pretrained}. Excludes `weights`.
        name: name of the model.
        **kwargs: further arguments of `keras_internimage.UperNet` (`channels`, `drop_rate`,
            `dtype`) and of `keras_internimage.InternImageBackbone` (`drop_path_rate`,
            `implementation`, or any that changes the architecture).

    Returns:
        A Keras Functional model of logits; see `UperNet`.

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        [InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
        Convolutions](https://arxiv.org/abs/2211.05778) (CVPR 2023)
    """

# Arguments of `UperNet`; all others are the backbone's.
_HEAD_ARGUMENTS = ("channels", "drop_rate")


def _with_arguments(function: _Function) -> _Function:
    """Add what all sizes' arguments mean to the first line of a function's docstring."""
    row = VARIANTS[function.__name__.removeprefix("UperNet")]
    pretrained = '"imagenet"' if row.resolution == 224 else '"imagenet22k"'
    published_for_one = row.use_clip_projector or row.core_op == "DCNv4"
    keywords = '"ade20k"' if published_for_one else '"ade20k", "cityscapes"'
    text = _ARGUMENTS.format(keywords=keywords, pretrained=pretrained)
    function.__doc__ = (function.__doc__ or "") + text
    return function


def _build(variant, weights, backbone_weights, input_shape, kwargs, **options):
    arguments.check_weights(weights)
    head = {name: kwargs.pop(name) for name in _HEAD_ARGUMENTS if name in kwargs}
    dtype = kwargs.get("dtype")
    backbone = build_backbone(variant, weights, backbone_weights, image_shape=input_shape, **kwargs)
    return UperNet(backbone, weights=weights, variant=variant, dtype=dtype, **head, **options)


@_with_arguments
def UperNetT(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_t",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on InternImage-T: 59 M parameters with the auxiliary head."""
    return _build("T", **locals())


@_with_arguments
def UperNetS(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_s",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on InternImage-S: 80 M parameters with the auxiliary head."""
    return _build("S", **locals())


@_with_arguments
def UperNetB(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_b",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on InternImage-B: 128 M parameters with the auxiliary head."""
    return _build("B", **locals())


@_with_arguments
def UperNetL(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_l",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on InternImage-L: 256 M parameters with the auxiliary head."""
    return _build("L", **locals())


@_with_arguments
def UperNetXL(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_xl",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on InternImage-XL: 368 M parameters with the auxiliary head."""
    return _build("XL", **locals())


@_with_arguments
def UperNetH(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_h",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on InternImage-H: 1.12 B parameters with the auxiliary head."""
    return _build("H", **locals())


@_with_arguments
def UperNetFlashT(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_flash_t",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on FlashInternImage-T: 59 M parameters with the auxiliary head."""
    return _build("FlashT", **locals())


@_with_arguments
def UperNetFlashS(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_flash_s",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on FlashInternImage-S: 80 M parameters with the auxiliary head."""
    return _build("FlashS", **locals())


@_with_arguments
def UperNetFlashB(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_flash_b",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on FlashInternImage-B: 128 M parameters with the auxiliary head."""
    return _build("FlashB", **locals())


@_with_arguments
def UperNetFlashL(
    weights: _Weights = None,
    input_shape: _Shape = (None, None, 3),
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    backbone_weights: _Weights = None,
    name: str = "upernet_flash_l",
    **kwargs: Any,
) -> keras.Model:
    """Instantiates UperNet on FlashInternImage-L: 256 M parameters with the auxiliary head."""
    return _build("FlashL", **locals())
