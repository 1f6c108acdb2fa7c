import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from checkpoints.conftest import (
    build,
    fields,
    refused,
    run,
    same,
    save_pth,
    save_safetensors,
    save_sharded,
)
from checkpoints.conftest import weights as weights  # a fixture
from checkpoints.test_download import row as row  # fixtures
from checkpoints.test_download import server as server

from keras_internimage.checkpoints import published
from keras_internimage.weights_convert.cli import main

NAME = "tiny_remove_center"


def process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "keras_internimage.weights_convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_as_a_process(tmp_path, weights):
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    made = tmp_path / "x.weights.h5"
    result = process("convert", source, made)
    assert result.returncode == 0, result.stderr
    assert "104 variables" in result.stdout
    assert same(build(NAME, weights=made), weights(NAME))


@pytest.mark.any_backend
def test_an_error_of_a_process(tmp_path, weights):
    source = save_safetensors(
        tmp_path / "x.safetensors",
        {**weights(NAME), "head.bias": np.full(10, np.nan, np.float32)},
    )
    result = process("convert", source, tmp_path / "x.keras")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: All weights must be finite")
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.any_backend
def test_without_a_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.any_backend
def test_inspect(tmp_path, weights, capsys):
    held = {**weights("tiny_postnorm"), "other": np.ones(3, np.float32)}
    del held["levels.1.downsample.norm.1.bias"]
    path = save_pth(tmp_path / "x.pth", held, dtype="float16")
    code, out, err = run(capsys, "inspect", path)
    assert code == 0 and err == ""
    found = fields(out)
    assert found["format"] == "pytorch" and found["container"] == "model"
    assert "channels=16, depths=(1, 1, 2, 1), groups=(2, 4, 8, 16)" in found["arguments"]
    assert "post_norm=True" in found["arguments"] and "dw_kernel_size=3" in found["arguments"]
    assert found["not visible"].startswith("offset_scale")
    assert found["classes"] == "10"
    assert found["stored as"] == "float16 (134 tensors)"
    assert found["missing"] == "1: levels.1.downsample.norm.1.bias"
    assert found["others"] == "1: other"


@pytest.mark.any_backend
@pytest.mark.parametrize("kind", ["x.safetensors", "x.pth", "x.weights.h5"])
def test_inspect_finds_what_is_not_finite(tmp_path, weights, capsys, kind):
    held = weights(NAME)
    held["head.bias"] = np.float32([np.nan, np.inf, -np.inf] + [0] * 7)
    if kind == "x.weights.h5":
        model = build(NAME)
        model.get_layer("predictions").bias.assign(held["head.bias"])
        model.save_weights(str(tmp_path / kind))
    elif kind == "x.pth":
        save_pth(tmp_path / kind, held, dtype="bfloat16")
    else:
        save_safetensors(tmp_path / kind, held)
    code, out, _ = run(capsys, "inspect", tmp_path / kind)
    name = "predictions/bias" if kind == "x.weights.h5" else "head.bias"
    assert code == 0 and fields(out)["not finite"] == f"1: {name} (3 of 10)"


@pytest.mark.any_backend
def test_inspect_counts_parameters(tmp_path, weights, capsys):
    path = save_sharded(tmp_path / "hub", weights("tiny_prenorm"))
    _, out, _ = run(capsys, "inspect", path)
    found = fields(out)
    assert found["parameters"] == f"{build('tiny_prenorm').count_params() - 2 * 192:,}"
    assert found["missing"] == found["others"] == found["not finite"] == "none"
    assert out.count("model-0000") == 3


@pytest.mark.any_backend
def test_inspect_a_keras_file(tmp_path, weights, capsys):
    source = save_safetensors(tmp_path / "x.safetensors", weights("tiny_g"))
    path = str(tmp_path / "x.weights.h5")
    build("tiny_g", weights=source, include_top=False).save_weights(path)
    code, out, _ = run(capsys, "inspect", path)
    found = fields(out)
    assert code == 0 and found["format"] == "Keras"
    assert found["classes"] == "no classifier"
    assert "center_feature_scale=True" in found["arguments"]
    assert found["missing"] == found["others"] == "none"


@pytest.mark.any_backend
def test_inspect_names_the_published_file(tmp_path, weights, capsys, monkeypatch):
    import dataclasses
    import hashlib

    path = save_pth(tmp_path / "x.pth", weights(NAME))
    content = path.read_bytes()
    entry = dataclasses.replace(
        published.PUBLISHED[3], bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(published, "PUBLISHED", (entry,))
    _, out, _ = run(capsys, "inspect", path)
    assert fields(out)["published"] == "internimage_l_22kto1k_384, 384 pixels"


@pytest.mark.any_backend
def test_convert_verify_export(tmp_path, weights, capsys):
    source = save_pth(tmp_path / "x.pth", weights(NAME))
    made, back = tmp_path / "x.keras", tmp_path / "back.pth"
    code, out, _ = run(capsys, "convert", source, made)
    assert code == 0 and "104 variables" in out
    code, out, _ = run(capsys, "verify", made, "--against", source)
    assert code == 0 and out == "104 of 104 variables are bit-exact\n"
    code, out, _ = run(capsys, "export", made, back)
    assert code == 0 and out == f"{back}: 113 tensors\n"
    code, out, _ = run(capsys, "verify", made, "--against", back)
    assert code == 0
    assert same(build(NAME, weights=back), weights(NAME))


@pytest.mark.any_backend
def test_verify_finds_differences(tmp_path, weights, capsys):
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    made = tmp_path / "x.weights.h5"
    run(capsys, "convert", source, made)
    changed = {**weights(NAME), "head.bias": weights(NAME)["head.bias"] + np.float32(0.25)}
    other = save_safetensors(tmp_path / "y.safetensors", changed)
    code, out, _ = run(capsys, "verify", made, "--against", other)
    assert code == 1
    assert out.splitlines() == [
        "predictions/bias: differs by up to 0.25",
        "103 of 104 variables are bit-exact",
    ]
    del changed["levels.0.norm.0.bias"]
    more = {**changed, "levels.7.norm.0.bias": np.ones(1, np.float32)}
    other = save_safetensors(tmp_path / "z.safetensors", more)
    code, out, _ = run(capsys, "verify", made, "--against", other)
    assert code == 1
    assert f"levels.0.norm.0.bias: not in {other}" in out
    assert f"levels.7.norm.0.bias: only in {other}" in out


@pytest.mark.any_backend
def test_options(tmp_path, weights, capsys):
    import torch

    average = {k: torch.from_numpy(np.array(v + 1)) for k, v in weights(NAME).items()}
    source = save_pth(tmp_path / "x.pth", weights(NAME), model_ema=average)
    made = tmp_path / "x.weights.h5"
    options = ("--no-top", "--dtype", "float16", "--container", "model_ema")
    code, out, _ = run(capsys, "convert", source, made, *options)
    assert code == 0
    assert "left out, the model has no classification head: 7 tensors" in out
    code, out, _ = run(capsys, "inspect", made)
    assert fields(out)["classes"] == "no classifier"
    assert fields(out)["stored as"] == "float16 (97 tensors)"
    # Without a head the file's head is no difference; the halves are.
    against = ("--against", source, "--container", "model_ema")
    code, out, _ = run(capsys, "verify", made, *against)
    assert code == 1 and "head.bias: only in" in out and "no part of the model" in out
    options = ("--no-top", "--container", "model_ema", "--overwrite")
    run(capsys, "convert", source, made, *options)
    code, out, _ = run(capsys, "verify", made, *against)
    assert code == 0 and "97 of 97 variables are bit-exact" in out
    code, out, _ = run(capsys, "convert", source, made, "--classes", "4", "--overwrite")
    assert code == 0 and "newly initialised with 4 classes" in out


@pytest.mark.any_backend
def test_an_offset_scale_for_unpublished_sizes(tmp_path, weights, capsys):
    import keras

    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    made = tmp_path / "x.keras"
    code, _, _ = run(capsys, "convert", source, made, "--offset-scale", "2.5")
    assert code == 0
    block = keras.saving.load_model(made).get_layer("stage2_block1")
    assert block.get_config()["offset_scale"] == 2.5


@pytest.mark.any_backend
def test_paths_are_looked_at_first(tmp_path, capsys, monkeypatch):
    from keras_internimage.checkpoints import download
    from keras_internimage.weights_convert import convert, export

    for module, name in ((convert, "convert"), (export, "export"), (download, "fetch")):
        monkeypatch.setattr(module, name, None)
    file, folder = tmp_path / "x.safetensors", tmp_path / "folder.keras"
    file.write_text("mine")
    folder.mkdir()
    (tmp_path / "link.pth").symlink_to(file)
    none = tmp_path / "none.pth"
    assert "none.pth, no such file" in refused(capsys, "inspect", none)
    assert "none.pth, no such file" in refused(capsys, "convert", none, tmp_path / "x.keras")
    assert "none.pth, no such file" in refused(capsys, "verify", file, "--against", none)
    assert "must be a file" in refused(capsys, "convert", file, folder)
    assert "must be another file" in refused(capsys, "export", file, tmp_path / "link.pth")
    assert "must be another file" in refused(capsys, "export", file, file)
    name = "internimage_t_1k_224"
    assert "must end in" in refused(capsys, "download", name, tmp_path / "x.onnx")
    assert "folder must exist" in refused(capsys, "download", name, none / "x.pth")
    assert file.read_text() == "mine"
    trained = tmp_path / "model.keras"
    trained.write_text("trained")
    for command in (("convert", file), ("download", name)):
        assert "--overwrite" in refused(capsys, *command, trained)
    assert trained.read_text() == "trained"


@pytest.mark.any_backend
def test_errors_are_one_line(tmp_path, weights, capsys):
    good = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    empty, wrong = tmp_path / "empty.pth", tmp_path / "wrong.safetensors"
    empty.write_bytes(b"")
    save_safetensors(wrong, {"conv1.weight": np.ones((3, 3), np.float32)})
    out = tmp_path / "out.keras"
    for name in ("none.pth", "none.keras", "none.weights.h5"):
        assert "no such file" in refused(capsys, "inspect", tmp_path / name)
    assert "must not be empty" in refused(capsys, "convert", empty, out)
    assert "tensors of an InternImage" in refused(capsys, "convert", wrong, out)
    assert "--variant" not in refused(capsys, "convert", good, out, "--variant", "Z")
    message = refused(capsys, "convert", good, out, "--variant", "T")
    assert "Missing in the file" in message and "depths=(1, 1, 1, 1)" in message
    assert "dtype must be" in refused(capsys, "convert", good, out, "--dtype", "int4")
    assert "must end in" in refused(capsys, "convert", good, tmp_path / "x.onnx")
    assert "must end in" in refused(capsys, "export", out, tmp_path / "x.onnx")
    assert "no such file" in refused(capsys, "export", out, tmp_path / "x.pth")
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"")
    assert "complete Keras weights" in refused(capsys, "export", broken, tmp_path / "x.pth")
    assert "complete Keras weights" in refused(capsys, "verify", broken, "--against", good)
    broken.unlink()
    assert "must be one of" in refused(capsys, "download", "internimage_z")
    assert sorted(os.listdir(tmp_path)) == ["empty.pth", "wrong.safetensors", "x.safetensors"]


@pytest.mark.any_backend
def test_a_malicious_file(tmp_path, capsys):
    from checkpoints.test_untrusted_files import Attack

    torch = pytest.importorskip("torch")
    torch.save({"model": Attack(tmp_path / "it-ran")}, tmp_path / "x.pth")
    for command in (["inspect"], ["convert", tmp_path / "x.keras"]):
        message = refused(capsys, command[0], tmp_path / "x.pth", *command[1:])
        assert "could run code" in message
    assert os.listdir(tmp_path) == ["x.pth"]


@pytest.mark.any_backend
def test_download(tmp_path, server, row, weights, capsys):
    code, out, _ = run(capsys, "download", row.name)
    cached = out.splitlines()[-1]
    assert code == 0 and cached.endswith(f"home/models/{row.file}")
    assert same(build("tiny_postnorm", weights=cached), weights("tiny_postnorm"))
    _, out, _ = run(capsys, "list")
    assert next(line for line in out.splitlines() if row.name in line).endswith("yes")
    for name in ("copy.pth", "copy.weights.h5", "copy.keras"):
        code, out, _ = run(capsys, "download", row.name, tmp_path / name)
        assert code == 0
        assert same(build("tiny_postnorm", weights=tmp_path / name), weights("tiny_postnorm"))
    assert (tmp_path / "copy.pth").read_bytes() == (tmp_path / "served.pth").read_bytes()
    assert "must end in" in refused_download(capsys, row, tmp_path / "x.onnx")
    assert len(server.requests) == 1
    server.files.clear()
    pathlib.Path(cached).unlink()
    message = refused_download(capsys, row, tmp_path / "late.pth")
    assert "Without a connection" in message and not (tmp_path / "late.pth").exists()


def refused_download(capsys, row, out):
    code, _, err = run(capsys, "download", row.name, out)
    assert code == 2 and err.count("\n") == 1
    return err
