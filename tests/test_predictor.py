"""`keras_internimage.load`: a finished model, its labels and its preprocessing in one call."""

import json

import keras
import numpy as np
import pytest
from PIL import Image
from small_models import SMALL, one_block

import keras_internimage
from keras_internimage import exports, predictor
from keras_internimage.checkpoints import published
from keras_internimage.preprocessing import load_image

LABELS = ["left", "right", "up"]


def build(**options):
    """A tiny classifier whose scores differ from image to image."""
    keras.utils.set_random_seed(0)
    arguments = {"input_shape": (32, 32, 3), "classes": 3, **options}
    return keras_internimage.InternImage(**SMALL, **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a training leaves."""
    folder = tmp_path_factory.mktemp("trained")
    one_block((32, 32), classes=3).save(folder / "model.keras")
    (folder / "labels.json").write_text(json.dumps({"classes": LABELS, "resolution": 32}))
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return keras_internimage.load(folder)


@pytest.fixture
def photographs(tmp_path):
    """Three images; the last one is on its side, by its EXIF orientation, the first one not."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 40, 3), "uint8").repeat(2, 1)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    Image.fromarray(pixels).save(paths[0])
    Image.fromarray(255 - pixels).save(paths[1])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(paths[2], exif=exif)
    return paths


def test_a_training(folder, loaded, photographs):
    assert loaded.labels == tuple(LABELS) and loaded.resolution == 32
    found = loaded.predict(photographs, top=2, batch_size=2)
    model = keras.saving.load_model(folder / "model.keras")
    images = np.stack([load_image(path, 32) for path in (*photographs[:2], photographs[0])])
    expected = model.predict(images, verbose=0)
    assert found.scores.shape == (3, 3) and found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, expected, atol=2e-5)
    assert found.images == tuple(photographs) and len(found) == 3
    for best, scores in zip(found, found.scores, strict=True):
        order = np.argsort(-scores)[:2]
        assert best == tuple((LABELS[i], float(scores[i])) for i in order)
    assert found[-1] == found.top[2]


def test_images_of_every_kind(loaded, photographs):
    path = photographs[0]
    expected = loaded.predict(path).scores
    image = Image.open(path)
    pixels = np.asarray(image)
    for given in (str(path), image, pixels, [path], pixels[None], (i for i in [pixels])):
        np.testing.assert_allclose(loaded.predict(given).scores, expected, atol=1e-6)
    below = loaded.predict(path.parent)
    assert below.images == tuple(photographs)
    none = loaded.predict([])
    assert len(none) == 0 and none.scores.shape == (0, 3)


def test_images_that_cannot_be_read(loaded, photographs, tmp_path):
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(ValueError, match="text.jpg"):
        loaded.predict([photographs[0], tmp_path / "text.jpg"])
    with pytest.raises(FileNotFoundError, match="none.jpg, no such file"):
        loaded.predict(tmp_path / "none.jpg")
    for name in ("top", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be an integer, at least 1"):
            loaded.predict([], **{name: 0})


@pytest.mark.any_backend
def test_logits_become_probabilities(photographs, tmp_path):
    build(classifier_activation=None, input_shape=(None, None, 3)).save(tmp_path / "model.keras")
    made = keras_internimage.load(tmp_path / "model.keras", labels=LABELS, resolution=64)
    assert made.resolution == 64
    found = made.predict(photographs)
    np.testing.assert_allclose(found.scores.sum(-1), 1, atol=1e-5)
    logits = made.model.predict(load_image(photographs[0], 64)[None], verbose=0)[0]
    np.testing.assert_allclose(found.scores[0], keras.ops.softmax(logits), atol=1e-5)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("name", "content"),
    [("labels.json", '["a", "b", "c"]'), ("labels", '{"classes": ["a", "b", "c"]}')]
    + [("labels.txt", "a\nb\r\nc\n\n"), ("labels.txt", "\ufeffa\nb\nc")],
)
def test_files_of_labels(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    assert predictor.read_labels(tmp_path / name).classes == ("a", "b", "c")
    with pytest.raises(FileNotFoundError, match="none, no such file"):
        predictor.read_labels(tmp_path / "none")


@pytest.mark.any_backend
def test_labels_and_resolutions_that_do_not_fit(folder):
    with pytest.raises(ValueError, match="as many as the model has classes, 3. Received: 2"):
        keras_internimage.load(folder, labels=["a", "b"])
    with pytest.raises(ValueError, match="takes images of 32 x 32 pixels. .*resolution=64"):
        keras_internimage.load(folder, resolution=64)


@pytest.mark.any_backend
def test_what_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "damaged.keras").write_text("")
    (tmp_path / "unfinished").mkdir()
    for name, error, message in [
        ("notes.txt", ValueError, "must be a .keras file"),
        ("damaged.keras", ValueError, "that Keras loads"),
        ("unfinished", FileNotFoundError, "must hold model.keras.* no such file"),
        ("none.keras", FileNotFoundError, "none.keras, no such file"),
        ("none", FileNotFoundError, "none, no such file"),
    ]:
        with pytest.raises(error, match=message):
            keras_internimage.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="internimage_t_1k_225, no such file"):
        keras_internimage.load("internimage_t_1k_225")
    backbone = keras_internimage.InternImageBackbone(**SMALL)
    backbone.save(tmp_path / "backbone.keras")
    with pytest.raises(ValueError, match="one score for each class"):
        keras_internimage.load(tmp_path / "backbone.keras")


@pytest.mark.any_backend
def test_published_names(monkeypatch, tmp_path):
    calls = []

    def small(weights, classes, input_shape):
        calls.append((weights, classes, input_shape))
        return build(classes=7, input_shape=input_shape)

    monkeypatch.setattr(keras_internimage.models, "InternImageL", small)
    monkeypatch.chdir(tmp_path)
    name = "internimage_l_22kto1k_384"
    made = keras_internimage.load(name)
    assert calls == [(name, 1000, (384, 384, 3))]
    assert made.labels == tuple("0123456") and made.resolution == 384
    assert keras_internimage.load(name, resolution=64).resolution == 64
    (tmp_path / name).mkdir()  # what is there goes before
    with pytest.raises(FileNotFoundError, match="model.keras"):
        keras_internimage.load(name)
    assert published.find(name).name == name


@pytest.mark.any_backend
def test_export_has_labels_and_preprocessing(loaded, folder, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(exports, "export", lambda *a, **options: calls.append((a, options)))
    loaded.export("model.onnx", precision="float16")
    assert calls.pop() == (
        (loaded.model, "model.onnx"),
        {"precision": "float16", "include_preprocessing": True, "labels": tuple(LABELS)},
    )
    loaded.export("model.onnx", labels=None, include_preprocessing=False)
    assert calls.pop()[1] == {"labels": None, "include_preprocessing": False}
    build(input_shape=(None, None, 3)).save(tmp_path / "model.keras")
    keras_internimage.load(tmp_path / "model.keras", resolution=64).export("x")
    # Numbers are no names.
    assert calls.pop()[1] == {"include_preprocessing": True, "input_shape": (64, 64, 3)}
