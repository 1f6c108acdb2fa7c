"""The example of detection, with tiny settings, and the documentation's numbers."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from small_models import TINY

import keras_internimage
from keras_internimage.checkpoints import published
from keras_internimage.commands import detect

pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")
pytestmark = pytest.mark.any_backend
ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs/detection.md").read_text()


@pytest.fixture
def module(example):
    return example("detect")


def test_it_leaves_a_model_for_the_commands(module, example, monkeypatch, capsys):
    backbone = keras_internimage.InternImageBackbone
    monkeypatch.setattr(
        keras_internimage,
        "InternImageBackbone",
        lambda channels, depths, groups, **options: backbone(**TINY, **options),
    )
    monkeypatch.setattr(module, "SIDE", 64)
    monkeypatch.setattr(module, "LARGEST", 40)
    monkeypatch.setattr(module, "EVALUATED", 1)
    example.run(module, "--steps", "2", "--out", "detector")
    printed = capsys.readouterr().out
    for photograph in ("tower", "flower"):
        assert re.search(rf"[0-9]+ shapes over the {photograph}: box AP 0\.[0-9]+, ", printed)
    assert Image.open("detector/detection.jpg").size == (808, 542)
    Image.fromarray(np.zeros((32, 48, 3), "uint8")).save("photo.png")
    options = "--shorter-side", "64", "--threshold", "0"
    assert detect.main(["detector", "photo.png", "--out", "out", *options]) == 0
    assert pathlib.Path("out/pictures/photo.jpg").is_file()


def test_shapes(module):
    """Boxes are those of what is seen, in the image's colours; nothing is hidden."""
    plain = Image.new("RGB", (200, 150), (0, 0, 0))
    for seed in range(10):
        image, boxes, labels, masks = module.with_shapes(plain, 4, np.random.default_rng(seed))
        assert len(boxes) == len(labels) == len(masks) and set(labels) <= set(range(4))
        assert masks.sum(0).max() <= 1
        for (left, top, right, bottom), mask in zip(boxes.astype(int), masks, strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum() > 100
            assert mask[top:bottom, left].any() and mask[top, left:right].any()
            assert mask[bottom - 1].any() and mask[:, right - 1].any()
    circle, square, triangle, star = (module.outline(label, 100, 0.0) for label in range(4))
    assert np.abs(np.hypot(*(circle - 50).T) - 50).max() < 1e-9
    assert len(square) == 4 and len(triangle) == 3 and len(star) == 10


def test_batches_are_what_fit_takes(module):
    photograph = Image.new("RGB", (200, 150), (90, 90, 90))
    x, y = module.Shapes(photograph, 2, batch_size=3)[1]
    assert x["images"].shape == (3, module.SIDE, module.SIDE, 3)
    there = y["labels"] >= 0
    assert there.any(1).all() and (y["masks"].any((2, 3)) == there).all()
    again = module.Shapes(photograph, 2, batch_size=3)[1][0]["images"]
    np.testing.assert_array_equal(x["images"], again)


def test_published_numbers_of_the_documentation():
    rows = re.findall(r"^\| `(.+)` \| (.+) \| (.+) \| .+ \|$", DOCS, re.MULTILINE)
    known = [published.find(name) for name in published.names("detection")]
    assert sorted(rows) == sorted((x.name, str(x.box_ap), str(x.mask_ap)) for x in known)


def test_the_picture_of_the_documentation():
    assert "images/detection.jpg" in DOCS
    with Image.open(ROOT / "docs/images/detection.jpg") as picture:
        assert picture.size == (808, 542)
