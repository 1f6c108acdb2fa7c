"""`internimage-train` on COCO's annotations, on every backend: one short training."""

import functools

import annotated_shapes
import keras
import numpy as np
import pytest
from commands.command import main, rows
from small_models import TINY, as_options

from keras_internimage import models

NETWORK = [*as_options(TINY), *"--resolution 48 --decoder-channels 8".split()]
FEW = {"units": 16, "proposals": 20, "proposals_per_level": 20, "max_detections": 5}


def test_one_epoch(tmp_path, monkeypatch, no_report):
    """One step of an image with objects and one without, of few layers: little is compiled."""
    monkeypatch.setattr(models, "MaskRCNN", functools.partial(models.MaskRCNN, **FEW))
    data = annotated_shapes.coco(tmp_path / "data", 1, 1)

    def empty(content):
        gone = content["images"][1]["id"]
        content["annotations"] = [x for x in content["annotations"] if x["image_id"] != gone]

    annotated_shapes.write(
        data / "annotations" / "instances_train2017.json",
        data / "train2017",
        range(2),
        change=empty,
    )
    options = "--epochs 1 --batch-size 2 --weights none --recipe mask-rcnn-1x --freeze 3".split()
    assert main(data, *NETWORK, *options, "--output", tmp_path / "out") == 0
    (row,) = rows(tmp_path / "out" / "history.csv")
    for name in ("loss", "mask_loss", "val_loss", "val_box_ap", "val_mask_ap"):
        assert np.isfinite(float(row[name]))
    assert float(row["mask_loss"]) > 0
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert model.classes == 2


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Shapes that were never seen, by the command alone; the set is synthetic and easy."""
    data = annotated_shapes.coco(tmp_path / "data", 40, 8)
    options = "--epochs 60 --batch-size 4 --learning-rate 2e-3 --drop-path 0".split()
    options += ["--decoder-channels", "32"]
    assert main(data, *as_options({**TINY, "channels": 16}), "--resolution", 96, *options,
                "--output", tmp_path / "out") == 0  # fmt: skip
    history = rows(tmp_path / "out" / "history.csv")
    assert max(float(row["val_box_ap50"]) for row in history) > 0.8
