import json
import os
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
from checkpoints.conftest import (
    hub_names,
    save_pth,
    save_safetensors,
    save_sharded,
    to_torch,
)

from keras_internimage.checkpoints import CheckpointError, open_checkpoint, tensors
from keras_internimage.checkpoints.read import of_backbone

pytestmark = pytest.mark.any_backend

WEIGHTS = {
    "patch_embed.conv1.weight": np.arange(216, dtype=np.float32).reshape(8, 3, 3, 3) / 7,
    "levels.0.blocks.0.gamma1": np.linspace(0, 1, 16, dtype=np.float32),
    "levels.0.blocks.0.gamma2": np.linspace(1, 2, 16, dtype=np.float32),
    "head.bias": np.float32([-1.5, 0.1, 3e-5]),
}


def numbers(checkpoint):
    return {name: tensor.float32() for name, tensor in checkpoint.tensors.items()}


def equal(checkpoint, weights=WEIGHTS):
    found = numbers(checkpoint)
    assert set(found) == set(weights)
    assert all(array.dtype == np.float32 for array in found.values())
    return all(np.array_equal(found[name], value) for name, value in weights.items())


class _Config(dict):
    """Pickles as the official trainer's configuration does."""


_Config.__module__, _Config.__qualname__, _Config.__name__ = "yacs.config", "CfgNode", "CfgNode"


@pytest.fixture
def yacs(monkeypatch):
    import types

    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["yacs.config"].CfgNode = _Config


# Containers and names


@pytest.mark.parametrize("container", ["model", "module", "state_dict", None])
def test_containers(tmp_path, container):
    checkpoint = open_checkpoint(save_pth(tmp_path / "x.pth", WEIGHTS, container))
    assert checkpoint.container == (container or "bare")
    assert checkpoint.format == "pytorch"
    assert equal(checkpoint)


def test_model_is_preferred_and_the_average_can_be_chosen(tmp_path):
    average = {name: to_torch(value + 1) for name, value in WEIGHTS.items()}
    path = save_pth(tmp_path / "x.pth", WEIGHTS, model_ema=average, state_dict=average)
    assert open_checkpoint(path).container == "model"
    assert open_checkpoint(path).containers == ("model", "model_ema", "state_dict")
    assert equal(open_checkpoint(path))
    chosen = open_checkpoint(path, "model_ema")
    assert chosen.container == "model_ema"
    assert equal(chosen, {name: value + 1 for name, value in WEIGHTS.items()})
    with pytest.raises(CheckpointError, match="under nothing_such; it holds some under: model,"):
        open_checkpoint(path, "nothing_such")


def test_the_official_trainers_files(tmp_path, yacs):
    """With optimizer state, a configuration object and numbers beside the weights."""
    config = _Config(MODEL=_Config(NAME="intern_image"), EPOCHS=300)
    optimizer = {"state": {0: {"step": 3, "exp_avg": to_torch(np.ones(3))}}, "param_groups": []}
    path = save_pth(
        tmp_path / "x.pth",
        WEIGHTS,
        optimizer=optimizer,
        config=config,
        max_accuracy=np.float64(83.5),
        epoch=7,
    )
    assert equal(open_checkpoint(path))


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "student.", "module.model."])
def test_prefixes(tmp_path, prefix):
    stored = {prefix + name: value for name, value in WEIGHTS.items()}
    checkpoint = open_checkpoint(save_pth(tmp_path / "x.pth", stored))
    assert equal(checkpoint)
    assert checkpoint.stored_names["head.bias"] == f"{prefix}head.bias"


def test_a_teacher_and_counters_are_dropped(tmp_path):
    stored = {f"student.{name}": value for name, value in WEIGHTS.items()}
    stored.update({f"teacher.{name}": value + 1 for name, value in WEIGHTS.items()})
    stored["conv_head.1.0.num_batches_tracked"] = np.int64(3)
    checkpoint = open_checkpoint(save_pth(tmp_path / "x.pth", stored))
    assert equal(checkpoint)
    assert len(checkpoint.dropped) == len(WEIGHTS) + 1


def test_the_copies_of_an_average_are_dropped(tmp_path):
    """As MMCV leaves them in the container; and what PyTorch's averaging counts."""
    copies = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in WEIGHTS.items()}
    stored = {**WEIGHTS, **copies, "n_averaged": np.int64(3), "num_updates": np.int64(4)}
    checkpoint = open_checkpoint(save_pth(tmp_path / "x.pth", stored, "state_dict"))
    assert equal(checkpoint) and len(checkpoint.dropped) == len(WEIGHTS) + 2


def test_containers_are_taken_in_the_order_asked_for(tmp_path):
    average = {name: to_torch(value + 1) for name, value in WEIGHTS.items()}
    path = save_pth(tmp_path / "x.pth", WEIGHTS, model_ema=average)
    assert equal(open_checkpoint(path))
    checkpoint = open_checkpoint(path, containers=of_backbone("DCNv4"))
    assert checkpoint.container == "model_ema"
    assert equal(checkpoint, {name: value + 1 for name, value in WEIGHTS.items()})


def test_the_hubs_names(tmp_path):
    stored = hub_names(WEIGHTS)
    assert "model.levels.0.blocks.0.layer_scale1" in stored
    path = save_safetensors(tmp_path / "model.safetensors", stored)
    assert equal(open_checkpoint(path))


# Types and layouts


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("save", [save_pth, save_safetensors])
def test_types_become_float32(tmp_path, dtype, save):
    name = "x.pth" if save is save_pth else "x.safetensors"
    checkpoint = open_checkpoint(save(tmp_path / name, WEIGHTS, dtype=dtype))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    for key, value in numbers(checkpoint).items():
        np.testing.assert_array_equal(value, WEIGHTS[key].astype(kind).astype(np.float32))
    assert list(checkpoint.dtypes) == [dtype]


def test_mixed_types(tmp_path):
    torch = pytest.importorskip("torch")
    half = {name: to_torch(value, "float16") for name, value in WEIGHTS.items()}
    half["head.bias"] = half["head.bias"].float()
    torch.save({"model": half}, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth")
    assert checkpoint.dtypes == {"float16": 248, "float32": 3}
    assert equal(checkpoint, {k: np.float32(v.float().numpy()) for k, v in half.items()})


def test_views_parameters_and_empty_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = {
        "transposed": base.T,
        "part": base[1:3, 2:5],
        "steps": base.reshape(-1)[1::3],
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    torch.save(views, tmp_path / "x.pth")
    found = numbers(open_checkpoint(tmp_path / "x.pth"))
    for name, view in views.items():
        np.testing.assert_array_equal(found[name], view.detach().numpy(), err_msg=name)


def test_the_format_before_torch_1_6(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: to_torch(value, "bfloat16") for name, value in WEIGHTS.items()}
    torch.save({"model": state}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    checkpoint = open_checkpoint(tmp_path / "x.pth")
    assert checkpoint.format == "pytorch (legacy)"
    assert equal(checkpoint, {name: value.float().numpy() for name, value in state.items()})


def test_that_format_needs_pytorch_and_the_other_does_not(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    state = {"model": {name: to_torch(value) for name, value in WEIGHTS.items()}}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(state, tmp_path / "new.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert equal(open_checkpoint(tmp_path / "new.pth"))
    with pytest.raises(CheckpointError, match=r"pip install keras-internimage\[convert\]"):
        open_checkpoint(tmp_path / "old.pth")


def test_opening_reads_no_numbers(tmp_path, monkeypatch):
    paths = [
        save_pth(tmp_path / "x.pth", WEIGHTS),
        save_safetensors(tmp_path / "x.safetensors", WEIGHTS),
    ]

    def read_range(*arguments):
        raise AssertionError("numbers were read")

    monkeypatch.setattr("keras_internimage.checkpoints.torch_files._Archive.read", read_range)
    monkeypatch.setattr("keras_internimage.checkpoints.safetensors_files.read_range", read_range)
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert checkpoint.shapes() == {k: checkpoint.tensors[k].shape for k in checkpoint.tensors}
        assert checkpoint.shapes()["patch_embed.conv1.weight"] == (8, 3, 3, 3)
        with pytest.raises(AssertionError, match="numbers were read"):
            numbers(checkpoint)


# Several files


def test_shards_by_index_or_directory(tmp_path):
    index = save_sharded(tmp_path / "hub", hub_names(WEIGHTS))
    assert equal(open_checkpoint(index))
    assert equal(open_checkpoint(tmp_path / "hub"))
    assert len(open_checkpoint(index).files) == 3


def test_a_directory_with_one_file(tmp_path):
    save_pth(tmp_path / "some.pth", WEIGHTS)
    (tmp_path / "README.md").write_text("weights")
    assert equal(open_checkpoint(tmp_path))
    save_pth(tmp_path / "other.pth", WEIGHTS)
    with pytest.raises(CheckpointError, match="one checkpoint.*README.md, other.pth, some.pth"):
        open_checkpoint(tmp_path)


def test_a_directory_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="nothing in it"):
        open_checkpoint(tmp_path)


def test_a_missing_shard(tmp_path):
    index = save_sharded(tmp_path, WEIGHTS)
    os.remove(tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="missing: model-00002-of-00003.safetensors"):
        open_checkpoint(index)


def test_a_shard_without_what_the_index_says(tmp_path):
    index = save_sharded(tmp_path, WEIGHTS)
    save_safetensors(tmp_path / "model-00002-of-00003.safetensors", {"other": np.zeros(1)})
    with pytest.raises(CheckpointError, match="missing: levels.0.blocks.0.gamma1"):
        open_checkpoint(index)


@pytest.mark.parametrize("part", ["../x.safetensors", "/etc/passwd", "a/b"])
def test_an_index_cannot_lead_elsewhere(tmp_path, part):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(CheckpointError, match="files beside it"):
        open_checkpoint(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_malformed_index(tmp_path, text):
    (tmp_path / "x.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="[Tt]he index must"):
        open_checkpoint(tmp_path / "x.index.json")


# Files that are none


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must not be empty"),
        (b"not a checkpoint", "something else"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04 no archive", "truncated or damaged"),
        (struct.pack("<Q", 1 << 40) + b"{", "complete safetensors"),
        (struct.pack("<Q", 2) + b"{]", "well formed"),
        (struct.pack("<Q", 7) + b'{"a":3}', "well formed"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{message}.*Received: path=.*x.pth"):
        open_checkpoint(tmp_path / "x.pth")


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="must exist"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], 5, {"model": {"a": 1}}])
def test_a_file_without_tensors(tmp_path, content):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="must hold tensors"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "old.pth"])
def test_truncated_files(tmp_path, name):
    torch = pytest.importorskip("torch")
    weights = {"head.bias": np.arange(5000, dtype=np.float32)}
    if name == "old.pth":
        state = {"head.bias": to_torch(weights["head.bias"])}
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=False)
    else:
        (save_safetensors if "safe" in name else save_pth)(tmp_path / name, weights)
    content = (tmp_path / name).read_bytes()
    for kept in (0.999, 0.5, 0.02):
        (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(CheckpointError, match="truncated|complete"):
            open_checkpoint(tmp_path / name)


def test_flipped_bits_are_noticed(tmp_path):
    path = save_pth(tmp_path / "x.pth", WEIGHTS)
    content = bytearray(path.read_bytes())
    start = content.index(WEIGHTS["patch_embed.conv1.weight"].tobytes())
    content[start + 5] ^= 16
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged.*checksum"):
        numbers(open_checkpoint(path))


def test_files_without_checksums(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        path = save_pth(tmp_path / "x.pth", WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert equal(open_checkpoint(path))


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]},
        {"dtype": "F4", "shape": [4], "data_offsets": [0, 16]},
    ],
)
def test_safetensors_headers_that_lie(tmp_path, row):
    header = json.dumps({"a": row}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "x.safetensors")


# Files that would run code


def test_all_finite():
    big = np.full(1000, np.finfo(np.float32).max)
    assert tensors.all_finite(big)
    for bad in (np.nan, np.inf, -np.inf):
        assert not tensors.all_finite(np.append(big, np.float32(bad)))
