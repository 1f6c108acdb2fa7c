"""What a training prints while it runs: compiling, progress, and the time that is left."""

import io
import re

import pytest

from keras_internimage.commands.train.training_progress import TrainingProgress

pytestmark = pytest.mark.any_backend


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def train(stream, first=60.0, step=2.0, validation=1.0, epochs=3, steps=20, batches=10, **options):
    """Calls the callback as a training does, on a clock of its own; returns the lines."""
    clock = Clock()
    progress = TrainingProgress(
        epochs, steps, batches, **{"compiles": True, **options}, clock=clock, stream=stream
    )
    progress.announce()
    progress.on_train_begin()
    for epoch in range(epochs):
        progress.on_epoch_begin(epoch)
        for batch in range(steps):
            clock.now += first if epoch == batch == 0 else step
            progress.on_train_batch_end(batch, {"loss": 1.5, "accuracy": 0.25})
        for batch in range(batches):
            clock.now += validation
            progress.on_test_batch_end(batch, {})
        logs = {"loss": 1.5, "accuracy": 0.25, "val_loss": 1.25, "val_accuracy": 0.5}
        progress.on_epoch_end(epoch, {**logs, "learning_rate": 1e-3})
    progress.close()
    return stream.getvalue()


def test_lines_of_a_file():
    lines = train(io.StringIO()).splitlines()
    assert lines[0] == "Compiling the model: the first step takes longer than the others."
    assert lines[1] == "The first step took 1:00."
    # 56 steps of 2 s, and three validations of about 10 * 2 s / 3.
    results = "loss 1.5000, accuracy 25.0%"
    assert lines[2] == f"epoch 1 of 3, step 4 of 20: {results}; about 2:12 left of the training"
    assert lines[3] == f"epoch 1 of 3, step 19 of 20: {results}; about 1:42 left of the training"
    # The epoch's end: 40 steps of 2 s, and two validations of 10 s, now measured.
    end = f"{results}, validation loss 1.2500, validation accuracy 50.0%"
    assert lines[4] == f"epoch 1 of 3: {end}, 1:48; about 1:40 left of the training"
    assert lines[-1] == f"epoch 3 of 3: {end}, 0:50"
    assert sum(line.startswith("epoch") and ", step" not in line for line in lines) == 3


def test_a_file_is_never_silent_for_long():
    """Lines come by time: also within a long validation, and at any length of a step."""
    text = train(io.StringIO(), step=20.0, validation=25.0, epochs=1)
    assert re.findall(r"validation batch (\d+) of 10; about (\S+) left", text)
    assert len(text.splitlines()) > 13
    text = train(io.StringIO(), step=0.01, validation=0.01, first=0.01)
    assert len(text.splitlines()) == 6  # compiling, its time, first estimate, three epochs


def test_no_word_of_compiling_where_nothing_is_compiled():
    text = train(io.StringIO(), compiles=False)
    assert "ompil" not in text and "first step" not in text


def test_one_step_in_an_epoch():
    lines = train(io.StringIO(), steps=1, first=2.0, batches=1).splitlines()
    assert lines[2].endswith("0:03; about 0:06 left of the training")


def test_bar_of_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "24")
    text = train(Terminal())
    shown = re.split(r"[\r\n]", text)
    bars = [line for line in shown if "[=" in line]
    assert any("epoch 2 of 3, [==========          ] step 10 of 20: loss" in bar for bar in bars)
    assert all(len(bar) < 120 for bar in bars)
    assert len(bars) > 50
    # What stays: the first estimate, and a line for each epoch.
    kept = [line for line in text.replace("\r", "\n\r").split("\n") if not line.startswith("\r ")]
    assert sum("about" in line and "[" not in line for line in kept) == 3
    assert text.endswith("0:50\n")
    monkeypatch.setenv("COLUMNS", "60")
    shown = re.split(r"[\r\n]", train(Terminal()))
    assert all(len(line) < 60 for line in shown if "[=" in line)
