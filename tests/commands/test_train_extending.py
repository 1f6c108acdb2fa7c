"""More epochs for a finished training, and fewer where nothing improves any more."""

import csv
import json
import shutil

import keras
import numpy as np
import photographs
import pytest
from commands.command import QUICK, main

from keras_internimage import report
from keras_internimage.commands.train import callbacks, run
from keras_internimage.commands.train.callbacks import Stopped, stops_early

pytestmark = pytest.mark.any_backend


def rows(folder):
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


def comparable(folder):
    """The history without what is measured by the clock."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows(folder)]


def weights(folder):
    model = keras.saving.load_model(folder / "last.keras")
    found = [v for v in model.weights if "seed_generator" not in v.path]
    return [keras.ops.convert_to_numpy(v) for v in found + list(model.optimizer.variables)]


def test_a_finished_training_is_extended(tmp_path, monkeypatch, capsys):
    data = photographs.folder(tmp_path / "data", images=6)
    folder, other = tmp_path / "out", tmp_path / "other"
    (data / "china" / "text.jpg").write_text("text")
    assert main(data, *QUICK, "--ema", 0.9, "--skip-bad", "--output", folder) == 0
    before = rows(folder)
    capsys.readouterr()
    assert "text.jpg" in (folder / "report.html").read_text()
    monkeypatch.setattr(report, "write", lambda folder, results: pages.append(results))
    pages = []
    for more, message in (
        ([], "--output must be a new folder; --resume --epochs N extends the training in it"),
        (["--resume"], "--epochs N to extend a finished one. Received: --output"),
        (["--resume", "--epochs", 1], "--epochs must be more than the 1 that are done"),
        (["--resume", "--epochs", 3, "--seed", 1], "--seed 1 (started with 0)"),
    ):
        assert main(data, "--output", folder, *more) == 2
        assert message in capsys.readouterr().err
        assert json.loads((folder / "run.json").read_text())["finished"]
    shutil.copytree(folder, other)

    assert main(data, "--output", folder, "--resume", "--epochs", 3) == 0
    assert "after 1 of 3 epochs" in capsys.readouterr().out
    content = json.loads((folder / "run.json").read_text())
    assert content["finished"] and content["extended_at"] == [1]
    assert content["settings"]["epochs"] == 3
    assert "text.jpg" in content["skipped"][0][0] and "batch_size" not in content["reasons"]
    assert "text.jpg" in pages[0].skipped[0][0] and len(pages[0].history["loss"]) == 3
    extended = rows(folder)
    assert len(extended) == 3 and extended[0] == before[0]
    # The cosine of three epochs, from the end of the first on.
    rates = [float(row["learning_rate"]) for row in extended]
    assert rates[1] > 100 * rates[0] and rates[2] < 1e-3 * rates[1]

    # Interrupted, and resumed without --epochs, it is the same.
    stop = callbacks.StopOnSignal.on_epoch_end

    def interrupt(self, epoch, logs=None):
        raise Stopped(2)

    monkeypatch.setattr(callbacks.StopOnSignal, "on_epoch_end", interrupt)
    assert main(data, "--output", other, "--resume", "--epochs", 3) == 130
    assert (other / "model.keras").exists() and len(rows(other)) == 2
    monkeypatch.setattr(callbacks.StopOnSignal, "on_epoch_end", stop)
    assert main(data, "--output", other, "--resume") == 0
    assert comparable(other) == comparable(folder)
    for one, two in zip(weights(folder), weights(other), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("accuracies", "patience", "start", "stops"),
    [
        ([], 1, 0, False),
        ([0.5], 1, 0, False),
        ([0.5, 0.5], 1, 0, True),  # the losses are the same as well
        ([0.5, 0.4], 2, 0, False),
        ([0.5, 0.4, 0.4], 2, 0, True),
        ([0.5, 0.4, 0.6], 2, 0, False),
        ([0.5, 0.4, 0.4], 2, 2, False),
        ([0.5, 0.4, 0.4, 0.4], 2, 2, True),
        ([0.5, 0.4, 0.4, 0.4], 0, 0, False),
    ],
)
def test_epochs_without_improvement_are_counted(accuracies, patience, start, stops):
    history = {"val_accuracy": accuracies, "val_loss": [1.0] * len(accuracies)}
    assert stops_early(patience, history, start) is stops


def test_early_stopping_survives_a_resumption(tmp_path, monkeypatch, no_report, capsys):
    """Interrupted before it counts to the end, interrupted after that, and extended."""
    data, folder = photographs.folder(tmp_path / "data", images=4), tmp_path / "out"
    monkeypatch.setattr(callbacks, "score", lambda accuracy, loss: (0, 0))  # none is better
    with monkeypatch.context() as patch:
        stop = callbacks.StopOnSignal

        def after_two(self, epoch, logs=None):
            if epoch == 1:
                raise Stopped(2)

        patch.setattr(stop, "on_epoch_end", after_two)
        options = [*QUICK, "--epochs", 9, "--early-stopping", 2]
        assert main(data, *options, "--output", folder) == 130
    assert "after 2 epochs without improvement" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "finish", interrupted)
        assert main(data, "--output", folder, "--resume") == 130
    assert len(rows(folder)) == 3
    capsys.readouterr()
    assert main(data, "--output", folder, "--resume") == 0
    assert len(rows(folder)) == 3
    printed = capsys.readouterr().out
    assert "Stopped early, after 3 of 9 epochs: no better one for 2 epochs." in printed
    assert "the best epoch, 1 of 3" in printed
    assert main(data, "--output", folder, "--resume", "--epochs", 9) == 0
    assert len(rows(folder)) == 5


def interrupted(self):
    raise KeyboardInterrupt
