"""KerasHub's models around InternImageBackbone: trained, saved, reloaded."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from ecosystem.small import (
    BACKEND,
    BOXES,
    CLASSES,
    EAGER,
    IMAGES,
    MASKS,
    backbone,
    check_fit,
    check_same,
    sgd,
)

from keras_internimage import FlashInternImageBackbone, InternImageBackbone

keras_hub = pytest.importorskip("keras_hub")


def classifier():
    model = keras_hub.models.ImageClassifier(backbone(), num_classes=3)
    return model, np.array([0, 2])


def segmenter():
    encoder = keras_hub.models.DeepLabV3Backbone(
        backbone(),
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
        projection_filters=8,
        image_shape=(64, 64, 3),
    )
    model = keras_hub.models.DeepLabV3ImageSegmenter(encoder, num_classes=3)
    return model, np.eye(3, dtype="float32")[MASKS]


def detector():
    encoder = keras_hub.models.RetinaNetBackbone(
        backbone(), min_level=3, max_level=5, use_p5=False, image_shape=(64, 64, 3)
    )
    model = keras_hub.models.RetinaNetObjectDetector(
        encoder, num_classes=3, pre_logits_num_conv_layers=1
    )
    return model, {"boxes": BOXES, "labels": CLASSES}


# JAX compiles the detector for a quarter of a minute.
DETECTOR = pytest.param(detector, marks=pytest.mark.slow if BACKEND == "jax" else ())


@pytest.mark.parametrize("make", [classifier, segmenter, DETECTOR])
def test_trained_saved_reloaded(make, tmp_path):
    model, y = make()
    model.compile(optimizer=sgd(), run_eagerly=EAGER)
    check_fit(model, IMAGES, y)
    model.save(tmp_path / "model.keras")
    check_same(model, keras.saving.load_model(tmp_path / "model.keras"))
    model.save_to_preset(tmp_path / "preset")
    loaded = type(model).from_preset(str(tmp_path / "preset"))
    check_same(model, loaded)
    assert any(isinstance(part, InternImageBackbone) for part in parts(loaded))
    if make is detector:
        found = model.predict(IMAGES, verbose=0)
        assert found["boxes"].shape[::2] == (2, 4) and np.isfinite(found["boxes"]).all()


def parts(model):
    encoder = model.backbone
    return encoder, getattr(encoder, "image_encoder", None)


@pytest.mark.any_backend
def test_preset_of_the_backbone(tmp_path):
    model = backbone(layer_scale=0.1, post_norm=True)
    model.save_to_preset(str(tmp_path / "preset"))
    loaded = InternImageBackbone.from_preset(str(tmp_path / "preset"))
    assert loaded.get_config() == model.get_config()
    check_same(model, loaded)
    half = InternImageBackbone.from_preset(str(tmp_path / "preset"), dtype="bfloat16")
    assert half.dtype_policy.name == "bfloat16"
    stored = json.loads((tmp_path / "preset" / "config.json").read_text())
    assert stored["registered_name"] == "keras_internimage>InternImageBackbone"
    # Its own class refuses what does not inherit from it.
    with pytest.raises(ValueError, match="not a subclass of calling class `Backbone`"):
        keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))


@pytest.mark.any_backend
def test_preset_of_flash_internimage(tmp_path):
    sizes = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
    model = FlashInternImageBackbone(**sizes, image_shape=(64, 64, 3))
    model.save_to_preset(str(tmp_path / "preset"))
    for kind in (FlashInternImageBackbone, InternImageBackbone):
        loaded = kind.from_preset(str(tmp_path / "preset"))
        assert type(loaded) is FlashInternImageBackbone
        assert loaded.get_config() == model.get_config()
        check_same(model, loaded)


def test_segformer_asks_for_other_levels():
    """It starts at "P1", half the size of the image, which no InternImage has."""
    with pytest.raises((AttributeError, KeyError), match="hidden_dims|P1"):
        keras_hub.models.SegFormerBackbone(
            image_encoder=backbone(), projection_filters=8, image_shape=(64, 64, 3)
        )


WITHOUT_TENSORFLOW = """
import importlib.machinery, sys

class WithoutTensorFlow(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *arguments):
        return None if name == "tensorflow" else super().find_spec(name, *arguments)

finder = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[finder] = WithoutTensorFlow
from ecosystem.small import IMAGES, check_fit, sgd
from ecosystem.test_keras_hub import detector
model, y = detector()
model.compile(optimizer=sgd())
check_fit(model, IMAGES, y)
assert model.predict(IMAGES, verbose=0)["boxes"].shape[::2] == (2, 4)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.any_backend
@pytest.mark.skipif(BACKEND == "tensorflow", reason="needs itself")
def test_without_tensorflow():
    pytest.importorskip("grain")
    tests = pathlib.Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent)])
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW],
        env={**os.environ, "KERAS_BACKEND": BACKEND, "PYTHONPATH": path},
        check=True,
        timeout=300,
    )
