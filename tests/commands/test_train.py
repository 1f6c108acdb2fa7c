"""`internimage-train` from the first image to the report, killed, resumed and stopped."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time

import keras
import numpy as np
import photographs
import pytest
from commands.command import NETWORK, QUICK, main

from keras_internimage import predictor
from keras_internimage.commands import predict
from keras_internimage.commands.train import device
from keras_internimage.commands.train.callbacks import StopOnSignal, Stopped
from keras_internimage.data import folders
from keras_internimage.preprocessing import load_image
from keras_internimage.report.text import duration

# With stochastic depth, augmentation, two batches in a step, and a moving average.
LONG = (
    "--epochs 3 --batch-size 4 --accumulation 2 --learning-rate 1e-3 --ema 0.9 --freeze 2 "
    "--recipe finetune".split()
)
WRITTEN = {
    *("model.keras", "labels.json", "history.csv", "images.csv", "run.json", "logs"),
    *("best.keras", "last.keras", "curves.png", "confusion.png", "mistakes.png", "report.html"),
}


def start(*arguments, backend=None, **options):
    environment = {**os.environ, "KERAS_BACKEND": backend or keras.config.backend()}
    return subprocess.Popen(
        [sys.executable, "-m", "keras_internimage.commands.train", *map(str, arguments)],
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
    """All that a model and its optimizer have, but for random states, which every epoch sets."""
    model = keras.saving.load_model(path)
    found = [v for v in model.weights if "seed_generator" not in v.path]
    return [keras.ops.convert_to_numpy(v) for v in found + list(model.optimizer.variables)]


def test_killed_and_resumed_is_as_if_uninterrupted(data, tmp_path, capsys):
    """kill -9 in the second of three epochs; and the backend is chosen by the option."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    backend = keras.config.backend()
    other = "jax" if backend == "torch" else "torch"
    arguments = [data, *NETWORK, *LONG, "--backend", backend]
    with ended(start(*arguments, "--output", killed, backend=other)) as process:
        wait_for_epochs(process, killed, 1)
    assert process.returncode == -9
    assert not (killed / "model.keras").exists() and len(rows(killed)) < 3
    assert json.loads((killed / "run.json").read_text())["settings"]["backend"] == backend
    # What is left where a process is killed while it writes: a row too much, half a file.
    with open(killed / "history.csv", "a") as file:
        file.write("7,0.1,0.1,0.1,1.0,0.0\n8,0.")
    (killed / ".unfinished-x").mkdir()

    assert main(*arguments, "--output", whole) == 0
    capsys.readouterr()
    assert main(data, "--output", killed, "--resume") == 0
    printed = capsys.readouterr().out
    assert "after 1 of 3 epochs" in printed or "after 2 of 3 epochs" in printed
    measured, times = rows(killed), []
    for row in measured:
        times.append(float(row.pop("wall_seconds")))
    assert measured == [{k: v for k, v in row.items() if k in measured[0]} for row in rows(whole)]
    # The report's duration is that of both sessions.
    assert len(times) == 3 and min(times) > 0
    assert f"<bdi>{duration(sum(times))}</bdi>" in (killed / "report.html").read_text()
    expected, received = variables(whole / "last.keras"), variables(killed / "last.keras")
    assert len(expected) == len(received) > 200
    for before, after in zip(expected, received, strict=True):
        np.testing.assert_array_equal(after, before)
    for folder in (whole, killed):
        assert WRITTEN == {path.name for path in folder.iterdir()} - {".lock"}
    check_model(data, whole, capsys)
    check_moving_average(whole)


def check_model(data, folder, capsys):
    """`model.keras` is the epoch that was best in validation, and `internimage-predict` runs it."""
    history = rows(folder)
    best = max(history, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    with open(folder / "images.csv") as file:
        files = [row for row in csv.DictReader(file) if row["part"] == "validation"]
    assert len(files) == 8
    images = [load_image(data / row["file"], 32) for row in files]
    labels = [["china", "flower"].index(row["class"]) for row in files]
    model = predictor.load_model(folder / "model.keras")
    scores = predictor.probabilities(model, np.stack(images))
    accuracy = (scores.argmax(-1) == labels).mean()
    np.testing.assert_allclose(accuracy, float(best["val_accuracy"]), atol=1e-6)
    smooth = 0.9 * np.eye(2)[labels] + 0.05
    loss = -(smooth * np.log(scores)).sum(-1).mean()
    np.testing.assert_allclose(loss, float(best["val_loss"]), rtol=1e-4)
    paths = [str(data / row["file"]) for row in files]
    assert predict.main([str(folder), *paths, "--json", "-"]) == 0
    for entry, row in zip(json.loads(capsys.readouterr().out)["predictions"], scores, strict=True):
        found = {row["label"]: row["probability"] for row in entry["classes"]}
        assert found == pytest.approx(dict(zip(("china", "flower"), row, strict=True)), abs=2e-5)


def check_moving_average(folder):
    """`best.keras` has in it what `last.keras` has as the average, if the last epoch was best."""
    last = keras.saving.load_model(folder / "last.keras")
    best = keras.saving.load_model(folder / "best.keras")
    averages = {v.path.split("/")[-1]: v for v in last.optimizer.variables if "average" in v.path}
    assert len(averages) == len(last.trainable_variables)
    same = 0
    for average, trained, kept in zip(
        averages.values(), last.trainable_variables, best.trainable_variables, strict=True
    ):
        average, trained, kept = map(keras.ops.convert_to_numpy, (average, trained, kept))
        same += np.array_equal(trained, kept)
        if best.optimizer.iterations == last.optimizer.iterations:
            np.testing.assert_array_equal(kept, average)
    assert same < 10


@pytest.mark.any_backend
class TestStopping:
    def test_ctrl_c(self, data, tmp_path):
        folder = tmp_path / "a folder"
        many = [*QUICK, "--epochs", 500, "--output", folder]
        with ended(start(data, *many)) as process:
            wait_for_epochs(process, folder, 1)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=100)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert "Stopping after this batch." in errors
        command = f"internimage-train {data} --output '{folder}' --resume"
        assert errors.splitlines()[-1].strip() == command
        last = keras.saving.load_model(folder / "last.keras")
        assert int(last.optimizer.iterations) == 4 * len(rows(folder))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_first_after_the_batch_then_at_once(self, number):
        before = signal.getsignal(number)
        with StopOnSignal() as stop:
            stop.on_train_batch_end(0)
            os.kill(os.getpid(), number)
            for event in (stop.on_train_batch_end, stop.on_test_batch_end, stop.on_epoch_end):
                with pytest.raises(Stopped) as caught:
                    event(0)
                assert caught.value.signal == number
            with pytest.raises(Stopped):
                os.kill(os.getpid(), number)
                time.sleep(5)
        assert signal.getsignal(number) is before

    def test_before_anything_is_written(self, data, tmp_path, monkeypatch, capsys):
        def interrupt(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(folders, "scan", interrupt)
        assert main(data, "--output", tmp_path / "out") == 130
        assert "stopped. Nothing was written." in capsys.readouterr().err


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """A training during which one image of each part becomes unreadable; one is from before."""
    root = tmp_path_factory.mktemp("run")
    data = photographs.folder(root / "data", images=10)
    (data / "china" / "text.jpg").write_text("text")
    broken = []

    def scan(*arguments):
        images = original(*arguments)
        for part in (images.train, images.validation):
            broken.append(part[1][0])
            broken[-1].write_bytes(b"")
        return images

    original, folders.scan = folders.scan, scan
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            code = main(data, *QUICK, "--output", root / "out", "--skip-bad")
    finally:
        folders.scan = original
    assert code == 0, errors.getvalue()
    return root / "out", data, broken, printed.getvalue(), errors.getvalue()


@pytest.mark.any_backend
@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "tensorboardX"])
def test_a_missing_package_is_named_first(data, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(data, *QUICK, "--output", tmp_path / "out") == 2
    message = f"The package {package} must be installed: pip install 'keras-internimage[train]'"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.any_backend
class TestOneRun:
    def test_unreadable_files_are_listed(self, one_run):
        folder, data, broken, printed, errors = one_run
        page = (folder / "report.html").read_text()
        for path in broken:
            assert f"left out from now on: {path}: is empty" in errors
            assert path.name in page
        assert f"left out: {data / 'china' / 'text.jpg'}: is text, not an image" in printed
        assert "text.jpg" in page and "none can be shown" not in page
        assert "2 files became unreadable during the training" in printed

    def test_the_report_says_when_and_on_what(self, one_run):
        page = (one_run[0] / "report.html").read_text()
        (row,) = rows(one_run[0])
        model = keras.saving.load_model(one_run[0] / "model.keras")
        for key, value in {
            "duration": duration(float(row["wall_seconds"])),
            "parameters": f"{model.count_params():,}",
            "device": device.find().name.partition(",")[0],
        }.items():
            assert f"<td>{key}</td><td><bdi>{value}</bdi></td>" in page, key
        assert f"Keras {keras.__version__}" in page
        assert "16 training images, 3 validation images" in page

    def test_says_what_it_chose_and_why(self, one_run):
        folder, _, _, printed, _ = one_run
        table = dict(re.findall(r"^(\w+(?: \w+)?)  +(\S.*)$", printed, re.M))
        assert table["data"] == "2 classes, 16 images to train on, 4 to validate with"
        assert "16 channels, depths 1 1 1 1, groups 1 2 4 8" in table["network"]
        assert re.fullmatch(r"none +there are none for this network", table["weights"])
        assert re.fullmatch(r"8 +given", table["batch size"])
        assert re.search(r"0.002 for 512 images in a step", table["learning rate"])
        assert table["learning rate"].split()[0] == "3.13e-05"
        assert f"internimage-predict {folder} IMAGE" in printed

    def test_tensorboard(self, one_run):
        folder = one_run[0]
        found = {}
        for part in ("train", "validation"):
            (file,) = (folder / "logs" / part).iterdir()
            for name, value, step in scalars(file):
                found[part, name] = value
                assert step == 1
        (row,) = rows(folder)
        for (part, name), value in found.items():
            key = name.removeprefix("epoch/")
            key = key if part == "train" else f"val_{key}"
            np.testing.assert_allclose(value, float(row[key]), rtol=1e-6)
        assert len(found) == len(row) - 1 == 6

    def test_output_folder_is_not_used_twice(self, one_run, capsys):
        folder, data, *_ = one_run
        for more in ([], ["--resume"]):
            assert main(data, *QUICK, "--output", folder, *more) == 2
            assert "which holds a finished training" in capsys.readouterr().err

    def test_predict(self, one_run, capsys):
        folder, data, broken, *_ = one_run
        images = [data / "china" / "text.jpg", data / "flower"]
        code = predict.main([str(folder), *map(str, images), "--json", "-", "--batch-size", "4"])
        printed, errors = capsys.readouterr()
        assert code == 1
        content = json.loads(printed)
        bad = [path for path in broken if path.parent.name == "flower"] + images[:1]
        reasons = {entry["file"]: entry["reason"] for entry in content["failed"]}
        assert reasons.keys() == set(map(str, bad))
        assert reasons[str(images[0])] == "is text, not an image"
        assert f"{images[0]}: is text, not an image" in errors
        assert len(content["predictions"]) == 10 - len(bad) + 1
        model = keras.saving.load_model(folder / "model.keras")
        for entry in content["predictions"]:
            scores = model.predict(load_image(entry["file"], 32)[None], verbose=0)[0]
            found = {row["label"]: row["probability"] for row in entry["classes"]}
            assert list(found.values()) == sorted(found.values(), reverse=True)
            expected = dict(zip(("china", "flower"), scores, strict=True))
            assert found == pytest.approx(expected, abs=2e-5)

    def test_predict_prints_a_table(self, one_run, tmp_path, capsys):
        folder, data, *_ = one_run
        photographs.piece("china", 3).save(tmp_path / "a.png")
        photographs.piece("flower", 3).save(tmp_path / "longer name.png")
        paths = [str(tmp_path / name) for name in ("a.png", "longer name.png")]
        assert predict.main([str(folder / "model.keras"), *paths, "--top", "1"]) == 0
        printed, errors = capsys.readouterr()
        assert errors == ""
        lines = printed.splitlines()
        assert len(lines) == 2
        for line, path in zip(lines, paths, strict=True):
            assert re.fullmatch(re.escape(path) + r" +\d+\.\d% +(china|flower)", line)
        assert len({line.index("%") for line in lines}) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{out}", "{data}", "--top", "0"], "--top must be at least 1. Received: --top 0"),
            (["{out}/none.keras", "{data}"], "none.keras, no such file"),
            (["{out}/run.json", "{data}"], "MODEL must be a .keras file (internimage-convert"),
            (["{root}/no.keras", "{data}"], "MODEL must be a .keras file that Keras loads"),
            (["{out}", "{root}/nothing"], "There must be images"),
            (["{out}", "{data}", "--resolution", "64"], "takes images of 32 x 32 pixels"),
            (["{out}", "{data}", "--labels", "{root}/labels"], "as many as the model has classes"),
            (["{out}", "{data}", "--labels", "{root}/x"], "The labels must be a file"),
            (["{out}", "{data}", "--json", "{root}/x/y"], "The folder of --json must exist"),
        ],
    )
    def test_predict_refuses(self, one_run, tmp_path, capsys, arguments, message):
        (tmp_path / "nothing").mkdir()
        (tmp_path / "labels").write_text('["a", "b", "c"]')
        (tmp_path / "no.keras").write_text("text")
        places = {"out": one_run[0], "data": one_run[1], "root": tmp_path}
        assert predict.main([argument.format(**places) for argument in arguments]) == 2
        printed, errors = capsys.readouterr()
        assert errors.startswith("internimage-predict: error: ") and message in errors
        assert "Traceback" not in errors and printed == ""


def scalars(path):
    """`(name, value, step)` of the scalars in a TensorBoard file."""
    from tensorboardX.proto.event_pb2 import Event

    content = path.read_bytes()
    while content:
        (length,) = struct.unpack_from("<Q", content)
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            yield value.tag, value.simple_value, event.step
