"""Loading of Keras' own files: `.weights.h5` and `.keras`."""

import keras
import numpy as np
import pytest
from checkpoints.conftest import (
    NAME,
    ON_EVERY_BACKEND,
    build,
    official_values,
    same,
    save_safetensors,
)

from keras_internimage.checkpoints import CheckpointError, MismatchError, load_weights
from keras_internimage.checkpoints.names.classifier import TABLE


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("name", ON_EVERY_BACKEND[2:])
def test_keras_files(tmp_path, weights, name, suffix, capsys):
    """Whatever the head: the same, with other classes, without it; and with random states."""
    path = str(tmp_path / f"x{suffix}")
    whole = build(name, weights=save_safetensors(tmp_path / "x.safetensors", weights(name)))
    whole.compile("adam", "categorical_crossentropy")
    whole.optimizer.build(whole.trainable_variables)
    (whole.save if suffix == ".keras" else whole.save_weights)(path)
    assert same(build(name, weights=path), weights(name))
    assert capsys.readouterr().out == ""
    other = build(name, weights=path, classes=3, drop_path_rate=0.2, drop_rate=0.1)
    assert same(other, weights(name), but=["head."])
    assert "newly initialised with 3 classes; x" in capsys.readouterr().out
    body = {n: v for n, v in weights(name).items() if not TABLE.is_head(n)}
    assert same(build(name, weights=path, include_top=False, pooling="avg"), body)


@pytest.mark.any_backend
def test_keras_files_of_a_model_with_random_states(tmp_path, weights):
    path = str(tmp_path / "x.weights.h5")
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    build(NAME, weights=source, drop_path_rate=0.2, drop_rate=0.1).save_weights(path)
    assert same(build(NAME, weights=path), weights(NAME))


@pytest.mark.any_backend
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_keras_files_in_half_precision(tmp_path, weights, dtype):
    path = str(tmp_path / "x.weights.h5")
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    half = build(NAME, weights=source, dtype=dtype)
    half.save_weights(path)
    loaded = build(NAME, weights=path)
    assert same(loaded, {k: v.astype("float32") for k, v in official_values(half).items()})


@pytest.mark.any_backend
def test_another_model_in_a_keras_file(tmp_path, model):
    path = str(tmp_path / "x.weights.h5")
    build("tiny_h").save_weights(path)
    with pytest.raises(MismatchError, match="Not used by the model") as caught:
        load_weights(model, path)
    assert "attention_pool/query/kernel" in caught.value.unused
    assert "head_conv/kernel" in caught.value.missing


@pytest.mark.any_backend
def test_numbers_that_are_none_in_a_keras_file(tmp_path, model):
    path = str(tmp_path / "x.weights.h5")
    broken = build(NAME)
    broken.get_layer("predictions").bias.assign(np.full(10, np.nan))
    broken.save_weights(path)
    with pytest.raises(CheckpointError, match="predictions/bias is not finite"):
        load_weights(model, path)


@pytest.mark.any_backend
@pytest.mark.parametrize("name", ["x.weights.h5", "x.keras"])
def test_damaged_keras_files(tmp_path, model, name):
    path = str(tmp_path / name)
    (model.save if name == "x.keras" else model.save_weights)(path)
    content = (tmp_path / name).read_bytes()
    for damaged in (b"", b"nothing", content[: len(content) // 2]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="complete Keras weights file"):
            load_weights(model, path)


@pytest.mark.any_backend
def test_a_keras_file_of_another_kind(tmp_path, model):
    path = str(tmp_path / "x.weights.h5")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path)
    with pytest.raises(CheckpointError, match="weights of an InternImage"):
        load_weights(model, path)


@pytest.mark.any_backend
def test_a_keras_file_cannot_read_other_files(tmp_path, model):
    import h5py

    path = str(tmp_path / "x.weights.h5")
    model.save_weights(path)
    (tmp_path / "secret").write_bytes(bytes(40))
    with h5py.File(path, "a") as file:
        group = file["layers/dense/vars"]
        del group["1"]
        group.create_dataset("1", (10,), "f4", external=[(str(tmp_path / "secret"), 0, 40)])
    with pytest.raises(CheckpointError, match="must be a plain array"):
        load_weights(model, path)
