"""Classes of different sizes: class weights, balanced sampling, and what is said about them."""

import json

import numpy as np
import photographs
import pytest
from commands.command import QUICK, main

from keras_internimage.commands.train import settings_table
from keras_internimage.commands.train.weighting import WeightedImageFiles
from keras_internimage.data.folders import Images

pytestmark = pytest.mark.any_backend


def test_weights_of_mixed_images(tmp_path):
    """The weight of a soft label is the mean of its classes' weights, by their shares."""
    folder = photographs.folder(tmp_path / "data", images=4)
    classes = sorted(folder.iterdir())
    files = [(path, label) for label, inner in enumerate(classes) for path in inner.iterdir()]

    def mix(images, labels, seed):
        return images, 0.75 * labels + 0.25 * labels[::-1]

    for augment, expected in ((None, {0.5, 3.0}), (mix, {0.5, 3.0, 1.125, 2.375})):
        batches = WeightedImageFiles(
            files, 2, 32, 8, training=True, augment=augment, class_weights=[0.5, 3.0]
        )
        images, labels, weights = batches[0]
        batches.close()
        assert weights.dtype == "float32" and weights.shape == (8,) and len(images) == 8
        np.testing.assert_allclose(weights, 0.5 * labels[:, 0] + 3.0 * labels[:, 1])
        assert set(weights.tolist()) <= expected


def test_class_weights_enter_the_training_alone(tmp_path, no_report, capsys):
    """Six images against two: at the learning rate of nearly 0, losses tell the weights."""
    data = photographs.folder(tmp_path / "data", images=8)
    for path in sorted((data / "flower").iterdir())[3:]:
        path.unlink()
    history = {}
    still = ["--learning-rate", "1e-12", "--drop-path", 0, "--batch-size", 2]
    for kind in ("none", "balanced"):
        folder = tmp_path / kind
        assert main(data, *QUICK, *still, "--class-weights", kind, "--output", folder) == 0
        line = (folder / "history.csv").read_text().splitlines()
        history[kind] = dict(zip(line[0].split(","), map(float, line[1].split(",")), strict=True))
        assert json.loads((folder / "run.json").read_text())["settings"]["class_weights"] == kind
    one, two = history["none"], history["balanced"]
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-6)
    assert one["accuracy"] == two["accuracy"]
    assert abs(one["loss"] - two["loss"]) > 1e-4
    printed = capsys.readouterr().out
    assert "images by class  china 6, flower 2" in printed
    assert printed.count("class weights") == 1
    assert main(data, "--class-weights", "none", "--output", folder, "--resume", "--epochs", 2) == 2
    assert "--class-weights none (started with balanced)" in capsys.readouterr().err


def test_sampling_is_the_loaders(tmp_path, no_report, capsys):
    data = photographs.folder(tmp_path / "data", images=4)
    folder = tmp_path / "out"
    assert main(data, *QUICK, "--sampling", "balanced", "--output", folder) == 0
    assert json.loads((folder / "run.json").read_text())["settings"]["sampling"] == "balanced"
    assert "sampling" in capsys.readouterr().out


def test_not_both(tmp_path, capsys):
    both = "--sampling balanced --class-weights balanced".split()
    assert main(tmp_path, *both, "--output", tmp_path / "out") == 2
    assert "must not both be balanced" in capsys.readouterr().err


def test_counts_of_many_classes_are_folded():
    names = [f"class{index}" for index in range(12)]
    train = [(None, label) for label in range(12) for _ in range(100 - label)]
    images = Images(None, tuple(names), tuple(train), ())
    words = settings_table.counts_by_class(images).split(", ")
    assert words[:4] == ["class0 100", "class1 99", "class2 98", "class3 97"]
    assert words[4:] == ["... (4 more)", "class8 92", "class9 91", "class10 90", "class11 89"]
    assert settings_table.counts_by_class(
        Images(None, tuple(names[:2]), tuple(train[:150]), ())
    ) == ("class0 100, class1 50")
