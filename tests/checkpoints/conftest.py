"""Checkpoints written as the published ones are, from the deterministic tiny models."""

import json

import keras
import numpy as np
import pytest
from deterministic import model_config, model_weights

import keras_internimage
from keras_internimage.checkpoints.names.classifier import TABLE

TINY = ("tiny_prenorm", "tiny_postnorm", "tiny_h", "tiny_g", "tiny_remove_center")
# FlashInternImage: without a depthwise convolution, with one, with all biases.
TINY += ("tiny_flash_prenorm", "tiny_flash_postnorm", "tiny_flash_l")
NAME = "tiny_remove_center"
ON_EVERY_BACKEND = [
    name if name in (NAME, "tiny_h") else pytest.param(name, marks=pytest.mark.any_backend)
    for name in TINY
]


def to_torch(array, dtype="float32"):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor


def save_pth(path, weights, container="model", dtype="float32", **beside):
    """Write a .pth: weights under `container` (None: at the top), other entries beside them."""
    torch = pytest.importorskip("torch")
    state = {name: to_torch(value, dtype) for name, value in weights.items()}
    torch.save({container: state, **beside} if container else {**state, **beside}, path)
    return path


def save_safetensors(path, weights, dtype="float32"):
    import ml_dtypes
    from safetensors.numpy import save_file

    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    save_file(
        {
            name: np.ascontiguousarray(value.astype(dtype) if value.dtype.kind == "f" else value)
            for name, value in weights.items()
        },
        path,
    )
    return path


def save_sharded(folder, weights, parts=3):
    """Write a sharded safetensors checkpoint as the hub does; returns the index."""
    folder.mkdir(exist_ok=True)
    names_, where = list(weights), {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        held = names_[part::parts]
        save_safetensors(folder / file, {name: weights[name] for name in held})
        where.update(dict.fromkeys(held, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def hub_names(weights):
    """The names of the hub's safetensors files."""
    return {
        "model." + name.replace("gamma1", "layer_scale1").replace("gamma2", "layer_scale2"): value
        for name, value in weights.items()
    }


def build(name, **changes):
    config = model_config(name)
    config["classes"] = config.pop("num_classes")
    config.update(changes)
    if config.get("include_top") is False:
        config.pop("classes")
    return keras_internimage.InternImage(**{"input_shape": (64, 64, 3), **config})


def official_values(model):
    """The model's weights under the official names and in the official layout."""
    values = {}
    for variable in model.weights:
        values.update(TABLE.to_official(variable.path, keras.ops.convert_to_numpy(variable)))
    return values


def same(model, weights, but=()):
    """Whether the model holds exactly these official weights, those named in `but` left out."""
    values = official_values(model)
    expected = {name: value for name, value in weights.items() if "num_batches" not in name}
    assert set(values) == set(expected)
    return all(
        np.array_equal(value, expected[name])
        for name, value in values.items()
        if not name.startswith(tuple(but))
    )


def run(capsys, *arguments):
    """Runs `internimage-convert`: exit code, standard output, standard error."""
    from keras_internimage.weights_convert.cli import main

    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """Exit code 2, one line on standard error, nothing else."""
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def fields(out):
    """What `inspect` printed, by its labels."""
    found = {}
    for line in out.splitlines():
        found.setdefault(line[:12].strip(), line[12:])
    return found


def check_round_trip(capsys, file, made, back, count, state):
    """A converted file is bit-exact, and what is exported of it are the official tensors."""
    for against in (file, back):
        if against == back:
            code, out, _ = run(capsys, "export", made, back)
            assert (code, out) == (0, f"{back}: {len(state)} tensors\n")
        code, out, _ = run(capsys, "verify", made, "--against", against)
        assert (code, out) == (0, f"{count} of {count} variables are bit-exact\n")
    import torch

    stored = torch.load(back, weights_only=True)["state_dict"]
    assert set(stored) == set(state)
    for name, value in state.items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(stored[name].numpy(), value)


@pytest.fixture(scope="session")
def weights():
    """`weights(name)`: the official tensors of a tiny model."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = model_weights(name)
        return dict(made[name])

    return get


@pytest.fixture(scope="module")
def model():
    """A model to load into; tests must not rely on its weights."""
    return build(NAME)
