"""The example of segmentation, with tiny settings, and its picture in the documentation."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from small_models import TINY

import keras_internimage
from keras_internimage.commands import segment

pytest.importorskip("sklearn")
pytestmark = pytest.mark.any_backend
ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def module(example):
    return example("segment")


def test_it_leaves_a_model_for_the_commands(module, example, monkeypatch, capsys):
    backbone = keras_internimage.InternImageBackbone
    monkeypatch.setattr(
        keras_internimage,
        "InternImageBackbone",
        lambda channels, depths, groups, **options: backbone(**TINY, **options),
    )
    monkeypatch.setattr(module, "SIDE", 32)
    example.run(module, "--steps", "2", "--out", "segmenter")
    assert "held out are right" in capsys.readouterr().out
    assert Image.open("segmenter/segmentation.jpg").size == (808, 542)
    Image.fromarray(np.zeros((32, 48, 3), "uint8")).save("photo.png")
    assert segment.main(["segmenter", "photo.png", "--out", "out"]) == 0, capsys.readouterr().err
    assert (
        pathlib.Path("out/classes.txt").read_text()
        == pathlib.Path("segmenter/classes.txt").read_text()
    )


def test_polygons_do_not_overlap_and_crops_leave_the_strip_out(module):
    size = (640, 427)
    total = np.zeros(size[::-1], int)
    for number, name in enumerate(module.CLASSES):
        one = {name: module.CLASSES[name]}
        mask = module.drawn_mask(size, one)
        total += mask == 0
        assert (mask == 0).sum() == (module.drawn_mask(size) == number).sum()
    assert total.max() == 1 and (total == 0).mean() < 0.2
    marked = np.zeros((*size[::-1], 3), "uint8")
    marked[:, slice(*module.HELD_OUT)] = 255
    rng = np.random.default_rng(0)
    images, masks = module.crops(Image.fromarray(marked), marked[..., 0], 40, rng)
    assert images.shape == (40, 128, 128, 3) and not masks.any() and images.max() < 40


def test_picture_of_the_documentation():
    assert "images/segmentation.jpg" in (ROOT / "docs/segmentation.md").read_text()
    picture = ROOT / "docs/images/segmentation.jpg"
    assert picture.stat().st_size < 150_000 and Image.open(picture).size == (808, 542)
