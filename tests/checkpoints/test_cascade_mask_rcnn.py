"""Cascade Mask R-CNN's official checkpoints: told, read, refused, converted and written back."""

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
from keras_internimage.checkpoints.names import BATCH_COUNTER, cascade_mask_rcnn, classifier
from keras_internimage.checkpoints.read import official_name, open_checkpoint

pytestmark = pytest.mark.any_backend

TABLE = cascade_mask_rcnn.TABLE
SIZES = {**small_models.TINY, "layer_scale": 1.0}


@pytest.fixture(scope="module")
def state():
    return official(small_models.cascade_mask_rcnn(SIZES), TABLE)


def as_published(path, state):
    """A file with what MMDetection's weight average adds: the raw weights, under other names."""
    copies = {f"ema_{name.replace('.', '_')}": np.zeros_like(x) for name, x in state.items()}
    return str(save_pth(path, {**state, **copies}, "state_dict", "float16", meta={"epoch": 36}))


@pytest.fixture
def file(tmp_path, state):
    return as_published(tmp_path / "x.pth", state)


@pytest.mark.parametrize(("variant", "parameters"), [("L", 277_307_236), ("XL", 387_448_974)])
def test_the_model_is_told_by_its_shapes(variant, parameters):
    stored = model_shapes(f"cascade_internimage_{variant.lower()}")
    shapes = {official_name(k): s for k, s in stored.items() if not k.endswith(BATCH_COUNTER)}
    guess = infer_config(shapes)
    assert (guess.variant, guess.classes, guess.family) == (variant, 80, "cascade_mask_rcnn")
    assert guess.head == {"channels": 256, "units": 1024}
    assert sorted(infer.expected_names(guess)) == sorted(shapes)
    assert infer.describe(guess).startswith(f"Cascade Mask R-CNN on InternImage-{variant} (")
    assert infer.parameters(shapes, guess.table) == parameters


def test_strict_both_ways(file, state, tmp_path):
    assert holds(small_models.cascade_mask_rcnn(SIZES, weights=file), state, table=TABLE)
    more = save_pth(tmp_path / "more.pth", {**state, "rpn_head.x.weight": state[min(state)]})
    with pytest.raises(MismatchError, match=r"Not used by the model \(1\): rpn_head.x.weight"):
        small_models.cascade_mask_rcnn(SIZES, weights=more)
    lost = "roi_head.bbox_head.1.shared_convs.2.bn.running_var"
    fewer = save_pth(tmp_path / "fewer.pth", {k: v for k, v in state.items() if k != lost})
    with pytest.raises(MismatchError, match=rf"Missing in the file \(1\): {lost}"):
        small_models.cascade_mask_rcnn(SIZES, weights=fewer)
    with pytest.raises(MismatchError, match="holds Cascade Mask R-CNN on an InternImage"):
        small_models.mask_rcnn(SIZES, weights=file)


def test_copies_of_a_weight_average_are_left_out(file, state):
    opened = open_checkpoint(file)
    assert set(opened.stored_names.values()) | set(opened.dropped) > set(state)
    copies = [name for name in opened.dropped if name.startswith("ema_")]
    assert len(copies) == len(state) and not any(name.startswith("ema_") for name in opened.tensors)


def test_another_number_of_classes(file, state, capsys):
    model = small_models.cascade_mask_rcnn(SIZES, classes=3, weights=file)
    out = capsys.readouterr().out
    assert "newly initialised with 3 classes; x.pth has 5 (classes=5 keeps them)" in out
    new = [f"roi_head.bbox_head.{k}.fc_" for k in range(3)]
    new += [f"roi_head.mask_head.{k}.conv_logits" for k in range(3)]
    assert holds(model, state, but=new, table=TABLE)
    for boxes, masks in zip(model.box_heads, model.mask_heads, strict=True):
        for layer in (boxes.scores, boxes.deltas, masks.predictions):
            assert 1e-4 < np.std(keras.ops.convert_to_numpy(layer.kernel)) < 2


def test_keras_files(file, state, tmp_path):
    path = str(tmp_path / "x.weights.h5")
    small_models.cascade_mask_rcnn(SIZES, weights=file).save_weights(path)
    assert holds(small_models.cascade_mask_rcnn(SIZES, weights=path), state, table=TABLE)
    assert holds(small_models.backbone(SIZES, weights=path), state, table=classifier.TABLE)


def test_commands(file, state, tmp_path, capsys):
    made, back = tmp_path / "x.keras", tmp_path / "back.pth"
    code, out, _ = run(capsys, "inspect", file)
    found = fields(out)
    assert code == 0 and found["model"].startswith("Cascade Mask R-CNN on")
    assert found["model"].endswith("(channels=8, units=16)")
    assert (found["container"], found["classes"]) == ("state_dict", "5")
    assert found["missing"] == found["others"] == "none"
    code, out, _ = run(capsys, "convert", file, made)
    count = len(small_models.cascade_mask_rcnn(SIZES).weights)
    assert code == 0 and f"{count} variables" in out
    check_round_trip(capsys, file, made, back, count, state)


def test_coco(file, state, tmp_path, monkeypatch, server):
    row = published.find("cascade_internimage_l_fpn_3x_coco")
    row = dataclasses.replace(row, classes=5)
    monkeypatch.setattr(published, "PUBLISHED", (row,))
    monkeypatch.setenv(published.BASE_URL_VARIABLE, server.url)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    server.files[f"/hub/main/{row.file}"] = pathlib.Path(file).read_bytes()
    model = small_models.cascade_mask_rcnn(SIZES, weights="coco", variant="L")
    assert holds(model, state, table=TABLE)
