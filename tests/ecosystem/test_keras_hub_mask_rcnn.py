"""Mask R-CNN as a task of KerasHub: predicts raw images, saved, loaded, with presets."""

import drawn_objects
import keras
import numpy as np
import pytest
import small_models

keras_hub = pytest.importorskip("keras_hub")

pytestmark = pytest.mark.any_backend


def make_task(backbone=None, **arguments):
    from keras_internimage.models.detection import keras_hub as tasks

    if backbone is None:
        backbone = small_models.backbone(small_models.TINY, image_shape=(None, None, 3))
    preprocessor = tasks.MaskRCNNObjectDetectorPreprocessor(tasks.MaskRCNNImageConverter())
    task = tasks.MaskRCNNObjectDetector(
        backbone, 5, preprocessor, **{**small_models.DETECTOR, **arguments}
    )
    small_models.with_large_predictions(task.detector)
    return task


def images():
    return np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype("float32")


def same(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-4)


def test_task(tmp_path):
    """It detects in raw images what the model does in normalised ones."""
    from keras_internimage import preprocess_input
    from keras_internimage.models.detection.keras_hub import MaskRCNNObjectDetector

    task = make_task(bounding_box_format="rel_yxyx")
    assert isinstance(task, keras_hub.models.ObjectDetector)
    expected = task.predict(images(), verbose=0)
    assert expected["num_detections"].tolist() == [6] and expected["boxes"].max() <= 1
    same(task.detector.predict(preprocess_input(images()), verbose=0), expected)
    task.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert type(again) is MaskRCNNObjectDetector
    same(again.predict(images(), verbose=0), expected)
    with pytest.raises(ValueError, match="positive int. Received: classes=0"):
        MaskRCNNObjectDetector(task.backbone, 0)
    with pytest.raises(ValueError, match="`bounding_box_format` must be one of"):
        MaskRCNNObjectDetector(task.backbone, 5, bounding_box_format="yx")


def test_beside_other_tasks(tmp_path):
    """KerasHub changes the bases of all tasks, functional or not, when it makes one."""
    from keras_internimage import preprocess_input
    from keras_internimage.models import keras_hub as hub

    tasks = [make_task()]
    backbone = hub.InternImageBackbone(**small_models.SMALL, image_shape=(64, 64, 3))
    tasks += [hub.InternImageImageClassifier(backbone=backbone, num_classes=3), make_task()]
    for number, task in enumerate(tasks):
        found = task.predict(images(), verbose=0)
        task.save(tmp_path / f"{number}.keras")
        again = keras.saving.load_model(tmp_path / f"{number}.keras")
        if number == 1:
            np.testing.assert_allclose(again.predict(images(), verbose=0), found, atol=1e-5)
            continue
        same(again.predict(images(), verbose=0), found)
        assert {key: (None, *value.shape[1:]) for key, value in found.items()} == {
            key: value.shape for key, value in task.output.items()
        }
        sizes = np.array([[64, 48]])
        inputs = {"images": preprocess_input(images()), "image_sizes": sizes}
        task.preprocessor = None
        found = task.predict(inputs, verbose=0)
        same(task.detector.predict(inputs, verbose=0), found)
        assert found["boxes"][..., 2].max() <= 48


def test_fit(tmp_path):
    """It learns, and a trained task can be saved and loaded."""
    pixels, boxes, labels, masks = (
        np.stack(part) for part in zip(*map(drawn_objects.image, range(2)), strict=True)
    )
    targets = {"boxes": boxes, "labels": labels, "masks": masks}
    keras.utils.set_random_seed(0)
    task = make_task()
    task.compile(keras.optimizers.AdamW(1e-3))
    losses = task.fit(pixels.astype("float32"), targets, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    task.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    same(again.predict(images(), verbose=0), task.predict(images(), verbose=0))


def test_presets(tmp_path):
    """Of a task, its preprocessor, and a backbone alone."""
    from keras_internimage.models.detection import keras_hub as tasks

    task = make_task(dtype="mixed_bfloat16", bounding_box_format="xywh")
    folder = str(tmp_path / "preset")
    task.save_to_preset(folder)
    expected = task.predict(images(), verbose=0)
    for kind in (tasks.MaskRCNNObjectDetector, keras_hub.models.ObjectDetector):
        read = kind.from_preset(folder)
        assert type(read) is tasks.MaskRCNNObjectDetector
        assert (read.num_classes, read.detector.channels) == (5, 8)
        assert read.bounding_box_format == read.detector.bounding_box_format == "xywh"
        assert read.detector.dtype_policy.name == "mixed_bfloat16"
        assert read.backbone.dtype_policy.name == "float32"
    same(read.predict(images(), verbose=0), expected)
    # Another number of classes: the backbone's weights alone are read.
    other = tasks.MaskRCNNObjectDetector.from_preset(folder, num_classes=3)
    assert other.detector.classes == 3
    pairs = zip(other.backbone.weights, task.backbone.weights, strict=True)
    assert all(np.array_equal(*map(keras.ops.convert_to_numpy, pair)) for pair in pairs)


def test_targets_with_masks_are_not_resized():
    from keras_internimage.models.detection import keras_hub as tasks

    y = {
        "boxes": np.array([[[0, 0, 9, 9]]], "float32"),
        "labels": np.array([[1]]),
        "masks": np.ones((1, 1, 64, 64), "uint8"),
    }
    converter = tasks.MaskRCNNImageConverter()
    preprocessor = tasks.MaskRCNNObjectDetectorPreprocessor(converter)
    _, found = preprocessor(images(), y)
    assert found["masks"] is y["masks"]
    converter = tasks.MaskRCNNImageConverter(image_size=(32, 32))
    with pytest.raises(ValueError, match="`image_size` of the image converter must be None"):
        tasks.MaskRCNNObjectDetectorPreprocessor(converter)(images(), y)
