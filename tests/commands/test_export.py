"""`internimage-export` of what internimage-train leaves."""

import json

import keras
import pytest
import small_models
from small_models import SMALL

import keras_internimage
from keras_internimage import predictor
from keras_internimage.commands import export
from keras_internimage.detector import loading as detector_loading
from keras_internimage.exports import exporting

pytestmark = pytest.mark.any_backend
LABELS = ["left", "right"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    keras_internimage.InternImage(**SMALL, input_shape=(32, 32, 3), classes=2).save(
        folder / "model.keras"
    )
    (folder / "labels.json").write_text(json.dumps({"classes": LABELS, "resolution": 32}))
    return folder


@pytest.fixture
def exported(monkeypatch):
    """What the command exports, and with which options."""
    calls = []

    def record(model, path, **options):
        calls.append((model, options))

    monkeypatch.setattr(exporting, "export", record)
    monkeypatch.setattr(keras_internimage.exports, "export", record)
    monkeypatch.setattr(exporting.formats, "missing", lambda *_: [])
    return calls


@pytest.mark.skipif(keras.config.backend() != "torch", reason="written by PyTorch")
def test_a_training_folder_with_labels_and_preprocessing(folder, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    assert export.main([str(folder), str(out)]) == 0, capsys.readouterr().err
    session = onnxruntime.InferenceSession(out)
    (images,) = session.get_inputs()
    assert images.type == "tensor(uint8)" and images.shape[1:] == [32, 32, 3]
    assert session.get_modelmeta().custom_metadata_map["labels"] == "left\nright"


def test_what_can_be_left_out_or_replaced(folder, tmp_path, exported, capsys):
    out = tmp_path / "model.onnx"
    (tmp_path / "other.json").write_text('["up", "down"]')
    (tmp_path / "other.txt").write_text("up\ndown\n")
    for more, expected in [
        ([], (tuple(LABELS), True)),
        (["--no-labels"], (None, True)),
        (["--no-preprocessing"], (tuple(LABELS), False)),
        (["--labels", tmp_path / "other.json"], (("up", "down"), True)),
        (["--labels", tmp_path / "other.txt"], (("up", "down"), True)),
    ]:
        assert export.main([str(folder), str(out), *map(str, more)]) == 0, capsys.readouterr().err
        _, options = exported.pop()
        assert (options["labels"], options["include_preprocessing"]) == expected
    # labels.json beside a model's file is as good.
    assert export.main([str(folder / "model.keras"), str(out), "--size", "0", "64"]) == 0
    _, options = exported.pop()
    assert options["labels"] == tuple(LABELS) and options["input_shape"] == (None, 64, 3)


def test_a_model_alone_is_as_it_is(folder, tmp_path, exported):
    backbone = keras_internimage.InternImageBackbone(**SMALL)
    backbone.save(tmp_path / "backbone.keras")
    assert export.main([str(tmp_path / "backbone.keras"), str(tmp_path / "b.onnx")]) == 0
    _, options = exported.pop()
    assert "labels" not in options and "include_preprocessing" not in options


def test_published_names(folder, tmp_path, exported, monkeypatch):
    model = predictor.load_model(folder / "model.keras")
    monkeypatch.setattr(predictor, "build_published", lambda row, resolution: model)
    assert export.main(["internimage_t_1k_224", str(tmp_path / "t.onnx")]) == 0
    _, options = exported.pop()
    assert options["include_preprocessing"] is True and "labels" not in options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/none.keras", "{root}/out.onnx"], "none.keras, no such file"),
        (["{root}", "{root}/out.onnx"], "model.keras, no such file"),
        (["{model}", "{root}/photos"], "which holds a.jpg"),
        (["{model}", "{root}/a/b.onnx"], "must lie in a folder that exists"),
    ],
)
def test_refuses_before_a_model_is_loaded(
    folder, tmp_path, exported, capsys, monkeypatch, arguments, message
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    monkeypatch.setattr(predictor, "load_model", None)
    places = {"root": tmp_path, "model": folder}
    assert export.main([argument.format(**places) for argument in arguments]) == 2
    printed, errors = capsys.readouterr()
    assert errors.startswith("internimage-export: error: ") and message in errors
    assert printed == "" and not exported
    assert (tmp_path / "photos" / "a.jpg").read_text() == "mine"


@pytest.mark.skipif(keras.config.backend() != "torch", reason="the same everywhere")
def test_a_detector(tmp_path, exported, monkeypatch):
    """Names of classes go into the file; those of a published detector are COCO's."""
    model = small_models.mask_rcnn(classes=2)
    model.save(tmp_path / "model.keras")
    (tmp_path / "labels.json").write_text(json.dumps({"classes": LABELS, "resolution": 64}))
    for more, expected in (([], tuple(LABELS)), (["--no-labels"], None)):
        assert export.main([str(tmp_path / "model.keras"), str(tmp_path / "x.onnx"), *more]) == 0
        found, options = exported.pop()
        assert type(found).__name__ == "MaskRCNN"
        assert (options["labels"], options["include_preprocessing"]) == (expected, True)
    coco = small_models.mask_rcnn(classes=80)
    monkeypatch.setattr(detector_loading, "_build", lambda place: coco)
    assert export.main(["mask_rcnn_internimage_t_fpn_1x_coco", str(tmp_path / "x.onnx")]) == 0
    found, options = exported.pop()
    assert found is coco and options["labels"][:2] == ("person", "bicycle")
