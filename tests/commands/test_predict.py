"""`internimage-predict`: what it takes, what it writes, what it refuses first."""

import csv
import io
import json
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image
from small_models import SMALL

import keras_internimage
from keras_internimage import predictor
from keras_internimage.commands import predict
from keras_internimage.data import folders

pytestmark = pytest.mark.any_backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    keras_internimage.InternImage(**SMALL, input_shape=(32, 32, 3), classes=2).save(
        folder / "model.keras"
    )
    (folder / "labels.json").write_text('["a, b", "c"]')
    return folder


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def run(capsys, *arguments):
    code = predict.main([str(argument) for argument in arguments])
    printed, errors = capsys.readouterr()
    return code, printed, errors


def test_formats_and_files(folder, image, capsys):
    code, printed, errors = run(capsys, folder, image, "--format", "csv")
    assert code == 0 and errors == ""
    rows = list(csv.reader(io.StringIO(printed)))
    assert rows[0] == ["file", "rank", "label", "probability"]
    assert {row[2] for row in rows[1:]} == {"a, b", "c"}
    assert [row[:2] for row in rows[1:]] == [[str(image), "1"], [str(image), "2"]]
    assert sum(float(row[3]) for row in rows[1:]) == pytest.approx(1, abs=1e-5)
    out = image.with_name("out.csv")
    for _ in range(2):  # a file of that kind is replaced
        assert run(capsys, folder, image, "--output", out) == (0, "", "")
    assert out.read_text("utf-8") == printed
    assert run(capsys, folder, image, "--output", image.with_name("out.json"))[0] == 0
    content = json.loads(image.with_name("out.json").read_text("utf-8"))
    assert content["predictions"][0]["classes"][0]["label"] == rows[1][2]
    _, table, _ = run(capsys, folder, image)
    assert run(capsys, folder, image, "--output", image.with_name("out.txt")) == (0, "", "")
    assert image.with_name("out.txt").read_text("utf-8") == table != ""


def test_standard_input(folder, image, capsys, monkeypatch):
    _, expected, _ = run(capsys, folder, image, "--format", "csv")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(image.read_bytes())))
    code, printed, errors = run(capsys, folder, "-", "--format", "csv")
    assert code == 0 and errors == ""
    assert printed == expected.replace(str(image), "-")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"text")))
    code, printed, errors = run(capsys, folder, "-", image)
    assert code == 1 and errors == "internimage-predict: -: is not an image that can be read\n"
    assert printed.startswith(str(image))


def test_published_names(folder, image, capsys, monkeypatch):
    model = predictor.load_model(folder / "model.keras")
    monkeypatch.setattr(predictor, "build_published", lambda row, resolution: model)
    code, printed, _ = run(capsys, "internimage_t_1k_224", image, "--json", "-")
    assert code == 0
    assert json.loads(printed)["model"] == "internimage_t_1k_224"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/none.keras", "{image}"], "none.keras, no such file"),
        (["{root}/none", "{image}"], "none, no such file"),
        (["{root}", "{image}"], "model.keras, no such file"),
        (["{model}", "-", "-"], "Standard input holds one image"),
        (["{model}", "{image}", "--output", "{root}/out.md"], "--output must end in .txt, .csv"),
        (["{model}", "{image}", "--output", "{root}/x/a.csv"], "The folder of --output must exist"),
        (["{model}", "{image}", "--output", "{image}", "--format", "csv"], "ends in .csv"),
        (["{model}", "{image}", "--json", "{image}"], "ends in .json"),
        (["{model}", "{image}", "--json", "{root}", "--format", "csv"], "without --output"),
        (["{model}", "{image}", "--output", "{root}/d.csv"], "must be a file"),
    ],
)
def test_refuses_before_a_model_is_loaded(
    folder, image, capsys, monkeypatch, tmp_path, arguments, message
):
    def begin(*_):
        raise AssertionError("begun")

    (tmp_path / "d.csv").mkdir()
    before = image.read_bytes()
    monkeypatch.setattr(predictor, "load_model", begin)
    monkeypatch.setattr(folders, "images_below", begin)
    places = {"root": tmp_path, "model": folder, "image": image}
    code, printed, errors = run(capsys, *(a.format(**places) for a in arguments))
    assert code == 2 and printed == ""
    assert errors.startswith("internimage-predict: error: ") and message in errors
    assert errors.count("\n") == 1
    assert image.read_bytes() == before
