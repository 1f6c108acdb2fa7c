"""InternImage, FlashInternImage and their operators for Keras 3, on TensorFlow, JAX and PyTorch."""

from typing import TYPE_CHECKING

from keras_internimage import backends as _backends
from keras_internimage import lazy_names as _lazy_names

__version__ = "0.2.0.dev0"

_backends.take_installed()  # before anything imports Keras

if _backends.is_own_command():
    _backends.quiet()

if TYPE_CHECKING or not _backends.is_own_command():
    # Registers all layers and objects, so that `keras.saving.load_model` finds them. A command
    # parses its arguments first, and imports what it needs after that.
    from keras_internimage import exports, layers, models, ops, preprocessing, training
    from keras_internimage.exports import export
    from keras_internimage.models import (
        CascadeMaskRCNN,
        CascadeMaskRCNNFlashL,
        CascadeMaskRCNNL,
        CascadeMaskRCNNXL,
        FlashInternImageB,
        FlashInternImageBackbone,
        FlashInternImageL,
        FlashInternImageS,
        FlashInternImageT,
        InternImage,
        InternImageB,
        InternImageBackbone,
        InternImageG,
        InternImageH,
        InternImageL,
        InternImageS,
        InternImageT,
        InternImageXL,
        MaskRCNN,
        MaskRCNNB,
        MaskRCNNFlashB,
        MaskRCNNFlashS,
        MaskRCNNFlashT,
        MaskRCNNS,
        MaskRCNNT,
        UperNet,
        UperNetB,
        UperNetFlashB,
        UperNetFlashL,
        UperNetFlashS,
        UperNetFlashT,
        UperNetH,
        UperNetL,
        UperNetS,
        UperNetT,
        UperNetXL,
        paste_masks,
    )
    from keras_internimage.ops.tracing import portable_ops
    from keras_internimage.preprocessing import decode_predictions, preprocess_input

if TYPE_CHECKING:
    from keras_internimage import (
        checkpoints,
        custom_ops,
        data,
        detector,
        distribution,
        report,
        segmenter,
        visualize,
        weights_convert,
    )
    from keras_internimage.detector import load_detector
    from keras_internimage.predictor import load
    from keras_internimage.segmenter import load_segmenter

# What is not imported above is imported when it is first used.
_PACKAGES = (
    "checkpoints",
    "custom_ops",
    "data",
    "detector",
    "distribution",
    "exports",
    "layers",
    "models",
    "ops",
    "preprocessing",
    "report",
    "segmenter",
    "training",
    "visualize",
    "weights_convert",
)
_NAMES = {
    "CascadeMaskRCNN": "models",
    "CascadeMaskRCNNFlashL": "models",
    "CascadeMaskRCNNL": "models",
    "CascadeMaskRCNNXL": "models",
    "FlashInternImageB": "models",
    "FlashInternImageBackbone": "models",
    "FlashInternImageL": "models",
    "FlashInternImageS": "models",
    "FlashInternImageT": "models",
    "InternImage": "models",
    "InternImageB": "models",
    "InternImageBackbone": "models",
    "InternImageG": "models",
    "InternImageH": "models",
    "InternImageL": "models",
    "InternImageS": "models",
    "InternImageT": "models",
    "InternImageXL": "models",
    "MaskRCNN": "models",
    "MaskRCNNB": "models",
    "MaskRCNNFlashB": "models",
    "MaskRCNNFlashS": "models",
    "MaskRCNNFlashT": "models",
    "MaskRCNNS": "models",
    "MaskRCNNT": "models",
    "UperNet": "models",
    "UperNetB": "models",
    "UperNetFlashB": "models",
    "UperNetFlashL": "models",
    "UperNetFlashS": "models",
    "UperNetFlashT": "models",
    "UperNetH": "models",
    "UperNetL": "models",
    "UperNetS": "models",
    "UperNetT": "models",
    "UperNetXL": "models",
    "decode_predictions": "preprocessing",
    "export": "exports",
    "load": "predictor",
    "load_detector": "detector",
    "load_segmenter": "segmenter",
    "paste_masks": "models",
    "portable_ops": "ops.tracing",
    "preprocess_input": "preprocessing",
}

__all__ = [
    "CascadeMaskRCNN",
    "CascadeMaskRCNNFlashL",
    "CascadeMaskRCNNL",
    "CascadeMaskRCNNXL",
    "FlashInternImageB",
    "FlashInternImageBackbone",
    "FlashInternImageL",
    "FlashInternImageS",
    "FlashInternImageT",
    "InternImage",
    "InternImageB",
    "InternImageBackbone",
    "InternImageG",
    "InternImageH",
    "InternImageL",
    "InternImageS",
    "InternImageT",
    "InternImageXL",
    "MaskRCNN",
    "MaskRCNNB",
    "MaskRCNNFlashB",
    "MaskRCNNFlashS",
    "MaskRCNNFlashT",
    "MaskRCNNS",
    "MaskRCNNT",
    "UperNet",
    "UperNetB",
    "UperNetFlashB",
    "UperNetFlashL",
    "UperNetFlashS",
    "UperNetFlashT",
    "UperNetH",
    "UperNetL",
    "UperNetS",
    "UperNetT",
    "UperNetXL",
    "checkpoints",
    "custom_ops",
    "data",
    "decode_predictions",
    "detector",
    "distribution",
    "export",
    "exports",
    "layers",
    "load",
    "load_detector",
    "load_segmenter",
    "models",
    "ops",
    "paste_masks",
    "portable_ops",
    "preprocess_input",
    "preprocessing",
    "report",
    "segmenter",
    "training",
    "visualize",
    "weights_convert",
]

__getattr__, __dir__ = _lazy_names.of(__name__, _NAMES, _PACKAGES, ("__version__",))
