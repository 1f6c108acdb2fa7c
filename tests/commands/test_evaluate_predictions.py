"""`internimage-evaluate --predictions`: the numbers follow from what is written of every image."""

import csv

import masks
import numpy as np
import photographs
import pytest
from commands.test_evaluate import classifier, results, segmenter  # noqa: F401
from PIL import Image

import keras_internimage
from keras_internimage.commands.evaluate import cli

pytestmark = pytest.mark.any_backend


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_of_classes(classifier, tmp_path, capsys):  # noqa: F811
    data = photographs.folder(tmp_path / "data", images=3)
    (data / "china" / "bad.jpg").write_bytes(b"no image")
    path = tmp_path / "said.csv"
    found, _, _ = results(capsys, tmp_path, classifier, data, "--predictions", path, code=1)
    said = rows(path)
    assert {row["file"] for row in said} == {str(f) for f in data.rglob("*.jpg")}
    (bad,) = (row for row in said if row["error"])
    assert bad["file"].endswith("bad.jpg") and bad["class"] == "china" and bad["rank"] == ""
    read = [row for row in said if row is not bad]
    assert found["top1"] == pytest.approx(np.mean([row["rank"] == "1" for row in read]))
    made = keras_internimage.load(classifier)
    for row in read:
        best = made.predict(row["file"])[0]
        assert [row[f"predicted_{k}"] for k in (1, 2, 3)] == [label for label, _ in best]
        for k, (label, probability) in enumerate(best, start=1):
            assert float(row[f"probability_{k}"]) == pytest.approx(probability, abs=1e-5)
            assert (label == row["class"]) == (row["rank"] == str(k))


def test_of_pixels(segmenter, tmp_path, capsys):  # noqa: F811
    data = masks.folder(tmp_path / "data", 2, 3)
    out = tmp_path / "said"
    arguments = segmenter, data, "--predictions", out
    found, _, _ = results(capsys, tmp_path, *arguments)
    assert (out / "classes.txt").is_file()
    said = rows(out / "images.csv")
    assert len(said) == found["images"] == 3
    counts = np.zeros((2, 2), int)
    for row in said:
        image, truth = masks.pair(int(row["file"].rpartition("/")[2].partition(".")[0]))
        labels = np.asarray(Image.open(out / row["mask"]))
        assert labels.shape == truth.shape
        counted = truth != 255
        right = (labels == truth)[counted].sum()
        assert [int(row["right_pixels"]), int(row["pixels"])] == [right, counted.sum()]
        np.add.at(counts, (truth[counted], labels[counted]), 1)
    iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    assert found["miou"] == pytest.approx(iou.mean())
    # Written again in its own folder, and nowhere else.
    results(capsys, tmp_path, *arguments)
    (out / "mine.txt").write_text("mine")
    assert cli.main([str(argument) for argument in arguments]) == 2
    assert "which holds mine.txt" in capsys.readouterr().err
