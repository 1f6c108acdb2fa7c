"""KerasCV 0.9 around InternImageBackbone; where it fails, it fails for its own backbone, too."""

import importlib.util

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

pytest.importorskip("tensorflow")  # KerasCV does not import without it, on any backend
keras_cv = pytest.importorskip("keras_cv")

if BACKEND == "jax":  # compiles for a minute what the others do in seconds
    pytestmark = pytest.mark.slow


def own():
    """A small backbone of KerasCV's own."""
    return keras_cv.models.CSPDarkNetBackbone(
        stackwise_channels=[8, 16, 32, 64],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=False,
        input_shape=(64, 64, 3),
    )


def segmenter(encoder):
    model = keras_cv.models.DeepLabV3Plus(backbone=encoder, num_classes=3)
    model.compile(sgd(), "sparse_categorical_crossentropy", run_eagerly=EAGER)
    return model


def detector(encoder):
    model = keras_cv.models.RetinaNet(num_classes=3, bounding_box_format="xyxy", backbone=encoder)
    model.compile(
        optimizer=sgd(), classification_loss="focal", box_loss="smoothl1", run_eagerly=EAGER
    )
    return model


DETECTED = {"boxes": BOXES, "classes": CLASSES.astype("float32")}


@pytest.mark.skipif(BACKEND == "torch", reason="fails for any backbone: see the next test")
def test_segmenter(tmp_path):
    model = segmenter(backbone())
    check_fit(model, IMAGES, MASKS)
    model.save(tmp_path / "model.keras")
    check_same(model, keras.saving.load_model(tmp_path / "model.keras"))


@pytest.mark.skipif(BACKEND != "torch", reason="the others: see the test above")
@pytest.mark.parametrize("encoder", [backbone, own])
def test_segmenter_is_not_trained_by_torch(encoder, tmp_path):
    """Nor is one around KerasCV's own backbone. KerasHub's DeepLab is trained."""
    model = segmenter(encoder())
    assert model.predict(IMAGES, verbose=0).shape == (2, 64, 64, 3)
    with pytest.raises(RuntimeError, match="grad_input must be contiguous"):
        model.fit(IMAGES, MASKS, verbose=0)
    model.save(tmp_path / "model.keras")
    check_same(model, keras.saving.load_model(tmp_path / "model.keras"))


def test_detector(tmp_path):
    model = detector(backbone())
    check_fit(model, IMAGES, DETECTED)
    model.save(tmp_path / "model.keras")
    check_same(model, keras.saving.load_model(tmp_path / "model.keras"))


@pytest.mark.parametrize("encoder", [backbone, own] if BACKEND == "torch" else [backbone])
def test_detections(encoder):
    """On PyTorch, KerasCV's suppression of overlapping boxes is torchvision's."""
    model = detector(encoder())
    if BACKEND == "torch" and importlib.util.find_spec("torchvision") is None:
        with pytest.raises(ModuleNotFoundError, match="torchvision"):
            model.predict(IMAGES, verbose=0)
        return
    found = model.predict(IMAGES, verbose=0)
    assert found["boxes"].shape == (2, 100, 4)
    assert np.isfinite(found["boxes"]).all()
