import os

import keras
import numpy as np
import pytest
from checkpoints.conftest import (
    TINY,
    build,
    official_values,
    same,
    save_pth,
    save_safetensors,
)
from checkpoints.conftest import weights as weights  # a fixture
from deterministic import model_config

from keras_internimage.checkpoints import CheckpointError, open_checkpoint
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.weights_convert import convert
from keras_internimage.weights_convert.export import export
from keras_internimage.weights_convert.verify import verify

NAME = "tiny_remove_center"
ON_EVERY_BACKEND = [
    name if name in (NAME, "tiny_h") else pytest.param(name, marks=pytest.mark.any_backend)
    for name in TINY
]


@pytest.mark.parametrize("name", ON_EVERY_BACKEND)
def test_there_and_back_is_bit_exact(tmp_path, weights, name):
    source = save_safetensors(tmp_path / "x.safetensors", weights(name))
    made = str(tmp_path / "x.weights.h5")
    report = convert.convert(source, made)
    assert report.newly_initialized == ()
    differences, extra, lacking = verify(made, source)
    assert set(differences.values()) == {0.0} and not extra and not lacking
    count = export(made, tmp_path / "back.safetensors")
    assert count == len(weights(name))
    from safetensors.numpy import load_file

    back = load_file(tmp_path / "back.safetensors")
    assert set(back) == set(weights(name))
    for key, value in weights(name).items():
        assert back[key].shape == value.shape
        assert back[key].tobytes() == np.asarray(value).tobytes(), key


@pytest.mark.any_backend
def test_export_for_pytorch(tmp_path, weights):
    torch = pytest.importorskip("torch")
    made = str(tmp_path / "x.keras")
    convert.convert(save_pth(tmp_path / "x.pth", weights("tiny_h")), made)
    export(made, tmp_path / "back.pth")
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(content) == ["model"]
    assert set(content["model"]) == set(weights("tiny_h"))
    for key, value in weights("tiny_h").items():
        assert torch.equal(content["model"][key], torch.from_numpy(np.array(value))), key


def test_a_whole_model_is_saved(tmp_path, weights):
    name, made = "tiny_postnorm", str(tmp_path / "x.keras")
    source = save_safetensors(tmp_path / "x.safetensors", weights(name))
    convert.convert(source, made, offset_scale=model_config(name)["offset_scale"])
    model = keras.saving.load_model(made)
    assert same(model, weights(name))
    images = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype("float32")
    expected = build(name, weights=source).predict(images, verbose=0)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-6)


@pytest.mark.any_backend
def test_other_classes_and_no_head(tmp_path, weights, capsys):
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    made = str(tmp_path / "x.weights.h5")
    convert.convert(source, made, classes=4)
    assert "newly initialised with 4 classes" in capsys.readouterr().out
    assert same(build(NAME, weights=made, classes=4), weights(NAME), but=["head."])
    convert.convert(source, made, include_top=False)
    body = {n: v for n, v in weights(NAME).items() if not TABLE.is_head(n)}
    assert same(build(NAME, weights=made, include_top=False), body)
    differences, extra, lacking = verify(made, source)
    assert set(differences.values()) == {0.0} and not lacking
    assert sorted(extra) == sorted(
        n for n in weights(NAME) if TABLE.is_head(n) and "num_batches" not in n
    )


@pytest.mark.any_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path, weights, dtype):
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    made = str(tmp_path / "x.weights.h5")
    convert.convert(source, made, dtype=dtype)
    assert os.path.getsize(made) < 0.7 * os.path.getsize(source)
    stored = official_values(build(NAME, weights=made))
    for name, value in stored.items():
        np.testing.assert_allclose(value, weights(NAME)[name], rtol=2**-8, atol=1e-7)
    differences, _, _ = verify(made, source)
    assert 0 < max(differences.values()) < 0.02


@pytest.mark.any_backend
def test_every_difference_is_found(tmp_path, weights):
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    made = str(tmp_path / "x.weights.h5")
    convert.convert(source, made)
    other = weights(NAME)
    other["head.bias"] = other["head.bias"] + np.float32([0.5] + [0] * 9)
    other["levels.0.blocks.0.dcn.mask.bias"] = other["levels.0.blocks.0.dcn.mask.bias"][:-1]
    del other["levels.1.norm.0.weight"]
    other["more"] = np.zeros(3, np.float32)
    zero = next(k for k, v in other.items() if k.endswith("fc1.bias"))
    against = save_safetensors(tmp_path / "y.safetensors", other)
    differences, extra, lacking = verify(made, against)
    wrong = {path: value for path, value in differences.items() if value != 0}
    assert wrong == {"predictions/bias": 0.5, "stage1_block1/dcn/offset_mask/bias": None}
    assert extra == ["more"] and lacking == ["levels.1.norm.0.weight"]
    # Equal numbers of unlike bits are a difference, too.
    for sign in (1, -1):
        other[zero] = np.copysign(np.zeros_like(other[zero]), np.float32(sign))
        path = save_safetensors(tmp_path / f"zero{sign}.safetensors", {**weights(NAME), **other})
        if sign == 1:
            held = {**weights(NAME), zero: other[zero]}
            convert.convert(save_safetensors(tmp_path / "z.safetensors", held), made)
    differences, _, _ = verify(made, path)
    assert 0 < differences["stage1_block1/mlp_fc1/bias"] < 1e-40


BROKEN = {
    "nan": lambda w: {**w, "head.bias": np.full(10, np.nan, np.float32)},
    "missing": lambda w: {k: v for k, v in w.items() if k != "stem" and "fc2.bias" not in k},
    "shape": lambda w: {**w, "levels.0.norm.0.bias": np.ones(3, np.float32)},
    "extra": lambda w: {**w, "levels.9.norm.0.bias": np.ones(3, np.float32)},
    "another model": lambda w: {"conv1.weight": np.ones((3, 3), np.float32)},
}


@pytest.mark.any_backend
@pytest.mark.parametrize("case", BROKEN)
def test_failures_leave_nothing_behind(tmp_path, weights, case):
    source = save_safetensors(tmp_path / "x.safetensors", BROKEN[case](weights(NAME)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.weights.h5").write_text("as it was")
    for name in ("new.keras", "kept.weights.h5"):
        with pytest.raises(CheckpointError):
            convert.convert(source, str(tmp_path / "out" / name))
    assert os.listdir(tmp_path / "out") == ["kept.weights.h5"]
    assert (tmp_path / "out" / "kept.weights.h5").read_text() == "as it was"


@pytest.mark.any_backend
def test_an_export_of_nan_leaves_nothing_behind(tmp_path):
    model = build(NAME)
    model.get_layer("predictions").bias.assign(np.full(10, np.nan))
    model.save_weights(str(tmp_path / "x.weights.h5"))
    for name in ("y.safetensors", "y.pth"):
        with pytest.raises(CheckpointError, match="finite.*predictions/bias"):
            export(str(tmp_path / "x.weights.h5"), tmp_path / name)
    assert os.listdir(tmp_path) == ["x.weights.h5"]


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "x.h5"}, "must end in .weights.h5 or .keras. Received: path=x.h5"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16"),
        (
            {"variant": "Q"},
            "variant must be one of T, S, B, L, XL, H, G, FlashT, .*. Received: variant='Q'",
        ),
        ({"target": "none/x.keras"}, "folder must exist"),
        ({"classes": 3, "include_top": False}, "`classes` needs a classification head"),
    ],
)
def test_arguments_are_checked(tmp_path, weights, arguments, message):
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    target = arguments.pop("target", "x.keras")
    error = ValueError if "folder" in message else CheckpointError
    with pytest.raises(error, match=message):
        convert.convert(source, target, **arguments)
    with pytest.raises(CheckpointError, match="end in .pth or .safetensors"):
        export("x.keras", "x.h5")


@pytest.mark.any_backend
def test_an_export_is_read_again(tmp_path, weights):
    """The exported file is a checkpoint like any other."""
    source = save_safetensors(tmp_path / "x.safetensors", weights("tiny_g"))
    made = str(tmp_path / "x.weights.h5")
    convert.convert(source, made)
    export(made, tmp_path / "back.safetensors")
    checkpoint = open_checkpoint(tmp_path / "back.safetensors")
    assert checkpoint.shapes() == open_checkpoint(source).shapes()


def test_memory_of_a_conversion(tmp_path):
    """One copy of the model and little more: tensors are read one at a time."""
    import tracemalloc

    from keras_internimage.checkpoints import assign

    model = build("tiny_h")
    values = {k: np.asarray(v, np.float16) for k, v in official_values(model).items()}
    path = save_safetensors(tmp_path / "x.safetensors", values, dtype="float16")
    total = sum(v.size * 4 for v in values.values())
    largest = max(v.size * 4 for v in values.values())
    del values
    checkpoint = open_checkpoint(path)
    tracemalloc.start()
    assign.load_official(model, checkpoint, TABLE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # NumPy's part: JAX may keep the arrays it is given, as the weights themselves.
    kept = total if keras.backend.backend() == "jax" else 0
    assert total > 4 * largest
    assert peak < kept + 3.5 * largest + (4 << 20)
