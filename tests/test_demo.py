"""The examples, with tiny settings."""

import pathlib

import keras
import numpy as np
import pytest
import shapes
from PIL import Image
from small_models import SMALL, upernet

import keras_internimage
from keras_internimage.checkpoints import DownloadError
from keras_internimage.segmenter import load_segmenter
from keras_internimage.variants import function_name

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def tiny(**options):
    options.setdefault("input_shape", (None, None, 3))
    return keras_internimage.InternImage(**SMALL, **options)


@pytest.fixture
def demo(example, monkeypatch):
    module = example("demo")
    real = module.build_model
    small = {"input_shape": (module.SIZE, module.SIZE, 3), "classes": module.CLASSES}
    monkeypatch.setattr(module, "build_model", lambda: tiny(**small))
    module.real_model = real
    return module


@pytest.fixture
def untrained(demo, monkeypatch):
    """The demo with nothing learned: what follows the training is under test."""
    history = {key: [1.0] for key in ("loss", "accuracy", "val_loss", "val_accuracy")}
    monkeypatch.setattr(demo, "train", lambda *arguments: history)
    return demo


def test_demo(demo, example, tmp_path, capsys, monkeypatch):
    def unavailable(**options):
        raise DownloadError("no route to the server")

    monkeypatch.setattr(keras_internimage, "InternImageT", unavailable)
    out = tmp_path / "a/demo"
    options = ["--epochs", 1, "--samples", 60, "--minimum", 0, "--out", out]
    exports = ["model.onnx", "model.tflite", "served"]
    if keras.config.backend() != "tensorflow":  # each backend's exports have tests of their own
        options, exports = [*options, "--no-exports"], []
    example.run(demo, *options)
    found = {p.name for p in out.iterdir()}
    assert found == {"confusion.png", "curves.png", "model.keras", *exports}
    for name in ("curves.png", "confusion.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    printed = capsys.readouterr().out
    assert "40 digits to learn from, 20 held out" in printed
    assert "Accuracy on the held-out third: " in printed
    assert "left out: the weights or the class names are not in Keras' cache" in printed
    assert "be downloaded: no route to the server\n" in printed
    assert keras.saving.load_model(out / "model.keras").output_shape == (None, 10)


@pytest.mark.any_backend
def test_demo_fails_below_the_minimum(untrained, example):
    with pytest.raises(SystemExit, match="accuracy must be at least 101%. Received: "):
        example.run(untrained, *"--samples 60 --minimum 1.01 --no-exports --no-photographs".split())


@pytest.mark.any_backend
def test_demo_fails_where_the_reloaded_model_differs(untrained, example, monkeypatch):
    other = untrained.build_model
    monkeypatch.setattr(untrained, "save_and_reload", lambda model, path: other())
    with pytest.raises(SystemExit, match="reloaded model must predict the same"):
        example.run(untrained, *"--samples 60 --minimum 0 --no-exports --no-photographs".split())


@pytest.mark.any_backend
def test_demo_leaves_no_broken_model(demo, tmp_path, monkeypatch):
    model = demo.build_model()
    path = tmp_path / "model.keras"
    path.write_bytes(b"of an earlier run")

    def broken(unfinished):
        pathlib.Path(unfinished).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(model, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        demo.save_and_reload(model, path)
    assert path.read_bytes() == b"of an earlier run"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.any_backend
def test_demo_names_photographs(demo, monkeypatch, capsys):
    monkeypatch.setattr(keras_internimage, "InternImageT", lambda weights: tiny())
    index = {str(i): [f"n{i:08d}", f"class_{i}"] for i in range(1000)}
    decode = keras.applications.imagenet_utils.decode_predictions
    monkeypatch.setitem(decode.__globals__, "CLASS_INDEX", index)
    demo.name_photographs()
    printed = capsys.readouterr().out
    assert "  china.jpg: class_" in printed and "  flower.jpg: class_" in printed


@pytest.mark.any_backend
def test_demo_data_and_model(demo):
    x, held_out, y, held_out_y = demo.load_digits(1797)
    assert x.shape == (1198, 64, 64, 3) and held_out.shape == (599, 64, 64, 3)
    assert x.dtype == "float32"
    shares = np.bincount(y) / len(y) - np.bincount(held_out_y) / len(held_out_y)
    assert np.abs(shares).max() < 0.002
    assert demo.real_model().output_shape == (None, 10)


@pytest.fixture
def folder(tmp_path):
    """Photographs of three classes, a bright one, a dark one, a coloured one."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for index, name in enumerate(("bright", "coloured", "dark")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (40, 50, 3)) // (1 + 4 * index)
                image = Image.fromarray(pixels.astype("uint8"))
                image.save(tmp_path / part / name / f"{number}.png")
            (tmp_path / part / name / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.any_backend
def test_fine_tune(example, folder, monkeypatch, capsys):
    received = {}

    def build(**options):
        received.update(options)
        return tiny(**{**options, "weights": None})

    monkeypatch.setattr(keras_internimage, "InternImageT", build)
    module = example("fine_tune")
    arguments = "train --epochs 1 --batch-size 3 --size 64 --out new.keras"
    example.run(module, *arguments.split())
    assert received["weights"] == "imagenet" and received["classes"] == 3
    assert "Classes: bright, coloured, dark. Wrote new.keras" in capsys.readouterr().out
    assert keras.saving.load_model("new.keras").output_shape == (None, 3)


@pytest.mark.any_backend
def test_fine_tune_segmentation(example, tmp_path, monkeypatch, capsys):
    received = {}

    def build(backbone_weights, drop_path_rate, **options):
        received.update(weights=backbone_weights, rate=drop_path_rate, **options)
        return upernet(image_shape=(None, None, 3), **options)

    monkeypatch.setattr(keras_internimage, "UperNetT", build)
    shapes.folder(tmp_path / "street", images=3, validation=1)
    module = example("fine_tune_segmentation")
    arguments = "street --epochs 1 --batch-size 2 --size 64 --out new.keras"
    example.run(module, *arguments.split())
    assert received == {"weights": "imagenet", "rate": 0.1, "classes": 3, "auxiliary": True}
    assert "Classes: ground, sky, square. Wrote new.keras" in capsys.readouterr().out
    logits = load_segmenter("new.keras", labels=shapes.CLASSES)
    assert logits.classes == 3


@pytest.mark.any_backend
def test_fine_tune_without_images(example, tmp_path):
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty/: has no image"):
        example.run(example("fine_tune"), "train")


@pytest.mark.any_backend
@pytest.mark.parametrize("variant", ["T", "FlashT"])
def test_classify(example, folder, monkeypatch, capsys, variant):
    monkeypatch.setattr(keras_internimage, function_name(variant), lambda weights: tiny())
    index = {str(i): [f"n{i:08d}", f"class_{i}"] for i in range(1000)}
    decode = keras.applications.imagenet_utils.decode_predictions
    monkeypatch.setitem(decode.__globals__, "CLASS_INDEX", index)
    images = ("test/dark/0.png", "test/bright/1.png")
    example.run(example("classify"), *images, "--top", 2, "--variant", variant)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "class_" not in line] == list(images)
    assert len(lines) == 6


@pytest.mark.any_backend
def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        limits = {
            "demo": 200,
            "detect": 190,
            "segment": 160,
            "train_distributed": 330,
            "visualize": 120,
        }
        limit = limits.get(path.stem, 90)
        assert len(path.read_text().splitlines()) < limit, path
