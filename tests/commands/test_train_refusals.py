"""What `internimage-train` refuses, before it trains and before it writes anything."""

import json
import os
import subprocess
import sys

import keras
import photographs
import pytest
from commands.command import QUICK, main

from keras_internimage.commands.train import cli, output, run
from keras_internimage.data import folders

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs 0", "--epochs must be at least 1. Received: --epochs 0"),
        ("--seed -1", "--seed must be at least 0. Received: --seed -1"),
        ("--drop-path 1", "--drop-path must be at least 0 and less than 1. Received: "),
        ("--learning-rate 0", "--learning-rate must be more than 0. Received: "),
        ("--learning-rate nan", "--learning-rate must be more than 0. Received: "),
        ("--validation-split 1", "--validation-split must be more than 0 and less than 1"),
        ("--channels 16", "or by all of --channels, --depths and --groups. Received: "),
        ("--variant T --channels 16 --depths 1 1 1 1 --groups 1 1 1 1", "defined either by"),
        ("--channels 16 --depths 1 1 1 1 --groups 3 2 4 8", "a number of groups that divides"),
        ("--freeze 5", "--freeze must be at most 4"),
        (
            "--variant L --recipe in1k-224",
            "one of T, S, B, FlashT, FlashS, FlashB for the recipe",
        ),
        (
            "--weights no/such/file.pth",
            "--weights no/such/file.pth (no such file",
        ),
        ("--weights internimage_t_1k_22", "did you mean internimage_t_1k_224?"),
        ("--variant B --weights internimage_t_1k_224", "internimage_t_1k_224, of T, for B"),
        ("--variant T --weights imagenet22k", "`weights` must be published for the variant"),
        ("--resolution 8", "Input size must be at least 32x32"),
        ("--variant H --resolution 200", "must be multiples of 32"),
        ("--early-stopping -1", "--early-stopping must be at least 0"),
        ("--resume", "--resume needs the output of a training"),
    ],
)
def test_options(data, tmp_path, capsys, monkeypatch, arguments, message):
    """Before any image is read."""
    monkeypatch.setattr(folders, "scan", pytest.fail)
    folder = tmp_path / "out"
    assert main(data, *arguments.split(), "--output", folder) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("internimage-train: error: ") and message in errors
    assert "Traceback" not in errors and not folder.exists()


def test_weights_that_cannot_be_downloaded(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("KERAS_INTERNIMAGE_WEIGHTS_URL", (tmp_path / "hub").as_uri())
    assert main(data, "--output", tmp_path / "out", "--resolution", 32) == 2
    errors = capsys.readouterr().err
    assert "internimage_t_1k_224 could not be downloaded" in errors
    assert "--weights PATH takes a file that is here, --weights none trains from" in errors
    assert not (tmp_path / "out").exists()


def test_bad_folder(tmp_path, capsys):
    data = photographs.folder(tmp_path / "data", images=2)
    (data / "empty").mkdir()
    assert main(data, "--output", tmp_path / "out") == 2
    assert "empty/: has no image" in capsys.readouterr().err
    assert main(tmp_path / "no", "--output", tmp_path / "out") == 2
    assert "There must be a folder of images. Received: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_output_folders(data, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(data, "--output", tmp_path / "file") == 2
    assert "--output must be a folder" in capsys.readouterr().err
    assert main(data, "--output", tmp_path) == 2
    assert "which holds other files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_folder_in_use(data, tmp_path, capsys):
    with output.locked(tmp_path / "out"):
        assert main(data, *QUICK, "--output", tmp_path / "out") == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_lock_ends_with_its_process(tmp_path):
    """What a killed process leaves behind does not keep the folder locked."""
    program = (
        "import os, pathlib, sys\n"
        "from keras_internimage.commands.train import output\n"
        "with output.locked(pathlib.Path(sys.argv[1])):\n"
        "    pathlib.Path(sys.argv[1], 'kept').touch()\n"
        "    os.kill(os.getpid(), 9)"
    )
    folder = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", program, str(folder)])
    assert killed.returncode != 0 and len(list(folder.iterdir())) == 3
    with output.locked(folder), pytest.raises(output.OutputError, match=str(os.getpid())):
        with output.locked(folder):
            pass
    with output.locked(folder):
        pass
    assert {path.name for path in folder.iterdir()} <= {"kept", ".lock"}


def test_output_folder_that_cannot_be_made(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "scan", pytest.fail)
    (tmp_path / "file").touch()
    assert main(data, *QUICK, "--output", tmp_path / "file" / "out") == 2
    assert "--output must be a folder that can be written" in capsys.readouterr().err
    monkeypatch.setattr(output.os, "access", lambda path, mode: False)
    assert main(data, *QUICK, "--output", tmp_path / "new" / "out") == 2
    assert f"{tmp_path} is read-only for this user" in capsys.readouterr().err


def test_the_default_output_is_never_inside_the_data(data, tmp_path, monkeypatch):
    """There it would be a class of the next training."""
    inside, beside = data / "china", data.parent / "data-internimage"
    for where, argument, expected in (
        (tmp_path, data, tmp_path / "data-internimage"),
        (data.parent, "data", beside),
        (data, ".", beside),
        (inside, "..", beside),
        (inside, data, beside),
    ):
        monkeypatch.chdir(where)
        assert cli._default_output(argument).resolve() == expected.resolve()


def test_settings_of_another_version(data, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    monkeypatch.setattr(run.Run, "fit", interrupt)
    assert main(data, *QUICK, "--output", folder) == 130
    content = json.loads((folder / "run.json").read_text())
    of_an_older = {k: v for k, v in content["settings"].items() if k != "early_stopping"}
    for settings, code in ((of_an_older, 130), ({**of_an_older, "new": 1}, 2), ({}, 2)):
        (folder / "run.json").write_text(json.dumps({**content, "settings": settings}))
        assert main(data, "--output", folder, "--resume") == code
    errors = capsys.readouterr().err
    assert "Received: a run.json with other settings: new\n" in errors
    assert "other settings: accumulation, backend" in errors


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_resume(tmp_path, capsys, monkeypatch):
    """An unfinished training is not started anew, and not resumed with other settings."""
    data, folder = photographs.folder(tmp_path / "data", images=4), tmp_path / "out"
    monkeypatch.setattr(run.Run, "fit", interrupt)
    assert main(data, *QUICK, "--output", folder) == 130
    assert "Resume with:\n  internimage-train" in capsys.readouterr().err
    assert main(data, *QUICK, "--output", folder) == 2
    assert "--resume resumes the training in it" in capsys.readouterr().err
    changed = "--epochs 9 --seed 0 --depths 1 1 1 2 --batch-size 8".split()
    assert main(tmp_path, *changed, "--output", folder, "--resume") == 2
    errors = capsys.readouterr().err
    assert f"Received: DATA_DIR {tmp_path} (started with {data})" in errors
    assert "--epochs 9 (started with 1)" in errors
    assert "--depths 1 1 1 2 (started with 1 1 1 1)" in errors
    assert "seed" not in errors and "batch" not in errors
    (data / "china" / "000.jpg").unlink()
    (data / "flower" / "001.jpg").write_bytes(b"x")
    assert main(data, "--output", folder, "--resume") == 2
    errors = capsys.readouterr().err
    assert "china/000.jpg: is not there any more" in errors
    assert "flower/001.jpg: has another size" in errors
    assert main(data, "--output", folder, "--resume", "--skip-bad") == 130  # fit, that is
    (folder / "run.json").write_text("{")
    assert main(data, "--output", folder, "--resume") == 2
    assert "run.json must be readable" in capsys.readouterr().err


def test_the_backend_of_a_running_program(data, tmp_path, capsys):
    other = "jax" if keras.config.backend() != "jax" else "torch"
    assert main(data, "--output", tmp_path / "out", "--backend", other) == 2
    assert "--backend must be the one that Keras runs on" in capsys.readouterr().err
