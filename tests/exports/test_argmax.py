"""`export(include_argmax=True)`: label maps instead of logits, in every format."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from small_models import upernet, with_offsets

from keras_internimage import export
from keras_internimage.exports import formats, verify
from keras_internimage.layers.resampling import resize_bilinear
from keras_internimage.segmenter import Segmenter

BACKEND = keras.config.backend()
by_torch = pytest.mark.skipif(BACKEND != "torch", reason="written by PyTorch")
by_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="written by TensorFlow")
CLOSE = 1e-4  # logits at most this far apart may change places


def quarter(sides=(None, None), classes=5):
    """A user's model, of logits at a quarter of the images' size."""
    keras.utils.set_random_seed(0)
    images = keras.Input((*sides, 3))
    x = keras.layers.Conv2D(classes, 4, 4, data_format="channels_last", name="scores")(images)
    return keras.Model(images, x)


def noise(*shape):
    return np.random.default_rng(2).normal(size=shape).astype("float32")


def logits(model, images):
    """The model's at the images' size."""
    found = model(images, training=False)
    return keras.ops.convert_to_numpy(resize_bilinear(found, images.shape[1:3]))


def check(path, images, expected):
    """The file gives the numbers of the largest of the expected logits."""
    (labels,) = formats.runner(path)(images).values()
    assert labels.dtype == np.int32 and labels.shape == images.shape[:3]
    assert len(np.unique(labels)) > 2  # or nothing is compared
    second, first = np.sort(expected, axis=-1)[..., -2:].transpose(3, 0, 1, 2)
    clear = first - second > CLOSE
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("model", marks=by_tensorflow),
        pytest.param("model.onnx", marks=by_torch),
        pytest.param("model.xml", marks=by_torch),
        pytest.param("model.pt2", marks=by_torch),
    ],
)
def test_any_size_of_image(tmp_path, name, capsys):
    model = quarter()
    export(model, tmp_path / name, include_argmax=True)
    assert "the same label for" in capsys.readouterr().out
    for size in ((32, 48), (37, 51)):
        x = noise(2, *size, 3)
        check(tmp_path / name, x, logits(model, x))
    if name != "model.pt2":  # where outputs have no names
        assert list(formats.runner(tmp_path / name)(x)) == ["label_map"]


@pytest.mark.skipif(BACKEND == "torch", reason="written by TensorFlow")
def test_litert_by_tensorflow_or_handed_over_to_it(tmp_path):
    model = quarter((32, 48))
    options = {"precision": "float16"} if BACKEND == "tensorflow" else {}
    export(model, tmp_path / "model.tflite", include_argmax=True, **options)
    x = noise(2, 32, 48, 3)
    expected = logits(model, x)
    if not options:
        check(tmp_path / "model.tflite", x, expected)
    else:
        (labels,) = formats.runner(tmp_path / "model.tflite")(x).values()
        assert (labels == expected.argmax(-1)).mean() > 0.95


@by_tensorflow
def test_a_segmenter_with_fewer_labels_than_outputs(tmp_path):
    """As those for Cityscapes; the file has preprocessing and labels."""
    model = with_offsets(upernet(image_shape=(None, None, 3), auxiliary=True), 0.3)
    segmenter = Segmenter(model, ["road", "sky", "tree"])
    segmenter.export(tmp_path / "model", include_argmax=True)
    assert (tmp_path / "model/assets.extra/labels.txt").read_text() == "road\nsky\ntree"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), "uint8")
    x = keras.applications.imagenet_utils.preprocess_input(
        pixels.astype("float32"), "channels_last", mode="torch"
    )
    expected = keras.ops.convert_to_numpy(model(x)["logits"])[..., :3]
    (labels,) = formats.runner(tmp_path / "model")(pixels).values()
    second, first = np.sort(expected, axis=-1)[..., -2:].transpose(3, 0, 1, 2)
    clear = first - second > 1e-5
    assert len(np.unique(labels)) > 1 and clear.mean() > 0.9
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])


@by_torch
def test_resized_once():
    """Logits that have the images' size already are not resized again."""
    from keras_internimage.exports.model_transforms import at_input_size

    model = upernet(image_shape=(None, None, 3))
    assert at_input_size(model) is model
    fixed = keras.Model(model.input, model.output)
    assert at_input_size(fixed) is fixed
    same = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 1)])
    assert at_input_size(same) is same
    assert at_input_size(quarter()).output_shape == (None, None, None, 5)


@by_torch
def test_wrong_labels_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_argmax", lambda x: keras.ops.argmin(x, axis=-1))
    with pytest.raises(RuntimeError, match="nothing was written"):
        export(quarter(), tmp_path / "model.pt2", include_argmax=True)
    monkeypatch.setattr(formats, "_argmax", lambda x: keras.ops.max(x, axis=-1))
    with pytest.raises(RuntimeError, match="labels from 0 to 4.*dtype=float32"):
        export(quarter(), tmp_path / "model.pt2", include_argmax=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.any_backend
def test_how_far_labels_are_from_logits(tmp_path):
    """Half of what one logit lacks to another: each may be that much off."""
    x = np.array([[[4.0, 1.0, 3.5], [0.0, 2.0, 1.0]]], "float32")[None]
    found, same = verify._compare_labels(x, np.array([[[0, 1]]]), tmp_path, "float32")
    assert found == 0 and same.all()
    found, same = verify._compare_labels(x, np.array([[[2, 1]]]), tmp_path, "float32")
    assert found == pytest.approx(0.25 / 4) and same.tolist() == [[[False, True]]]
    found, _ = verify._compare_labels(x, np.array([[[2, 1]]]), tmp_path, "int8")
    assert found == pytest.approx(np.sqrt(0.25**2 / 2) / x.std())
    with pytest.raises(RuntimeError, match="from 0 to 2.*from 1 to 3"):
        verify._compare_labels(x, np.array([[[3, 1]]]), tmp_path, "float32")
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(RuntimeError, match="finite logits"):
        verify._compare_labels(x, np.array([[[0, 1]]]), tmp_path, "float32")


@pytest.mark.any_backend
def test_other_models_are_refused(tmp_path):
    images = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(images)
    for outputs, received in [
        (keras.layers.Dense(4)(pooled), r"\(None, 4\)"),
        (keras.layers.Conv2D(1, 1, data_format="channels_last")(images), r"\(None, 8, 8, 1\)"),
        ({"logits": images, "auxiliary": images}, r"\(None, 8, 8, 3\), \(None, 8, 8, 3\)"),
    ]:
        with pytest.raises(ValueError, match=f"needs a segmentation model.*{received}"):
            export(keras.Model(images, outputs), tmp_path / "model.onnx", include_argmax=True)
    assert not list(tmp_path.iterdir())


@by_torch
def test_the_command_with_a_trained_model(tmp_path):
    """Labels and preprocessing come from beside the model, as for a classifier.

    In a process of its own, which has no TensorFlow.
    """
    import torch

    quarter().save(tmp_path / "model.keras")
    names = list("abcde")
    (tmp_path / "labels.json").write_text(json.dumps({"classes": names, "resolution": 32}))
    out = tmp_path / "labels.pt2"
    result = subprocess.run(
        [sys.executable, "-m", "keras_internimage.commands.export", tmp_path, out, "--argmax"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    extra = {"labels.txt": ""}
    torch.export.load(out, extra_files=extra)
    assert extra["labels.txt"].split("\n") == names
    run = formats.runner(out)
    assert run.dtype == "uint8"
    (labels,) = run(np.random.default_rng(0).integers(0, 256, (2, 32, 44, 3), "uint8")).values()
    assert labels.shape == (2, 32, 44) and labels.max() < 5


@pytest.mark.any_backend
def test_the_command_refuses_a_classifier_before_it_downloads(tmp_path, monkeypatch, capsys):
    from keras_internimage import predictor
    from keras_internimage.commands import export as command

    monkeypatch.setattr(predictor, "build_published", None)
    assert command.main(["internimage_t_1k_224", str(tmp_path / "t.onnx"), "--argmax"]) == 2
    assert "--argmax needs a segmentation model" in capsys.readouterr().err
