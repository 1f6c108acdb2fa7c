"""Detectors as models from a batch of images to named outputs, which is what files hold."""

import keras

from keras_internimage.exports import model_transforms
from keras_internimage.layers.composite import registered
from keras_internimage.models.detection.two_stage import TwoStageDetector

# Of a detector's outputs by their names, without the batch.
OUTPUTS = {
    "boxes": (("detections", 4), "float32"),
    "labels": (("detections",), "int32"),
    "masks": (("detections", 28, 28), "float32"),
    "num_detections": ((), "int32"),
    "scores": (("detections",), "float32"),
}


def is_detector(model: object) -> bool:
    """Whether a model is one of this package's detectors."""
    return isinstance(model, TwoStageDetector)


@registered
class ImageDetector(keras.Model):
    """A detector that takes images and nothing else: what an exported file computes.

    Boxes are in pixels of these images, which are as large as the detector is to see them. Unlike a
    Functional model it is not traced when it is made: in JAX no detector can be, for images of
    unknown sizes.

    Args:
        detector: a `MaskRCNN`.
        image_shape: `(height, width, 3)`, None for an unknown size.
        normalises: whether the images are uint8, RGB, and normalised here.
    """

    # A size for tracers, which take what holds for it for what always does: it is padded, and no
    # map of it has equal sides or one of 1.
    EXAMPLE = (150, 216, 3)

    def __init__(self, detector, image_shape=(None, None, 3), normalises=False, **kwargs):
        super().__init__(**{"name": detector.name, "autocast": False, **kwargs})
        self.detector = detector
        self.image_shape = tuple(image_shape)
        self.normalises = normalises
        self.built = True

    def call(self, images, training=None):
        if self.normalises:
            images = model_transforms.normalised(images)
        return self.detector(images, training=training)

    @property
    def inputs(self):
        dtype = "uint8" if self.normalises else "float32"
        return [keras.KerasTensor(self.input_shape, dtype=dtype, name="images")]

    @property
    def input_shape(self):
        return (None, *self.image_shape)

    @property
    def output(self):
        sizes = {"detections": self.detector.max_detections}
        return {
            name: keras.KerasTensor((None, *(sizes.get(n, n) for n in shape)), dtype=dtype)
            for name, (shape, dtype) in OUTPUTS.items()
        }

    @property
    def outputs(self):
        return list(self.output.values())

    def with_images(self, image_shape=None, normalises=False):
        """The same detector for other images."""
        return type(self)(self.detector, image_shape or self.image_shape, normalises)

    def get_config(self):
        return {
            "detector": keras.saving.serialize_keras_object(self.detector),
            "image_shape": self.image_shape,
            "normalises": self.normalises,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        detector = keras.saving.deserialize_keras_object(
            config["detector"], custom_objects=custom_objects
        )
        return cls(detector, config["image_shape"], config["normalises"])


def wrap(detector):
    """An `ImageDetector` of a detector's own image sizes."""
    return ImageDetector(detector, detector.features.input_shape[1:])


def check_sizes(model, target, batch_size):
    """Raises ValueError for a PyTorch program of unknown sizes."""
    if target.name == "torch" and (batch_size is None or None in model.image_shape):
        raise ValueError(
            "`input_shape` must give height and width, and `batch_size` must be given, for a "
            "PyTorch program of a detector: its loops have fixed shapes (--size "
            "and --batch-size of internimage-export). "
            f"Received: batch_size={batch_size}, model.input_shape={model.input_shape}"
        )


def check(precision, include_argmax):
    """Raises ValueError for what a detector's file cannot be."""
    if precision != "float32":
        raise ValueError(
            "`precision` must be 'float32' for a detector: with less, which boxes are dropped for "
            f"a better one changes. Received: precision={precision!r}"
        )
    if include_argmax:
        raise ValueError(
            "`include_argmax` must be False for a detector, which gives labels. "
            "Received: include_argmax=True"
        )


def in_float32(model, dtype="float32"):
    """The same `ImageDetector` and weights, computing in `dtype`."""

    def change(value, key=None):
        if key == "dtype":
            name = value["config"].get("name", "") if isinstance(value, dict) else str(value)
            other = any(known in name for known in model_transforms.OTHER_FLOATS)
            return dtype if other else value
        if isinstance(value, dict):
            return {k: change(v, k) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(change(v) for v in value)
        return value

    clone = type(model).from_config(change(model.get_config()))
    clone.set_weights(model.get_weights())
    return clone
