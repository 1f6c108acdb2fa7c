"""What `export` refuses, and that nothing is left behind then."""

import os

import keras
import numpy as np
import pytest
from small_models import classifier

from keras_internimage import export, predictor
from keras_internimage.commands import export as command
from keras_internimage.exports import exporting, formats

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="no difference")


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.h5", {}, "suffix of `path`"),
        ("model.onnx", {"format": "litert"}, "must end with '.tflite'"),
        ("model", {"format": "coreml"}, "`format` must be"),
        ("model.onnx", {"precision": "int4"}, "`precision` must be"),
        ("model.onnx", {"native": True}, "`native=True` needs"),
        ("model.onnx", {"calibration": np.zeros((1, 32, 32, 3))}, "`calibration` needs"),
        ("model.onnx", {"input_shape": (32, 32)}, "`input_shape` must be"),
        ("model.onnx", {"batch_size": 0}, "`batch_size` must be"),
        ("no/such/folder/model.onnx", {}, "`path` must lie in a folder"),
        ("model.onnx", {"labels": ["one", "two"]}, "`labels` must be as many"),
        ("model.tflite", {"input_shape": (None, None, 3)}, "`input_shape` must give height and"),
        (
            "model.tflite",
            {"precision": "int8", "calibration": np.zeros((1, 64, 64, 3), "float32")},
            r"`calibration` must be float32 images of the shape \('M', 32, 32, 3\)",
        ),
        (
            "model.tflite",
            {
                "precision": "int8",
                "calibration": np.zeros((9, 32, 32, 3), "float32"),
                "include_preprocessing": True,
            },
            "`calibration` must be uint8",
        ),
    ],
)
def test_bad_arguments_are_named(tmp_path, model, name, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_model_must_be_built(tmp_path):
    with pytest.raises(ValueError, match="`model` must be a built Keras model"):
        export(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["model", "model.tflite", "model.onnx", "model.xml", "model.pt2"])
def test_a_quantised_model_is_refused_by_its_policy(tmp_path, name):
    images = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    model = keras.Model(images, keras.layers.Dense(4, name="head")(pooled))
    model.quantize("int8")
    with pytest.raises(ValueError, match="must not be quantised.*'int8_from_float32'.*'head'"):
        export(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_mixed_model_that_cannot_be_changed_is_refused_by_its_policy(tmp_path):
    class Plain(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_float16")

        def call(self, inputs):
            return inputs

    images = keras.Input((8, 8, 3))
    model = keras.Model(images, Plain()(images))
    with pytest.raises(ValueError, match="from their config.*policy mixed_float16"):
        export(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_subclassed_model_is_refused(tmp_path):
    class Model(keras.Model):
        def call(self, inputs):
            return inputs

    model = Model()
    model(np.zeros((1, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match="`model` must have one input"):
        export(model, tmp_path / "model.onnx")


def test_a_file_too_large_for_litert(tmp_path, model, monkeypatch):
    monkeypatch.setattr(exporting, "LITERT_MEGABYTES", 0.1)
    with pytest.raises(ValueError, match="must be smaller than 0.1 MB.*precision='float32'"):
        export(model, tmp_path / "model.tflite")


def test_sizes_that_the_heads_of_h_and_g_cannot_take(tmp_path):
    model = classifier(input_shape=(64, 64, 3), use_clip_projector=True)
    with pytest.raises(ValueError, match="multiples of 32"):
        export(model, tmp_path / "model.onnx", input_shape=(75, 64, 3))
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path, model, monkeypatch):
    monkeypatch.setitem(formats.FORMATS["onnx"].needs, "no_such_module", "no-such-package>=2")
    with pytest.raises(ImportError, match='pip install "no-such-package>=2"'):
        export(model, tmp_path / "model.onnx")


def test_a_file_that_differs_is_not_kept(tmp_path, model, monkeypatch):
    target = formats.FORMATS["onnx"]
    monkeypatch.setitem(target.tolerances, "float32", -1.0)
    (tmp_path / "model.onnx").write_text("what was there before")
    with pytest.raises(RuntimeError, match="nothing was written"):
        export(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "what was there before"
    assert len(list(tmp_path.iterdir())) == 1


KEPT = {"myphotos/a.jpg": "a", "photos.v2": "b", "model.bin": "c", "model.onnx.data": "d"}
LOSING = [
    ("myphotos", {}, "which holds a.jpg"),
    ("model.pt2", {"native": True}, "which holds mine.txt"),
    ("model.xml", {}, "model.bin"),
    ("model.onnx", {}, "model.onnx.data"),
    ("folder.onnx", {}, "must be a file"),
    ("file", {}, "which is a file"),
    (".", {}, "must have a name"),
]


@pytest.mark.parametrize(("name", "options", "message"), LOSING)
def test_nothing_of_others_is_replaced(tmp_path, model, monkeypatch, name, options, message):
    kept = [*KEPT, "folder.onnx/b", "model.pt2.libraries/mine.txt", "file"]
    for file in kept:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)
    monkeypatch.setattr(exporting.subprocess_writer, "write", None)  # nothing is begun
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(model, name, **options)
    assert all((tmp_path / file).read_text() == file for file in kept)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(kept)


class TestReplacing:
    """`_replace`, with what a writer leaves."""

    @pytest.fixture
    def written(self, tmp_path):
        def write(path, content):
            folder = tmp_path / "temporary"
            (folder / path.name / "assets.extra").mkdir(parents=True)
            (folder / path.name / "saved_model.pb").write_text(content)
            (folder / path.name / "assets.extra" / "labels.txt").write_text(content)
            return folder / path.name

        return write

    def test_a_folder_written_here_is_replaced(self, tmp_path, written):
        path = tmp_path / "model"
        path.mkdir()  # an empty one may be taken
        for content in ("old", "new"):
            temporary = written(path, content)
            exporting._replace(temporary, path)
            assert not list(temporary.parent.iterdir())
            assert (path / "saved_model.pb").read_text() == content
            temporary.parent.rmdir()
        (path / "assets.extra" / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match="which holds assets.extra/notes.txt"):
            exporting._replace(written(path, "newest"), path)
        assert (path / "saved_model.pb").read_text() == "new"
        assert (path / "assets.extra" / "notes.txt").read_text() == "mine"

    def test_the_old_one_comes_back(self, tmp_path, written, monkeypatch):
        path, moves = tmp_path / "model", []
        exporting._replace(written(path, "old"), path)
        (tmp_path / "temporary").rmdir()
        temporary, real = written(path, "new"), os.replace

        def second_fails(source, goal):
            moves.append(goal)
            if len(moves) == 2:
                raise OSError("full")
            real(source, goal)

        monkeypatch.setattr(exporting.os, "replace", second_fails)
        with pytest.raises(OSError, match="full"):
            exporting._replace(temporary, path)
        assert (path / "saved_model.pb").read_text() == "old"


def test_the_command(tmp_path, model, capsys):
    model.save(tmp_path / "model.keras")
    arguments = [str(tmp_path / "model.keras"), str(tmp_path / "model.onnx")]
    (tmp_path / "labels.txt").write_text("\n".join(f"class {i}" for i in range(1000)))
    assert command.main([*arguments, "--labels", str(tmp_path / "labels.txt")]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert command.main([arguments[0], str(tmp_path / "model.h5")]) == 2
    assert "suffix of `path`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.h5"], "suffix of `path`"),
        (["no/folder/model.onnx"], "`path` must lie in"),
        (["model.onnx", "--precision", "int3"], "`precision` must be"),
        (["model.onnx", "--labels", "none.txt"], "none.txt"),
        (["model.onnx", "--native"], "`native=True` needs"),
        (["model.onnx", "--labels", "a", "--no-labels"], "must not be given together"),
    ],
)
def test_the_command_refuses_before_it_downloads(tmp_path, monkeypatch, capsys, arguments, message):
    def download(*_):
        raise AssertionError("downloaded")

    monkeypatch.setattr(predictor, "build_published", download)
    monkeypatch.chdir(tmp_path)
    assert command.main(["internimage_t_1k_224", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
