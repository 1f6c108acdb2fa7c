"""The published detectors on both families, in the manner of keras.applications."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from keras_internimage.models.dense import build_backbone
from keras_internimage.models.detection import arguments
from keras_internimage.models.detection.cascade_mask_rcnn import CascadeMaskRCNN
from keras_internimage.models.detection.mask_rcnn import MaskRCNN

_Function = TypeVar("_Function", bound=Callable[..., MaskRCNN | CascadeMaskRCNN])
_Weights = str | os.PathLike | None

_ARGUMENTS = """

    The backbone is that of the official detectors: InternImage-T, too, has layer scales. Images
    must be preprocessed by `keras_internimage.preprocess_input`. On FlashInternImage, layer norms
    follow the convolutions of the feature pyramid.

    Args:
        weights: None (random initialization), "coco" (the longer schedule, 3x), the name of a
            published checkpoint, or a path to `.weights.h5`, `.keras` or an official `.pth` or
            `.safetensors`.
        classes: number of classes. If the weights have another number, everything but the last
            layers is loaded and a line says so.
        bounding_box_format: of the boxes that are returned; see `{model}`.
        backbone_weights: what the backbone starts from: None, or whatever `InternImage` takes as
            `weights`, such as "imagenet". Excludes `weights`.
        name: name of the model.
        **kwargs: further arguments of `keras_internimage.{model}` (`max_detections`,
            `score_threshold`, `dtype`, ...) and of `keras_internimage.InternImageBackbone`
            (`drop_path_rate`, `implementation`, or any that changes the architecture).

    Returns:
        A `{model}`.

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        [InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
        Convolutions](https://arxiv.org/abs/2211.05778) (CVPR 2023)
    """

# Arguments of the detectors that are not named above; all others are the backbone's.
_DETECTOR_ARGUMENTS = (
    "max_detections",
    "score_threshold",
    "nms_threshold",
    "proposals",
    "proposals_per_level",
    "proposal_nms_threshold",
    "units",
    "pyramid_norm",
)


def _with_arguments(function: _Function) -> _Function:
    """Add what all sizes' arguments mean to the first line of a function's docstring."""
    model = function.__annotations__["return"].__name__
    function.__doc__ = (function.__doc__ or "") + _ARGUMENTS.replace("{model}", model)
    return function


def _build(detector_class, variant, weights, backbone_weights, kwargs, **options):
    arguments.check_weights(weights)
    detector = {name: kwargs.pop(name) for name in _DETECTOR_ARGUMENTS if name in kwargs}
    dtype = kwargs.get("dtype")
    backbone = build_backbone(variant, weights, backbone_weights, **kwargs)
    return detector_class(
        backbone, weights=weights, variant=variant, dtype=dtype, **detector, **options
    )


@_with_arguments
def MaskRCNNT(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "mask_rcnn_t",
    **kwargs: Any,
) -> MaskRCNN:
    """Instantiates Mask R-CNN on InternImage-T: 49 M parameters."""
    return _build(MaskRCNN, "T", **locals())


@_with_arguments
def MaskRCNNS(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "mask_rcnn_s",
    **kwargs: Any,
) -> MaskRCNN:
    """Instantiates Mask R-CNN on InternImage-S: 69 M parameters."""
    return _build(MaskRCNN, "S", **locals())


@_with_arguments
def MaskRCNNB(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "mask_rcnn_b",
    **kwargs: Any,
) -> MaskRCNN:
    """Instantiates Mask R-CNN on InternImage-B: 115 M parameters."""
    return _build(MaskRCNN, "B", **locals())


@_with_arguments
def MaskRCNNFlashT(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "mask_rcnn_flash_t",
    **kwargs: Any,
) -> MaskRCNN:
    """Instantiates Mask R-CNN on FlashInternImage-T: 49 M parameters."""
    return _build(MaskRCNN, "FlashT", **locals())


@_with_arguments
def MaskRCNNFlashS(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "mask_rcnn_flash_s",
    **kwargs: Any,
) -> MaskRCNN:
    """Instantiates Mask R-CNN on FlashInternImage-S: 69 M parameters."""
    return _build(MaskRCNN, "FlashS", **locals())


@_with_arguments
def MaskRCNNFlashB(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "mask_rcnn_flash_b",
    **kwargs: Any,
) -> MaskRCNN:
    """Instantiates Mask R-CNN on FlashInternImage-B: 115 M parameters."""
    return _build(MaskRCNN, "FlashB", **locals())


@_with_arguments
def CascadeMaskRCNNL(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "cascade_mask_rcnn_l",
    **kwargs: Any,
) -> CascadeMaskRCNN:
    """Instantiates Cascade Mask R-CNN on InternImage-L: 277 M parameters."""
    return _build(CascadeMaskRCNN, "L", **locals())


@_with_arguments
def CascadeMaskRCNNXL(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "cascade_mask_rcnn_xl",
    **kwargs: Any,
) -> CascadeMaskRCNN:
    """Instantiates Cascade Mask R-CNN on InternImage-XL: 387 M parameters."""
    return _build(CascadeMaskRCNN, "XL", **locals())


@_with_arguments
def CascadeMaskRCNNFlashL(
    weights: _Weights = None,
    classes: int = 80,
    bounding_box_format: str = "xyxy",
    backbone_weights: _Weights = None,
    name: str = "cascade_mask_rcnn_flash_l",
    **kwargs: Any,
) -> CascadeMaskRCNN:
    """Instantiates Cascade Mask R-CNN on FlashInternImage-L: 277 M parameters."""
    return _build(CascadeMaskRCNN, "FlashL", **locals())
