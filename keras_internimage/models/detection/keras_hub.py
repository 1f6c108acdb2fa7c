"""Mask R-CNN as KerasHub's users know models: a task with its preprocessor. Needs KerasHub.

```python
from keras_internimage.models.detection.keras_hub import MaskRCNNObjectDetector
```

This import also lets `keras.saving.load_model` read a saved task.
"""

from typing import Any

import keras
import keras_hub

from keras_internimage.models import keras_hub as hub
from keras_internimage.models.backbone import InternImageBackbone
from keras_internimage.models.detection.mask_rcnn import MaskRCNN


@keras.saving.register_keras_serializable(package="keras_internimage")
class MaskRCNNImageConverter(hub.OfficialImageConverter):
    """The `ImageConverter` of `MaskRCNNObjectDetector`; see `OfficialImageConverter`."""

    backbone_cls = InternImageBackbone


@keras.saving.register_keras_serializable(package="keras_internimage")
class MaskRCNNObjectDetectorPreprocessor(keras_hub.models.ObjectDetectorPreprocessor):
    """KerasHub's `ObjectDetectorPreprocessor` for `MaskRCNNObjectDetector`.

    Targets with masks pass as they are, so that the converter must not resize then: images, boxes
    and masks are made of one size before, as the data sets of this package do.
    """

    backbone_cls = InternImageBackbone
    image_converter_cls = MaskRCNNImageConverter

    def call(self, x, y=None, sample_weight=None):
        if not isinstance(y, dict) or "masks" not in y:
            return super().call(x, y, sample_weight)
        if self.image_converter.image_size is not None:
            raise ValueError(
                "`image_size` of the image converter must be None where targets have masks, which "
                f"it does not resize. Received: image_size={self.image_converter.image_size}"
            )
        return keras.utils.pack_x_y_sample_weight(super().call(x), y, sample_weight)


@keras.saving.register_keras_serializable(package="keras_internimage")
class MaskRCNNObjectDetector(keras_hub.models.ObjectDetector):
    """`keras_internimage.MaskRCNN` as a `keras_hub.models.ObjectDetector`.

    It preprocesses images in `predict`, and gives what `MaskRCNN` gives: boxes in pixels of the
    images as the model sees them, labels, scores, masks and their number. Losses are the model's
    own, for targets with "boxes", "labels" and "masks". `save_to_preset` and `from_preset` work
    where the backbone is an `InternImageBackbone`: KerasHub tells by the backbone which task
    a preset holds. From the preset of a backbone alone, `from_preset` makes a task with
    `num_classes=` and `preprocessor=`.

    `detector` is the `MaskRCNN`, which shares all weights: for `keras_internimage.export`.

    Args:
        backbone: as for `MaskRCNN`.
        num_classes: number of classes, without the background.
        preprocessor: a `MaskRCNNObjectDetectorPreprocessor`, or None for images that are
            preprocessed already.
        compile: if False, `compile` must be called before `fit`.
        bounding_box_format: of the boxes, by KerasHub's names, as for `MaskRCNN`.
        dtype: data type or policy of all layers but the backbone's; the backbone's if None.
        **kwargs: further arguments of `MaskRCNN` (`max_detections`, `score_threshold`, ...), and
            `name` and `trainable`.

    Raises:
        ValueError: an argument is not as said above.
    """

    backbone_cls = InternImageBackbone
    preprocessor_cls = MaskRCNNObjectDetectorPreprocessor

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        preprocessor=None,
        bounding_box_format: str = "xyxy",
        dtype=None,
        name: str = "mask_rcnn_object_detector",
        trainable: bool = True,
        compile: bool = True,
        **kwargs,
    ):
        own = dtype is not None and (
            keras.dtype_policies.get(dtype) != getattr(backbone, "dtype_policy", None)
        )
        detector = MaskRCNN(
            backbone,
            classes=num_classes,
            bounding_box_format=bounding_box_format,
            dtype=dtype if own else getattr(backbone, "dtype_policy", dtype),
            **kwargs,
        )
        # Functional, as all tasks must be that shall live beside others: KerasHub makes one class
        # of the bases of all.
        images = backbone.inputs[0]
        super().__init__(
            inputs=images, outputs=detector(images), compile=False, name=name, trainable=trainable
        )
        # Sizes of images must stay whole numbers, whatever the layers compute in.
        self.autocast = False
        # The detector's own, which takes a dict with the sizes of images, too.
        self.input_spec = None
        self.detector = detector
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.num_classes = num_classes
        self.bounding_box_format = bounding_box_format
        self.dtype_policy = detector.dtype_policy
        self._own_policy = own
        if compile:
            self.compile()

    def call(self, inputs, training=None):
        return self.detector(inputs, training=training)

    def compile(self, optimizer: Any = "auto", **kwargs: Any) -> None:
        """As `MaskRCNN.compile`: the losses are its own.

        Args:
            optimizer: "auto" for AdamW, or as for every Keras model.
            **kwargs: further arguments of `MaskRCNN.compile`.
        """
        optimizer = keras.optimizers.AdamW(1e-4) if optimizer == "auto" else optimizer
        # Not KerasHub's own, which chooses losses of another detector.
        super(keras_hub.models.ObjectDetector, self).compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config):
        """As Keras' own, which leaves models alone that have a `compile` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self):
        return [*super().metrics, *self.detector.metrics]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The detector's losses; see `MaskRCNN`."""
        return self.detector.compute_loss(x, y, y_pred, sample_weight, training)

    def test_step(self, *args):
        # Detections are not needed, so that the call need not choose them.
        self.detector._evaluates = True
        try:
            return super().test_step(*args)
        finally:
            self.detector._evaluates = False

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
        # `from_preset(dtype=...)` gives the backbone its type, and the other layers follow.
        config = self.detector.get_config()
        for key in ("backbone", "classes", "frozen", "name", "trainable", "dtype"):
            del config[key]
        policy = self.detector.dtype_policy
        return {
            **super().get_config(),
            **config,
            **({"dtype": keras.dtype_policies.serialize(policy)} if self._own_policy else {}),
            "num_classes": self.num_classes,
        }


@keras.saving.register_keras_serializable(package=hub.PACKAGE)
class InternImageObjectDetectorConverter(MaskRCNNImageConverter):
    """`MaskRCNNImageConverter` for the backbone that is KerasHub's, too."""

    backbone_cls = hub.InternImageBackbone


@keras.saving.register_keras_serializable(package=hub.PACKAGE)
class InternImageObjectDetectorPreprocessor(MaskRCNNObjectDetectorPreprocessor):
    """`MaskRCNNObjectDetectorPreprocessor` for the backbone that is KerasHub's, too."""

    backbone_cls = hub.InternImageBackbone
    image_converter_cls = InternImageObjectDetectorConverter


@keras.saving.register_keras_serializable(package=hub.PACKAGE)
class InternImageObjectDetector(MaskRCNNObjectDetector):
    """`MaskRCNNObjectDetector` on the backbone that is KerasHub's, too.

    `keras_hub.models.ObjectDetector.from_preset` makes it of a backbone's preset.

    Args:
        **kwargs: of `MaskRCNNObjectDetector`.
    """

    backbone_cls = hub.InternImageBackbone
    preprocessor_cls = InternImageObjectDetectorPreprocessor
