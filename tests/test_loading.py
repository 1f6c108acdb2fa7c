"""`keras_internimage.load`: one call for a finished model of any task, however it was made."""

import keras
import numpy as np
import pytest
import small_models
from checkpoints.conftest import build, model_weights, save_pth
from PIL import Image

import keras_internimage
from keras_internimage import loading, predictor
from keras_internimage.detector import Detector
from keras_internimage.models import VARIANTS
from keras_internimage.segmenter import Segmenter
from keras_internimage.variants import Variant

pytestmark = pytest.mark.any_backend


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What a training of each task leaves."""
    keras.utils.set_random_seed(0)
    root = tmp_path_factory.mktemp("trained")
    models = {
        "classification": small_models.one_block((32, 32), classes=3),
        "segmentation": small_models.upernet(classes=3),
        "detection": small_models.mask_rcnn(classes=3),
    }
    for task, model in models.items():
        (root / task).mkdir()
        model.save(root / task / "model.keras")
        (root / task / "labels.json").write_text('{"classes": ["a", "b", "c"], "resolution": 64}')
    (root / "classification" / "labels.json").write_text('["a", "b", "c"]')
    return root


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), "uint8")
    Image.fromarray(pixels).save(path)
    return path


KINDS = {
    "classification": predictor.Predictor,
    "segmentation": Segmenter,
    "detection": Detector,
}


@pytest.mark.parametrize("task", KINDS)
def test_one_interface(folders, image, tmp_path, task):
    made = keras_internimage.load(folders / task)
    assert isinstance(made, KINDS[task]) and isinstance(made, loading.FinishedModel)
    assert made.labels == ("a", "b", "c") and isinstance(made.model, keras.Model)
    pixels = np.asarray(Image.open(image))
    found = [made.predict(given) for given in (image, tmp_path, [pixels], Image.open(image))]
    assert all(len(one) == 1 for one in found)
    for other in found[1:]:
        if task == "classification":
            np.testing.assert_array_equal(found[0].scores, other.scores)
        elif task == "segmentation":
            assert found[0][0].shape == (70, 90) and set(np.unique(found[0][0])) <= {0, 1, 2}
            np.testing.assert_array_equal(found[0][0], other[0])
        else:
            np.testing.assert_array_equal(found[0][0].boxes, other[0].boxes)
            np.testing.assert_array_equal(found[0][0].scores, other[0].scores)


def test_equals_the_tasks_own_functions(folders, image):
    load = keras_internimage.load
    found = load(folders / "classification", labels=["x", "y", "z"], resolution=32)
    other = keras_internimage.load_classifier(
        folders / "classification", labels=["x", "y", "z"], resolution=32
    )
    assert found.labels == other.labels == ("x", "y", "z")
    np.testing.assert_array_equal(found.predict(image).scores, other.predict(image).scores)
    found = load(folders / "segmentation", flip=True, crop=64, stride=32)
    other = keras_internimage.load_segmenter(
        folders / "segmentation", flip=True, crop=64, stride=32
    )
    assert found.flip and found.stride == other.stride == (32, 32)
    np.testing.assert_array_equal(found.predict(image)[0], other.predict(image)[0])
    found = load(folders / "detection", threshold=0.3)
    other = keras_internimage.load_detector(folders / "detection", threshold=0.3)
    assert found.threshold == 0.3 and found.resizing == other.resizing


def test_options_of_another_task(folders, monkeypatch):
    with pytest.raises(TypeError, match=r"classification must be among resolution. .*flip=True"):
        keras_internimage.load(folders / "classification", flip=True)
    with pytest.raises(TypeError, match=r"segmentation must be among resizing, .*threshold=0.5"):
        keras_internimage.load(folders / "segmentation", threshold=0.5)
    with pytest.raises(TypeError, match=r"detection must be among resizing, .*resolution=64"):
        keras_internimage.load("mask_rcnn_internimage_t_fpn_3x_coco", resolution=64)
    monkeypatch.setattr(predictor, "load_model", None)  # before a model is loaded
    with pytest.raises(TypeError, match=r"options of `load` must be among .*Received: size=64"):
        keras_internimage.load(folders / "detection", size=64)


def test_a_variant_with_an_official_file(image, tmp_path, monkeypatch):
    variant = Variant(16, 8, 1, 2, 64, layer_scale=1e-5, offset_scale=2.0, post_norm=True, depth4=1)
    name = "tiny_remove_center"
    path = save_pth(tmp_path / "official.pth", model_weights(name))
    monkeypatch.setitem(VARIANTS, "T", variant)
    monkeypatch.setattr(
        keras_internimage.models,
        "InternImageT",
        lambda weights, classes, input_shape: build(
            name, weights=weights, classes=classes, input_shape=input_shape
        ),
    )
    made = keras_internimage.load("T", weights=path)
    assert made.resolution == 64 and made.labels == tuple("0123456789")
    expected = predictor.Predictor(build(name, weights=path), made.labels, 64)
    np.testing.assert_array_equal(made.predict(image).scores, expected.predict(image).scores)
    with pytest.raises(
        FileNotFoundError, match=r"'imagenet', .*'coco', a published name .*no such"
    ):
        keras_internimage.load("T", weights=tmp_path / "none.pth")
    with pytest.raises(ValueError, match="model must be one of T, S, .* Received: model='Q'"):
        keras_internimage.load("Q", weights=path)
