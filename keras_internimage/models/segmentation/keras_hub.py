"""UperNet as KerasHub's users know models: a task with its preprocessor. Needs KerasHub.

```python
from keras_internimage.models.segmentation.keras_hub import UperNetImageSegmenter
```

This import also lets `keras.saving.load_model` read a saved task.
"""

import keras
import keras_hub

from keras_internimage.models import keras_hub as hub
from keras_internimage.models.backbone import InternImageBackbone
from keras_internimage.models.dense import pyramid
from keras_internimage.models.network import limit_remat_to_blocks
from keras_internimage.models.segmentation import arguments
from keras_internimage.models.segmentation.head import Heads, logits


@keras.saving.register_keras_serializable(package="keras_internimage")
class UperNetImageConverter(hub.OfficialImageConverter):
    """The `ImageConverter` of `UperNetImageSegmenter`; see `OfficialImageConverter`."""

    backbone_cls = InternImageBackbone


@keras.saving.register_keras_serializable(package="keras_internimage")
class UperNetImageSegmenterPreprocessor(keras_hub.models.ImageSegmenterPreprocessor):
    """KerasHub's `ImageSegmenterPreprocessor` for `UperNetImageSegmenter`."""

    backbone_cls = InternImageBackbone
    image_converter_cls = UperNetImageConverter

    def get_config(self):
        # KerasHub's own forgets it.
        return {**super().get_config(), "resize_output_mask": self.resize_output_mask}


@keras.saving.register_keras_serializable(package="keras_internimage")
class UperNetImageSegmenter(keras_hub.models.ImageSegmenter):
    """`keras_internimage.UperNet` as a `keras_hub.models.ImageSegmenter`.

    As KerasHub's tasks, it is compiled for one-hot masks `(N, H, W, num_classes)` unless another
    loss is chosen, and preprocesses images in `fit` and `predict`. `save_to_preset` and
    `from_preset` work where the backbone is an `InternImageBackbone`: KerasHub tells by the
    backbone which task a preset holds. From the preset of a backbone alone, `from_preset` makes a
    task with `num_classes=` and `preprocessor=`.

    Args:
        backbone: as for `UperNet`.
        num_classes: number of classes.
        preprocessor: a `UperNetImageSegmenterPreprocessor`, or None for images that are
            preprocessed already.
        channels, drop_rate: as for `UperNet`.
        dtype: data type or policy of the head's layers; the backbone's if None.

    Raises:
        ValueError: an argument is not as said above.
    """

    backbone_cls = InternImageBackbone
    preprocessor_cls = UperNetImageSegmenterPreprocessor

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        preprocessor=None,
        channels: int = 512,
        drop_rate: float = 0.1,
        dtype=None,
        **kwargs,
    ):
        maps = pyramid(backbone)
        arguments.check(num_classes, "input", channels, drop_rate)
        inputs = backbone.inputs[0]
        policy = backbone.dtype_policy if dtype is None else keras.dtype_policies.get(dtype)
        scores = Heads(num_classes, drop_rate, policy).decode(maps, channels)
        super().__init__(inputs=inputs, outputs=logits(scores, inputs, "logits"), **kwargs)
        limit_remat_to_blocks(self)
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.num_classes = num_classes
        self.channels = channels
        self.drop_rate = drop_rate
        self.dtype_policy = policy

    def save_to_preset(self, preset_dir: str, max_shard_size: float | None = 10) -> None:
        """Writes a preset of KerasHub: a folder of configurations and weights.

        Args:
            preset_dir: the folder.
            max_shard_size: largest size of a weights file in GB, None for one file.

        Raises:
            ValueError: the backbone is no `InternImageBackbone`, and nothing would read the preset.
        """
        hub.check_preset(self.backbone)
        super().save_to_preset(preset_dir, max_shard_size=max_shard_size)

    def get_config(self):
        # `from_preset(dtype=...)` gives the backbone its type, and the head follows.
        policy = self.dtype_policy
        own = policy != self.backbone.dtype_policy
        return {
            **super().get_config(),
            **({"dtype": keras.dtype_policies.serialize(policy)} if own else {}),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "drop_rate": self.drop_rate,
        }


@keras.saving.register_keras_serializable(package=hub.PACKAGE)
class InternImageImageSegmenterConverter(UperNetImageConverter):
    """`UperNetImageConverter` for the backbone that is KerasHub's, too."""

    backbone_cls = hub.InternImageBackbone


@keras.saving.register_keras_serializable(package=hub.PACKAGE)
class InternImageImageSegmenterPreprocessor(UperNetImageSegmenterPreprocessor):
    """`UperNetImageSegmenterPreprocessor` for the backbone that is KerasHub's, too."""

    backbone_cls = hub.InternImageBackbone
    image_converter_cls = InternImageImageSegmenterConverter


@keras.saving.register_keras_serializable(package=hub.PACKAGE)
class InternImageImageSegmenter(UperNetImageSegmenter):
    """`UperNetImageSegmenter` on the backbone that is KerasHub's, too.

    `keras_hub.models.ImageSegmenter.from_preset` makes it of a backbone's preset.

    Args:
        **kwargs: of `UperNetImageSegmenter`.
    """

    backbone_cls = hub.InternImageBackbone
    preprocessor_cls = InternImageImageSegmenterPreprocessor
