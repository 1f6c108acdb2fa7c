"""The example, with tiny settings, and the pictures of the documentation."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

import keras_internimage

pytest.importorskip("sklearn")
pytestmark = pytest.mark.any_backend
ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURES = ("grad_cam.png", "receptive_field.png", "sampling_points.png")


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Runs the example's main() in a new folder."""
    monkeypatch.chdir(tmp_path)
    file = ROOT / "examples" / "visualize.py"
    spec = importlib.util.spec_from_file_location("example_visualize", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(file), *arguments])
        module.main()

    run.module = module
    return run


def test_small(example, monkeypatch, capsys):
    real = keras_internimage.InternImage

    def small(channels, depths, groups, **options):
        return real(16, (1, 1, 1, 1), (1, 2, 4, 8), **options)

    monkeypatch.setattr(keras_internimage, "InternImage", small)
    example.module.SIDE, example.module.SHOWN = 32, 64
    example("--small", "--steps", "2", "--out", "seen")
    assert "of 200 new crops right" in capsys.readouterr().out
    assert sorted(path.name for path in pathlib.Path("seen").iterdir()) == list(PICTURES)


def test_a_photograph_and_official_weights(example, monkeypatch, tiny, photo):
    def official(weights):
        assert weights == "imagenet"
        return tiny()

    monkeypatch.setattr(keras_internimage, "InternImageT", official)
    Image.fromarray(photo).save("photo.png")
    example("photo.png", "--at", "40", "20")
    assert all(np.asarray(Image.open(name)).ndim == 3 for name in PICTURES)
    with pytest.raises(SystemExit):
        example("photo.png", "--small")


def test_crops_show_what_they_are_called(example):
    """Where on the photographs a class is looked for lies on the photographs."""
    for places in example.module.PLACES.values():
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
