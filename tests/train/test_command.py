"""`internimage-train` and `internimage-predict` from the first image to the report."""

import contextlib
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import photographs
import pytest

from keras_internimage.train import cli, output, predict

# With stochastic depth, augmentation, and two batches in a step.
NETWORK = "--channels 16 --depths 1 1 1 1 --groups 1 2 4 8 --resolution 32".split()
LONG = "--epochs 3 --batch-size 4 --accumulation 2 --learning-rate 1e-3".split()
QUICK = [*NETWORK, *"--epochs 1 --batch-size 8".split()]
WRITTEN = {
    *("model.keras", "labels.json", "history.csv", "images.csv", "run.json", "logs"),
    *("best.keras", "last.keras", "curves.png", "confusion.png", "mistakes.png", "report.html"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photographs.folder(tmp_path_factory.mktemp("photographs") / "data", images=20)


def start(*arguments, backend=None, **options):
    environment = {**os.environ, "KERAS_BACKEND": backend or keras.config.backend()}
    return subprocess.Popen(
        [sys.executable, "-m", "keras_internimage.train", *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@contextlib.contextmanager
def ended(process):
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])


def rows(folder):
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


def wait_for_epochs(process, folder, count):
    """Returns when so many epochs are in `last.keras`."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            written = (folder / "last.keras").stat().st_mtime_ns
            history = (folder / "history.csv").stat()
            if history.st_size and len(rows(folder)) >= count and written > history.st_mtime_ns:
                return
        time.sleep(0.005)
    raise AssertionError(process.communicate(timeout=1))


def variables(path):
    model = keras.saving.load_model(path)
    found = {v.path: keras.ops.convert_to_numpy(v) for v in model.variables}
    for variable in model.optimizer.variables:
        found["optimizer", variable.path] = keras.ops.convert_to_numpy(variable)
    return found


def test_killed_and_resumed_is_as_if_uninterrupted(data, tmp_path, capsys):
    """kill -9 in the second of three epochs; and the backend is chosen by the option."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    backend = keras.config.backend()
    other = "jax" if backend == "torch" else "torch"
    arguments = [data, *NETWORK, *LONG, "--backend", backend]
    with ended(start(*arguments, "--output", killed, backend=other)) as process:
        assert main(*arguments, "--output", whole) == 0
        wait_for_epochs(process, killed, 1)
        process.kill()
    assert not (killed / "model.keras").exists() and len(rows(killed)) < 3
    assert json.loads((killed / "run.json").read_text())["settings"]["backend"] == backend
    capsys.readouterr()
    # What a process leaves that is killed while it writes: a row too much, half a row, half a file.
    with open(killed / "history.csv", "a") as file:
        file.write("7,0.1,0.1,0.1,1.0,0.0\n8,0.")
    (killed / ".unfinished-x").mkdir()

    assert main(data, "--output", killed, "--resume") == 0
    assert "after 1 of 3 epochs" in capsys.readouterr().out
    assert (killed / "history.csv").read_text() == (whole / "history.csv").read_text()
    expected, received = variables(whole / "last.keras"), variables(killed / "last.keras")
    assert list(expected) == list(received) and len(expected) > 200
    for path, value in expected.items():
        np.testing.assert_array_equal(received[path], value, err_msg=str(path))
    for folder in (whole, killed):
        assert WRITTEN == {path.name for path in folder.iterdir()} - {".lock"}

    # The model that is left is what was best in validation: here, the moving average.
    history = rows(whole)
    best = max(history, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    model = predict.load_model(whole / "model.keras")
    files = [row for row in csv.DictReader(open(whole / "images.csv")) if row["part"] != "train"]
    assert len(files) == 8
    images = [output_image(data / row["file"]) for row in files]
    labels = [["china", "flower"].index(row["class"]) for row in files]
    scores = predict.probabilities(model, np.stack(images))
    accuracy = (scores.argmax(-1) == labels).mean()
    np.testing.assert_allclose(accuracy, float(best["val_accuracy"]))
    smooth = 0.9 * np.eye(2)[labels] + 0.05
    loss = -(smooth * np.log(scores)).sum(-1).mean()
    np.testing.assert_allclose(loss, float(best["val_loss"]), rtol=1e-4)


def output_image(path):
    from keras_internimage.preprocessing import load_image

    return load_image(path, 32, exif_orientation=True)
