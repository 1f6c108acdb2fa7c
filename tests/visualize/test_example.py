"""The example, with tiny settings, and the pictures of the documentation."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from small_models import SMALL

import keras_internimage
from keras_internimage.variants import function_name

pytest.importorskip("sklearn")
pytestmark = pytest.mark.any_backend
ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURES = ("grad_cam.png", "receptive_field.png", "sampling_points.png")


@pytest.fixture
def visualize(example):
    return example("visualize")


def test_small(visualize, example, monkeypatch, capsys):
    real = keras_internimage.InternImage

    def small(channels, depths, groups, **options):
        return real(**SMALL, **options)

    monkeypatch.setattr(keras_internimage, "InternImage", small)
    visualize.SIDE, visualize.SHOWN = 32, 64
    example.run(visualize, "--small", "--steps", "2", "--out", "seen")
    assert "of 200 new crops right" in capsys.readouterr().out
    assert sorted(path.name for path in pathlib.Path("seen").iterdir()) == list(PICTURES)


@pytest.mark.parametrize("variant", ["T", "FlashT"])
def test_a_photograph_and_official_weights(visualize, example, monkeypatch, tiny, photo, variant):
    def official(weights):
        assert weights == "imagenet"
        return tiny()

    monkeypatch.setattr(keras_internimage, function_name(variant), official)
    Image.fromarray(photo).save("photo.png")
    example.run(visualize, "photo.png", "--at", "40", "20", "--variant", variant)
    assert all(np.asarray(Image.open(name)).ndim == 3 for name in PICTURES)
    with pytest.raises(SystemExit):
        example.run(visualize, "photo.png", "--small")


def test_crops_show_what_they_are_called(visualize):
    """Where on the photographs a class is looked for lies on the photographs."""
    for places in visualize.PLACES.values():
        for _, left, top, right, bottom in places:
            assert 0 <= left < right <= 640 and 0 <= top < bottom <= 427
            assert min(right - left, bottom - top) >= 56


def test_pictures_of_the_documentation():
    text = (ROOT / "docs" / "visualize.md").read_text()
    for name in PICTURES:
        assert f"images/{name}" in text
        path = ROOT / "docs" / "images" / name
        assert path.stat().st_size < 300_000
        assert Image.open(path).size[0] >= 900
