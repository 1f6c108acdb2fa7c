"""KerasHub's own calls and its own checks, on InternImage's classes."""

import subprocess
import sys

import drawn_objects
import keras
import numpy as np
import pytest
from small_models import DETECTOR, SMALL, TINY

pytest.importorskip("keras_hub")
pytest.importorskip("tensorflow")
pytest.importorskip("absl.testing")
import keras_hub  # noqa: E402
from keras_hub.src.tests.test_case import TestCase  # noqa: E402

import keras_internimage  # noqa: E402
from keras_internimage.models.detection import keras_hub as detection  # noqa: E402
from keras_internimage.models.keras_hub import (  # noqa: E402
    InternImageBackbone,
    InternImageImageClassifier,
    InternImageImageClassifierPreprocessor,
    InternImageImageConverter,
)
from keras_internimage.models.segmentation import keras_hub as segmentation  # noqa: E402

SIZES = {**SMALL, "image_shape": (32, 32, 3)}
TASK = {**TINY, "image_shape": (32, 32, 3)}
FLASH = {**SIZES, "core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")


def long_but_on_torch(test):
    """TensorFlow and JAX compile a detector for most of a minute."""
    return test if keras.config.backend() == "torch" else pytest.mark.slow(test)


def segmenter_arguments():
    converter = segmentation.InternImageImageSegmenterConverter(image_size=(32, 32))
    return {
        "backbone": InternImageBackbone(**TASK),
        "num_classes": 3,
        "channels": 8,
        "preprocessor": segmentation.InternImageImageSegmenterPreprocessor(
            converter, resize_output_mask=True
        ),
    }


def detector_arguments(image_shape):
    return {
        "backbone": InternImageBackbone(**{**TASK, "image_shape": image_shape}),
        "num_classes": 5,
        "preprocessor": detection.InternImageObjectDetectorPreprocessor(
            detection.InternImageObjectDetectorConverter()
        ),
        **DETECTOR,
    }


class TestKerasHubsOwnChecks(TestCase):
    """What KerasHub runs for its models, but for channels first."""

    def check_backbone(self, sizes):
        width = sizes["channels"]
        self.run_vision_backbone_test(
            cls=InternImageBackbone,
            init_kwargs=dict(sizes),
            input_data=keras.ops.convert_to_tensor(IMAGES),
            expected_output_shape=(2, 1, 1, 8 * width),
            expected_pyramid_output_keys=["P2", "P3", "P4", "P5"],
            expected_pyramid_image_sizes=[(8, 8), (4, 4), (2, 2), (1, 1)],
            run_data_format_check=False,
        )

    def test_backbone(self):
        self.check_backbone(SIZES)

    def test_backbone_of_flash_internimage(self):
        self.check_backbone(FLASH)

    def test_classifier(self):
        preprocessor = InternImageImageClassifierPreprocessor(
            InternImageImageConverter(image_size=(32, 32))
        )
        self.run_task_test(
            cls=InternImageImageClassifier,
            init_kwargs={
                "backbone": InternImageBackbone(**TASK),
                "num_classes": 3,
                "preprocessor": preprocessor,
            },
            train_data=(IMAGES, np.array([0, 2])),
            expected_output_shape=(2, 3),
        )

    def test_preprocessor(self):
        # `run_preprocessor_test` is for text: it asks for tokens.
        found = self.run_preprocessing_layer_test(
            cls=InternImageImageClassifierPreprocessor,
            init_kwargs={"image_converter": InternImageImageConverter(image_size=(32, 32))},
            input_data=IMAGES,
            return_output=True,
        )
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        found = keras.ops.convert_to_numpy(found)
        np.testing.assert_allclose(found, (IMAGES / 255 - mean) / std, atol=1e-5)

    def test_segmenter(self):
        masks = np.eye(3, dtype="float32")[np.random.default_rng(0).integers(0, 3, (2, 32, 32))]
        self.run_task_test(
            cls=segmentation.InternImageImageSegmenter,
            init_kwargs=segmenter_arguments(),
            train_data=(IMAGES, masks),
            expected_output_shape=(2, 32, 32, 3),
        )

    @long_but_on_torch
    def test_detector(self):
        pixels, boxes, labels, masks = (
            np.stack(part) for part in zip(*map(drawn_objects.image, range(2)), strict=True)
        )
        self.run_task_test(
            cls=detection.InternImageObjectDetector,
            init_kwargs=detector_arguments(pixels.shape[1:]),
            train_data=(
                pixels.astype("float32"),
                {"boxes": boxes, "labels": labels, "masks": masks},
            ),
        )


def with_values(model):
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(variable + rng.normal(scale=0.02, size=variable.shape))
    return model


def run(script, folder):
    """What a script prints, in another process."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.any_backend
def test_kerashub_may_be_first(tmp_path):
    backbone = with_values(InternImageBackbone(**TASK))
    backbone.save_to_preset(str(tmp_path / "backbone"))
    script = """
import keras_hub, keras_internimage
print(type(keras_hub.models.Backbone.from_preset("backbone")).__name__)
"""
    assert run(script, tmp_path)[-1] == "InternImageBackbone"


@pytest.mark.any_backend
def test_presets_in_another_process(tmp_path):
    """Only the two packages are imported there."""
    backbone = with_values(InternImageBackbone(**FLASH))
    backbone.save_to_preset(str(tmp_path / "backbone"))
    task = with_values(
        InternImageImageClassifier(
            backbone=backbone,
            num_classes=3,
            preprocessor=InternImageImageClassifierPreprocessor(
                InternImageImageConverter(image_size=(32, 32))
            ),
        )
    )
    task.save_to_preset(str(tmp_path / "task"))
    others = {
        "ImageSegmenter": segmentation.InternImageImageSegmenter(**segmenter_arguments()),
        "ObjectDetector": detection.InternImageObjectDetector(**detector_arguments((32, 32, 3))),
    }
    for name, other in others.items():
        with_values(other).save_to_preset(str(tmp_path / name))
    np.save(tmp_path / "images.npy", IMAGES)
    script = """
import keras_internimage
import importlib.util
assert importlib.util.find_spec("keras_hub") is not None  # as other packages ask
import keras_hub, numpy as np
models = keras_hub.models
backbone = models.Backbone.from_preset("backbone")
assert isinstance(backbone, models.FeaturePyramidBackbone), type(backbone)
task = models.ImageClassifier.from_preset("task")
np.save("scores.npy", task.predict(np.load("images.npy"), verbose=0))
for name in ("ImageSegmenter", "ObjectDetector"):
    read = getattr(models, name).from_preset(name)
    assert read.preprocessor is not None
    found = read.predict(np.load("images.npy"), verbose=0)
    np.savez(name, **(found if isinstance(found, dict) else {"scores": found}))
converter = keras_hub.layers.ImageConverter.from_preset("task")
new = models.ImageClassifier.from_preset("backbone", num_classes=5, preprocessor=None)
segmenter = models.ImageSegmenter.from_preset("backbone", num_classes=4, preprocessor=None)
detector = models.ObjectDetector.from_preset("backbone", num_classes=4, preprocessor=None)
print(*(type(made).__name__ for made in (backbone, task, converter, new, segmenter, detector)))
"""
    assert run(script, tmp_path)[-6:] == [
        "InternImageBackbone",
        "InternImageImageClassifier",
        "InternImageImageConverter",
        "InternImageImageClassifier",
        "InternImageImageSegmenter",
        "InternImageObjectDetector",
    ]
    expected = task.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), expected)
    for name, other in others.items():
        expected = other.predict(IMAGES, verbose=0)
        expected = expected if isinstance(expected, dict) else {"scores": expected}
        with np.load(tmp_path / f"{name}.npz") as found:
            assert set(found) == set(expected)
            for key, value in expected.items():
                np.testing.assert_array_equal(found[key], value)


def test_the_plain_backbone_gives_the_same():
    own = keras_internimage.InternImageBackbone(**SIZES)
    other = InternImageBackbone(**SIZES)
    other.set_weights(own.get_weights())
    assert isinstance(other, keras_internimage.InternImageBackbone)
    np.testing.assert_array_equal(own.predict(IMAGES, verbose=0), other.predict(IMAGES, verbose=0))
    assert isinstance(other, keras_hub.models.Backbone)
