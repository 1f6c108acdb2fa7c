"""The Python of docs/detection.md runs as it stands, with small models for the published ones."""

import pathlib
import re

import annotated_shapes
import numpy as np
import pytest
import small_models
from PIL import Image

import keras_internimage
from keras_internimage.data import DetectionFiles, scan_detection
from keras_internimage.training import BoxAugmentation

pytestmark = pytest.mark.any_backend
pytest.importorskip("pycocotools")
PAGE = (pathlib.Path(__file__).resolve().parents[1] / "docs/detection.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
NAME = "mask_rcnn_internimage_t_fpn_3x_coco"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small model for `MaskRCNNT`, a photograph, and a folder as Roboflow exports it."""

    def model(weights=None, backbone_weights=None, classes=80):
        expected = ("coco", None), (NAME, None), (None, "imagenet")
        assert (weights, backbone_weights) in expected
        if backbone_weights is None:
            return small_models.detecting(classes=classes)
        on = small_models.convolutional_backbone()
        return small_models.mask_rcnn(on=on, classes=classes)

    for place in (keras_internimage, keras_internimage.models):
        monkeypatch.setattr(place, "MaskRCNNT", model)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), "uint8")
    Image.fromarray(pixels).save("photo.jpg")
    for part, indices in (("train", range(2)), ("val", range(100, 101))):
        folder = tmp_path / part
        annotations = folder / "_annotations.coco.json"
        annotated_shapes.write(annotations, folder, indices, change=third_class)
    return tmp_path


def third_class(content):
    content["categories"].append({"id": 40, "name": "circle"})


def test_blocks_run(small, capsys):
    images = scan_detection(small)
    still = BoxAugmentation((48,), 64, flip=0.0)
    names = {
        "images": np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype("float32"),
        "train": DetectionFiles(images.train, 1, training=True, augmentation=still),
    }
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"docs/detection.md, Python block {number}", "exec"), names)
        if number == 1:
            printed = capsys.readouterr().out
            assert re.search(r"^\w.* \d+% \[", printed, flags=re.MULTILINE)
            assert names["mask"].shape == (60, 80) and names["rows"][0]["image_id"] == "photo.jpg"
        if number == 2:
            assert names["outputs"]["boxes"].shape == (1, 6, 4) and names["detector"].classes == 80
    history = names["model"].history.history
    assert len(BLOCKS) == 3 and len(history["val_box_ap"]) == len(history["val_mask_ap"]) == 12
    assert np.isfinite(history["loss"]).all()
