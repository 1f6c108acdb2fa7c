"""A full disk: found before the training where possible, and no more lost than must be."""

import errno
import os
import pathlib
import types

import keras
import photographs
import pytest
from commands.command import QUICK, main

from keras_internimage import report
from keras_internimage.commands.train import callbacks, disk, output, run
from keras_internimage.data import folders

pytestmark = pytest.mark.any_backend


@pytest.fixture
def few(tmp_path):
    return photographs.folder(tmp_path / "data", images=4)


@pytest.fixture
def room(monkeypatch):
    """The bytes that are free: `room.free`."""
    found = types.SimpleNamespace(free=1 << 40)
    monkeypatch.setattr(
        disk.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=found.free)
    )
    return found


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_room_is_checked_before_images_are_read(few, tmp_path, room, monkeypatch, capsys):
    monkeypatch.setattr(folders, "scan", pytest.fail)
    room.free = 10**8
    assert main(few, "--variant", "B", "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "There must be room on the disk of" in errors and "for best.keras" in errors
    assert "Received: 100 MB free. Nothing was written." in errors
    assert not (tmp_path / "out").exists()


def test_room_is_checked_with_the_true_sizes(few, tmp_path, room, capsys):
    room.free = 14 * 10**6
    assert main(few, *QUICK, "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "5 MB for last.keras" in errors and "Received: 14 MB free" in errors
    assert not (tmp_path / "out").exists()


def test_sizes_are_those_of_the_files(few, tmp_path):
    """But for what the format itself takes, which is much of such a small model's file."""
    model = run.build_model(settings_of(few), 2, "none")
    path = tmp_path / "model.keras"
    callbacks.save(model, path)
    assert 0.6 * path.stat().st_size < callbacks.checkpoint_size(model) < path.stat().st_size


def settings_of(data):
    from keras_internimage.commands.train import cli, settings
    from keras_internimage.commands.train.device import Device

    options = cli.parser().parse_args([str(data), *QUICK])
    return settings.choose(options, keras.config.backend(), 4, Device("cpu", "CPU"))[0]


def test_a_full_disk_is_named_and_the_training_resumes(few, tmp_path, room, monkeypatch, capsys):
    folder = tmp_path / "out"
    command = f"internimage-train {few} --output {folder} --resume"

    def stops(what):
        printed = capsys.readouterr()
        assert what in printed.err and "Traceback" not in printed.err
        assert printed.err.splitlines()[-1].strip() == command

    # Another program fills the disk in the second epoch, while a checkpoint is written.
    save = keras.Model.save

    def save_once(model, path, *arguments):
        if pathlib.Path(path).name == output.LAST and int(model.optimizer.iterations) > 1:
            pathlib.Path(path).write_bytes(b"half of it")
            room.free = 123_000
            full()
        return save(model, path, *arguments)

    monkeypatch.setattr(keras.Model, "save", save_once)
    assert main(few, *QUICK, "--epochs", 2, "--output", folder) == 2
    stops(f"room on the disk to write {folder / output.LAST}. Received: 5 MB needed, 1 MB free")
    monkeypatch.setattr(keras.Model, "save", save)
    assert not list(folder.glob(".unfinished-*"))
    # There is still no room: that is said before anything is computed.
    monkeypatch.setattr(run.Run, "fit", pytest.fail)
    assert main(few, "--output", folder, "--resume") == 2
    stops("There must be room on the disk of")
    # The disk fills up while an epoch runs: the next one is not begun.
    monkeypatch.undo()
    written = callbacks.Checkpoints.on_epoch_begin

    def no_room(self, epoch, logs=None):
        monkeypatch.setattr(disk, "free", lambda path: 1000)
        written(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "on_epoch_begin", no_room)
        assert main(few, "--output", folder, "--resume") == 2
    stops("for a new last.keras")
    monkeypatch.undo()
    monkeypatch.setattr(report, "write", lambda folder, results: folder / "report.html")
    # The smaller files, and the report.
    for owner, name, what in (
        (keras.callbacks.CSVLogger, "on_epoch_end", output.HISTORY),
        (callbacks.TensorBoard, "_write", output.LOGS),
        (run.Run, "finish", output.REPORT),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            assert main(few, "--output", folder, "--resume") == 2
        stops(f"to write {folder / what}. Received: ")
    assert main(few, "--output", folder, "--resume") == 0
    assert (folder / "model.keras").exists()
    assert len((folder / "history.csv").read_text().splitlines()) == 3


def test_nothing_is_left_of_a_training_that_could_not_begin(few, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save", full)
        assert main(few, *QUICK, "--output", folder) == 2
    errors = capsys.readouterr().err
    assert f"write {folder / output.LAST}. Received: " in errors and "Nothing was written" in errors
    assert not folder.exists()


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), disk.naming(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(disk.DiskFull, match="write named"), disk.naming(tmp_path):
        raise OSError(errno.ENOSPC, "full", "named")
    assert [disk.megabytes(n) for n in (1, 1_000_001, 1.25e9)] == ["1 MB", "2 MB", "1.3 GB"]
