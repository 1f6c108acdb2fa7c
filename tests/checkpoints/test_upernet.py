"""UperNet's official checkpoints: read, refused, converted and written back."""

import dataclasses
import os
import pathlib

import keras
import numpy as np
import pytest
import small_models
from checkpoints.conftest import check_round_trip, fields, refused, run, save_pth
from checkpoints.test_download import server as server  # a fixture

import keras_internimage
from keras_internimage.checkpoints import DownloadError, MismatchError, download, published
from keras_internimage.checkpoints.names import classifier, upernet
from keras_internimage.models import VARIANTS
from keras_internimage.variants import Variant

pytestmark = pytest.mark.any_backend

SIZES = {**small_models.TINY, "layer_scale": 1.0}
TINY_VARIANT = Variant(8, 8, 1, 1, 224)


def values(model, table=upernet.TABLE):
    """The model's official tensors."""
    found = {}
    for variable in model.weights:
        found.update(table.to_official(variable.path, keras.ops.convert_to_numpy(variable)))
    return found


def official(model, table=upernet.TABLE):
    """The state dict in which the official code stores a model, with random numbers."""
    rng = np.random.default_rng(0)
    state = {}
    for name, value in values(model, table).items():
        key = name if table.is_head(name) else f"backbone.{name}"
        state[key] = rng.uniform(0.5, 1, value.shape).astype("float16")
        if name.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = np.int64(160000)
    return state


@pytest.fixture(scope="module")
def state():
    return official(small_models.upernet(SIZES, auxiliary=True))


@pytest.fixture
def file(tmp_path, state):
    return str(save_pth(tmp_path / "x.pth", state, "state_dict", "float16", meta={"epoch": 1}))


def holds(model, state, but=(), table=upernet.TABLE):
    """Whether the model has exactly the numbers of the state dict, apart from some modules."""
    for name, value in values(model, table).items():
        key = name if name in state else f"backbone.{name}"
        if not name.startswith(tuple(but)) and not np.array_equal(value, state[key]):
            return False
    return True


def test_half_precision_and_both_heads(file, state):
    model = small_models.upernet(SIZES, auxiliary=True, weights=file)
    assert model.weights[0].dtype == "float32" and holds(model, state)


def test_the_auxiliary_head_may_be_left_out(file, state, tmp_path):
    assert holds(small_models.upernet(SIZES, weights=file), state)
    # But nothing else, and it may not be missing.
    more = save_pth(tmp_path / "more.pth", {**state, "decode_head.x.weight": state[min(state)]})
    with pytest.raises(MismatchError, match=r"Not used by the model \(1\): decode_head.x.weight"):
        small_models.upernet(SIZES, weights=more)
    fewer = {k: v for k, v in state.items() if not k.startswith("auxiliary_head")}
    fewer = save_pth(tmp_path / "fewer.pth", fewer, "state_dict")
    assert holds(small_models.upernet(SIZES, weights=fewer), state)
    with pytest.raises(MismatchError, match="no auxiliary head: build .* auxiliary=False"):
        small_models.upernet(SIZES, auxiliary=True, weights=fewer)


def test_keras_files(file, state, tmp_path):
    model = small_models.upernet(SIZES, auxiliary=True, weights=file)
    path = str(tmp_path / "x.weights.h5")
    model.save_weights(path)
    assert holds(small_models.upernet(SIZES, auxiliary=True, weights=path), state)
    assert holds(small_models.upernet(SIZES, weights=path), state)


def test_another_number_of_classes(file, state, capsys):
    model = small_models.upernet(SIZES, auxiliary=True, classes=3, weights=file)
    out = capsys.readouterr().out
    assert "newly initialised with 3 classes; x.pth has 5 (classes=5 keeps them)" in out
    new = ("decode_head.conv_seg", "auxiliary_head.conv_seg")
    assert holds(model, state, but=new)
    kernels = [v for v in model.weights if v.path.endswith("predictions/kernel")]
    assert [tuple(v.shape[-2:]) for v in kernels] == [(256, 3), (8, 3)]
    assert all(0.002 < np.std(keras.ops.convert_to_numpy(v)) < 0.03 for v in kernels)


def test_a_backbone_from_a_segmentation_model(file, state):
    backbone = small_models.backbone(SIZES, weights=file)
    assert holds(backbone, state, table=classifier.TABLE)


def test_a_segmentation_model_from_a_backbone(tmp_path, monkeypatch, capsys):
    """InternImage-T of classification has no layer scales: they start at 1, and a line says so."""
    monkeypatch.setitem(VARIANTS, "T", TINY_VARIANT)
    sizes = {key: TINY_VARIANT.config()[key] for key in small_models.TINY}
    state = official(small_models.classifier(sizes, classes=7), classifier.TABLE)
    file = save_pth(tmp_path / "x.pth", state, "state_dict")
    model = keras_internimage.UperNetT(backbone_weights=file, channels=8, classes=3)
    assert "the layer scales keep their initial value; x.pth has none" in capsys.readouterr().out
    found = values(model)
    scales = [name for name in found if name.endswith(("gamma1", "gamma2"))]
    assert len(scales) == 8 and all((found[name] == 1).all() for name in scales)
    assert holds(model, state, but=("decode_head", *scales))
    # The decoder is random, not zero.
    assert np.std(found["decode_head.bottleneck.conv.weight"]) > 1e-3
    with pytest.raises(MismatchError, match=r"no classifier: give it to the backbone"):
        keras_internimage.UperNetT(weights=file, channels=8)
    # Nothing else may be missing.
    state.pop("backbone.patch_embed.conv1.bias")
    file = save_pth(tmp_path / "y.pth", state, "state_dict")
    with pytest.raises(MismatchError, match=r"Missing in the file \(1\): patch_embed.conv1.bias"):
        keras_internimage.UperNetT(backbone_weights=file, channels=8)


def test_commands(file, state, tmp_path, capsys):
    made, back = tmp_path / "x.keras", tmp_path / "back.pth"
    code, out, _ = run(capsys, "inspect", file)
    found = fields(out)
    assert code == 0 and found["model"].endswith("(auxiliary=True, channels=8)")
    assert (found["container"], found["classes"]) == ("state_dict", "5")
    assert found["missing"] == found["others"] == "none"
    code, out, _ = run(capsys, "convert", file, made)
    count = len(small_models.upernet(SIZES, auxiliary=True).weights)
    assert code == 0 and f"{count} variables" in out
    code, out, _ = run(capsys, "inspect", made)
    assert code == 0 and fields(out)["model"] == found["model"]
    check_round_trip(capsys, file, made, back, count, state)
    # Parts: without the auxiliary head, and the backbone alone.
    part = str(tmp_path / "part.weights.h5")
    small_models.upernet(SIZES, weights=file).save_weights(part)
    code, out, _ = run(capsys, "verify", part, "--against", file)
    assert code == 0 and "auxiliary_head.conv_seg.bias: only in" in out
    os.remove(part)
    code, out, _ = run(capsys, "convert", file, part, "--no-top")
    assert code == 0 and "left out, the model has no classification head" in out
    os.remove(part)
    assert "`classes` needs" in refused(capsys, "convert", file, part, "--no-top", "--classes", "3")
    code, out, _ = run(capsys, "convert", file, part, "--classes", "3")
    assert code == 0 and "newly initialised with 3 classes" in out


@pytest.fixture
def row(tmp_path, monkeypatch, server, file):
    """A published checkpoint of which no SHA-256 is known, nor perhaps a size."""
    row = dataclasses.replace(
        published.find("upernet_internimage_t_512_160k_ade20k"), bytes=os.path.getsize(file)
    )
    monkeypatch.setattr(published, "PUBLISHED", (row,))
    monkeypatch.setenv(published.BASE_URL_VARIABLE, server.url)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    server.files[f"/hub/main/{row.file}"] = pathlib.Path(file).read_bytes()
    return row


@pytest.mark.parametrize("size_is_known", [True, False])
def test_a_published_file_without_a_known_hash(
    row, server, state, capsys, monkeypatch, size_is_known
):
    if not size_is_known:
        row = dataclasses.replace(row, bytes=None)
        monkeypatch.setattr(published, "PUBLISHED", (row,))
    model = small_models.upernet(SIZES, weights="ade20k", variant="T")
    assert holds(model, state)
    path = pathlib.Path(download.cached_path(row))
    digest = published.sha256(path)
    assert (
        f"no published SHA-256 is known. This file of {path.stat().st_size} bytes has {digest}"
        in capsys.readouterr().out
    )
    assert download.is_cached(row) and download.fetch(row) == str(path)
    assert len(server.requests) == 1
    # From now on it is verified by that hash.
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    assert download.fetch(row) == str(path) and path.read_bytes() == content
    assert "another SHA-256" in capsys.readouterr().out
    # Another file at the hub is not taken for it either.
    path.write_bytes(b"damaged")
    server.files[f"/hub/main/{row.file}"] = content[:-1] + b"y"
    with pytest.raises(DownloadError, match="what arrived has another SHA-256.*SHA-256 not known"):
        download.fetch(row)


def test_what_is_no_checkpoint_is_not_kept(row, server, monkeypatch):
    row = dataclasses.replace(row, bytes=None)
    server.files[f"/hub/main/{row.file}"] = b"<html>sorry</html>"
    with pytest.raises(DownloadError, match="no checkpoint in it .*a web page.*size that is not"):
        download.fetch(row)
    assert not os.path.exists(download.cached_path(row))


def test_inspect_says_what_is_not_known(row, file, capsys):
    _, out, _ = run(capsys, "inspect", file)
    assert fields(out)["published"] == f"{row.name} by its size; no SHA-256 of it is known"
