"""InternImage as KerasHub's users know models: backbone, classifier, preprocessing. Needs KerasHub.

```python
import keras_hub
import keras_internimage

backbone = keras_hub.models.Backbone.from_preset("my-backbone")
classifier = keras_hub.models.ImageClassifier.from_preset("my-backbone", num_classes=5)
```

Who has imported both packages, in any order, need not import this module: KerasHub's own calls find
its classes. UperNet and Mask R-CNN are in the modules of this name in `models.segmentation` and
`models.detection`.
"""

from typing import Any

import keras
import keras_hub

from keras_internimage.models.backbone import InternImageBackbone as _InternImageBackbone

PACKAGE = "keras_internimage.keras_hub"

# ImageNet's, of pixels from 0 to 1.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


@keras.saving.register_keras_serializable(package=PACKAGE)
class InternImageBackbone(_InternImageBackbone, keras_hub.models.FeaturePyramidBackbone):
    """`keras_internimage.InternImageBackbone` as a `keras_hub.models.FeaturePyramidBackbone`.

    Its presets are read by `keras_hub.models.Backbone.from_preset`, and the tasks here are made
    of them by KerasHub's `from_preset` of a task. With `core_op="DCNv4"` it is FlashInternImage's;
    `from_variant` has both families' sizes. Images are channels last.

    Args:
        **kwargs: of `keras_internimage.InternImageBackbone`.
    """

    # Of a preset KerasHub does all: these are its own methods.
    save_to_preset = keras_hub.models.Backbone.save_to_preset
    from_preset: Any = classmethod(keras_hub.models.Backbone.from_preset.__func__)


class OfficialImageConverter(keras_hub.layers.ImageConverter):
    """KerasHub's `ImageConverter` with the normalisation of the official models.

    Args:
        **kwargs: of `keras_hub.layers.ImageConverter`, such as `image_size`.
    """

    def __init__(self, **kwargs):
        # Pixels from 0 to 255.
        normalisation = {
            "scale": [1 / (255 * deviation) for deviation in _DEVIATION],
            "offset": [-m / deviation for m, deviation in zip(_MEAN, _DEVIATION, strict=True)],
            "data_format": "channels_last",
        }
        super().__init__(**{**normalisation, **kwargs})


@keras.saving.register_keras_serializable(package=PACKAGE)
class InternImageImageConverter(OfficialImageConverter):
    """The `ImageConverter` of classifiers on `InternImageBackbone`; see `OfficialImageConverter`.

    KerasHub resizes bilinearly; the published accuracies were measured with Pillow's bicubic
    resizing (`keras_internimage.preprocessing.load_image`).
    """

    backbone_cls = InternImageBackbone


@keras.saving.register_keras_serializable(package=PACKAGE)
class InternImageImageClassifierPreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """KerasHub's `ImageClassifierPreprocessor` for `InternImageImageClassifier`."""

    backbone_cls = InternImageBackbone
    image_converter_cls = InternImageImageConverter


@keras.saving.register_keras_serializable(package=PACKAGE)
class InternImageImageClassifier(keras_hub.models.ImageClassifier):
    """KerasHub's `ImageClassifier` on `InternImageBackbone`: pooling and one dense layer.

    It is KerasHub's head, not the official one, whose weights `keras_internimage.InternImageT` and
    the other functions take.

    Args:
        **kwargs: of `keras_hub.models.ImageClassifier`.
    """

    backbone_cls = InternImageBackbone
    preprocessor_cls = InternImageImageClassifierPreprocessor


def check_preset(backbone: keras.Model) -> None:
    """Raises ValueError unless a task's preset could be read again, by its backbone."""
    if not isinstance(backbone, _InternImageBackbone):
        raise ValueError(
            "`backbone` must be an InternImageBackbone for a preset; `save` writes a task with "
            f"any. Received: backbone={backbone!r}"
        )
