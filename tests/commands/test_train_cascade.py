"""`internimage-train` with the detectors of all variants, whose networks are made small here."""

import dataclasses
import functools

import annotated_shapes
import keras
import numpy as np
import pytest
from commands.command import main, rows

from keras_internimage import models
from keras_internimage.commands.train import cli, detection, device, settings
from keras_internimage.detector import Detector
from keras_internimage.variants import VARIANTS

pytestmark = pytest.mark.any_backend

FEW = {"units": 16, "proposals": 20, "proposals_per_level": 20, "max_detections": 5}
SIZE = {"c1": 16, "group_channels": 8, "depth1": 1, "depth3": 1}
OPTIONS = [*"--resolution 48 --decoder-channels 8 --epochs 1 --batch-size 2 --drop-path 0".split()]


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MaskRCNN", "CascadeMaskRCNN"):
            patch.setattr(models, name, functools.partial(getattr(models, name), **FEW))
        for name in ("L", "FlashT", "FlashL"):
            patch.setitem(VARIANTS, name, dataclasses.replace(VARIANTS[name], **SIZE))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return annotated_shapes.coco(tmp_path_factory.mktemp("objects") / "data", 2, 1)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade") / "out"
    options = [*OPTIONS, *"--variant L --weights none --recipe cascade-1x".split()]
    assert main(data, *options, "--output", folder) == 0
    return folder


def test_cascade_of_a_large_variant(trained, data, tmp_path, capsys):
    """Trained, written, and taken again as what another training starts from."""
    (row,) = rows(trained / "history.csv")
    for name in ("loss", "mask_loss_3", "val_box_loss_2", "val_box_ap", "val_mask_ap"):
        assert np.isfinite(float(row[name]))
    assert "Cascade Mask R-CNN on InternImage-L on data" in (trained / "report.html").read_text()
    model = keras.saving.load_model(trained / "model.keras")
    assert type(model) is models.CascadeMaskRCNN.func and model.classes == 2
    known = chosen(data, "--variant L --weights none --decoder-channels 8")
    again = detection.build_model(known, 2, str(trained / "model.keras"))
    for before, after in zip(model.weights, again.weights, strict=True):
        if "seed_generator" not in before.path:
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("masks", ["annotated", "none"])
@pytest.mark.parametrize(
    ("variant", "kind", "norm"),
    [
        ("L", "CascadeMaskRCNN", False),
        ("FlashL", "CascadeMaskRCNN", True),
        ("FlashT", "MaskRCNN", True),
    ],
)
def test_each_variant_has_its_detector(data, variant, kind, norm, masks):
    known = chosen(data, f"--variant {variant} --weights none --decoder-channels 8 --masks {masks}")
    model = detection.finished_model(known, 2)
    assert type(model) is getattr(models, kind).func
    assert (model.pyramid_norm, model.channels, model.classes) == (norm, 8, 2)
    heads = model.mask_heads_by_name().values()
    assert [head.trainable for head in heads] == [masks == "annotated"] * len(heads)
    if masks == "none":
        pixels = np.asarray(annotated_shapes.draw(0)[0])
        (found,) = Detector(model, threshold=0.0).predict(pixels)
        assert len(found) and found.masks.max() < 1e-6


def test_a_cascade_on_another_detector(trained, data):
    """Of a file with other heads the backbone is taken."""
    known = chosen(data, "--channels 16 --depths 1 1 1 1 --groups 2 4 8 16 --decoder-channels 8")
    assert not detection._is_whole(str(trained / "model.keras"), "mask_rcnn")
    assert detection._is_whole(str(trained / "model.keras"), "cascade_mask_rcnn")
    assert type(detection.finished_model(known, 2)) is models.MaskRCNN.func
    for name, kind, whole in (
        ("cascade_internimage_l_fpn_1x_coco", "cascade_mask_rcnn", True),
        ("cascade_internimage_l_fpn_1x_coco", "mask_rcnn", False),
        ("mask_rcnn_internimage_t_fpn_1x_coco", "mask_rcnn", True),
        ("internimage_l_22k_192to384", "cascade_mask_rcnn", False),
    ):
        assert detection._is_whole(name, kind) == whole


def chosen(data, arguments):
    options = cli.parser().parse_args([str(data), *arguments.split()])
    return settings.choose(options, keras.config.backend(), 2, device.Device("cpu", "CPU"), 2)[0]
