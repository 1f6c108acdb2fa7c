"""Mask R-CNN's official checkpoints: read, refused, converted and written back."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import small_models
from checkpoints.conftest import check_round_trip, fields, run, save_pth
from checkpoints.test_download import server as server  # a fixture
from checkpoints.test_upernet import holds, official
from deterministic import model_shapes

from keras_internimage.checkpoints import MismatchError, infer, infer_config, published
from keras_internimage.checkpoints.names import classifier, mask_rcnn
from keras_internimage.checkpoints.read import official_name

pytestmark = pytest.mark.any_backend

TABLE = mask_rcnn.TABLE
SIZES = {**small_models.TINY, "layer_scale": 1.0}


@pytest.fixture(scope="module")
def state():
    return official(small_models.mask_rcnn(SIZES), TABLE)


@pytest.fixture
def file(tmp_path, state):
    return str(save_pth(tmp_path / "x.pth", state, "state_dict", "float16", meta={"epoch": 1}))


def test_the_model_is_told_by_its_shapes():
    shapes = {official_name(k): s for k, s in model_shapes("mask_rcnn_internimage_t").items()}
    guess = infer_config(shapes)
    assert (guess.variant, guess.classes, guess.family) == ("T", 80, "mask_rcnn")
    assert guess.head == {"channels": 256, "units": 1024} and guess.config["layer_scale"] == 1
    assert sorted(infer.expected_names(guess)) == sorted(shapes)
    assert infer.describe(guess).startswith("Mask R-CNN on InternImage-T (channels=64")
    assert infer.parameters(shapes, guess.table) == 48_920_544


def test_strict_both_ways(file, state, tmp_path):
    assert holds(small_models.mask_rcnn(SIZES, weights=file), state, table=TABLE)
    more = save_pth(tmp_path / "more.pth", {**state, "rpn_head.x.weight": state[min(state)]})
    with pytest.raises(MismatchError, match=r"Not used by the model \(1\): rpn_head.x.weight"):
        small_models.mask_rcnn(SIZES, weights=more)
    fewer = {k: v for k, v in state.items() if k != "neck.fpn_convs.2.conv.bias"}
    fewer = save_pth(tmp_path / "fewer.pth", fewer)
    with pytest.raises(MismatchError, match=r"Missing in the file \(1\): neck.fpn_convs.2.conv"):
        small_models.mask_rcnn(SIZES, weights=fewer)
    with pytest.raises(MismatchError, match="rpn_head.rpn_cls.weight .* instead of .*, 16, 1, 1"):
        small_models.mask_rcnn(SIZES, weights=file, channels=16)


def test_another_number_of_classes(file, state, capsys):
    model = small_models.mask_rcnn(SIZES, classes=3, weights=file)
    out = capsys.readouterr().out
    assert "newly initialised with 3 classes; x.pth has 5 (classes=5 keeps them)" in out
    new = ("roi_head.bbox_head.fc_", "roi_head.mask_head.conv_logits")
    assert holds(model, state, but=new, table=TABLE)
    for layer in (model.box_head.scores, model.box_head.deltas, model.mask_head.predictions):
        assert 1e-4 < np.std(keras.ops.convert_to_numpy(layer.kernel)) < 1


def test_parts_of_other_models(file, state, tmp_path):
    """The backbone alone takes its part; the detector takes no classifier's file."""
    backbone = small_models.backbone(SIZES, weights=file)
    assert holds(backbone, state, table=classifier.TABLE)
    other = official(small_models.classifier(SIZES, classes=7), classifier.TABLE)
    other = save_pth(tmp_path / "x2.pth", other, "state_dict")
    with pytest.raises(MismatchError, match="no classifier: give it to the backbone"):
        small_models.mask_rcnn(SIZES, weights=other)


def test_keras_files(file, state, tmp_path):
    path = str(tmp_path / "x.weights.h5")
    small_models.mask_rcnn(SIZES, weights=file).save_weights(path)
    assert holds(small_models.mask_rcnn(SIZES, weights=path), state, table=TABLE)
    assert holds(small_models.backbone(SIZES, weights=path), state, table=classifier.TABLE)


def test_commands(file, state, tmp_path, capsys):
    made, back = tmp_path / "x.keras", tmp_path / "back.pth"
    code, out, _ = run(capsys, "inspect", file)
    found = fields(out)
    assert code == 0 and found["model"].endswith("(channels=8, units=16)")
    assert (found["container"], found["classes"]) == ("state_dict", "5")
    assert found["missing"] == found["others"] == "none"
    code, out, _ = run(capsys, "convert", file, made)
    count = len(small_models.mask_rcnn(SIZES).weights)
    assert code == 0 and f"{count} variables" in out
    check_round_trip(capsys, file, made, back, count, state)


def test_coco(file, state, tmp_path, monkeypatch, server, capsys):
    """The keyword is the published file, of which no hash is known."""
    row = published.find("mask_rcnn_internimage_t_fpn_3x_coco")
    row = dataclasses.replace(row, classes=5)
    monkeypatch.setattr(published, "PUBLISHED", (row,))
    monkeypatch.setenv(published.BASE_URL_VARIABLE, server.url)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    server.files[f"/hub/main/{row.file}"] = pathlib.Path(file).read_bytes()
    for weights in ("coco", row.name):
        model = small_models.mask_rcnn(SIZES, weights=weights, variant="T")
        assert holds(model, state, table=TABLE)
    assert "no published SHA-256 is known" in capsys.readouterr().out
    assert len(server.requests) == 1
