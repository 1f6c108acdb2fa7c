"""Titles with users' class names, and what is refused before a model is called."""

import sys

import numpy as np
import pytest
from report.fonts import OTHER, RARE, list_without, make_font

from keras_internimage import visualize
from keras_internimage.visualize import figures

pytestmark = pytest.mark.any_backend
TITLE = figures.TITLE


def drawn(text, instead=None):
    """Which pixels of a title's strip are dark."""
    picture = np.zeros((40, 40, 3), "uint8")
    canvas = figures.row([figures.Panel(picture, text, "", instead)])
    return canvas[: figures.MARGIN + TITLE + 12].min(axis=-1) < 128


def test_titles_are_drawn_in_fonts_that_have_them():
    """Pillow's own font has a box for all that is not ASCII."""
    boxes = figures.font(TITLE).getlength("\U0010ffff")
    for name in ("äöü", "Ωмега", "œuf – ½"):
        for used, text in figures.Line(name, TITLE).runs:
            assert "DejaVu" in used.getname()[0]
            assert bytes(used.getmask(text)) != bytes(figures.font(TITLE).getmask(text))
        assert figures.Line(name, TITLE).width != len(name) * boxes
    (run,) = figures.Line("cat, 2", TITLE).runs
    assert run[0].getname() == figures.font(TITLE).getname() and run[1] == "cat, 2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    forget = list_without(tmp_path, monkeypatch)
    yield tmp_path
    forget()


def test_a_font_that_is_newer_than_matplotlibs_list(folder):
    make_font(folder / "new.ttf", "Newer", [RARE])
    runs = figures.Line(f"ä {RARE}{RARE} b", TITLE).runs
    assert [text for _, text in runs] == ["ä ", RARE * 2, " b"]
    assert [used.getname()[0] for used, _ in runs] == ["DejaVu Sans", "Newer", "DejaVu Sans"]
    # The glyph is a square of 14 pixels in an advance of 25.
    found = drawn(RARE)
    assert 150 < found.sum() < 230 and found.any(axis=0).sum() == pytest.approx(14, abs=1)


def test_what_no_font_has_becomes_the_number():
    np.testing.assert_array_equal(drawn(OTHER, "Class 7"), drawn("Class 7"))
    assert figures.Line(f"a long name {OTHER}", TITLE, "Class 7").runs[0][1].endswith("\ufffd")
    assert figures.Line("two\nlines\x00", TITLE).runs[0][1] == "two lines "


def test_titles_stay_within_the_drawing():
    for name in ("ÄÊ" * 40, "g" * 90):
        found = drawn(name)
        assert found.any() and not found[:8].any()
        assert not found[:, :8].any() and not found[:, -8:].any()


def test_grad_cam_of_classes_with_such_names(classifier, photo):
    plain = visualize.draw_grad_cam(classifier, photo, 1, side=120)
    names = ["a", OTHER, "c", "d", "e"]
    numbered = visualize.draw_grad_cam(classifier, photo, 1, labels=names, side=120)
    np.testing.assert_array_equal(numbered, plain)
    accented = visualize.draw_grad_cam(classifier, photo, 1, labels=list("aäcde"), side=120)
    assert (accented != plain).any()


@pytest.mark.parametrize("count", [4, 6])
def test_each_class_must_have_a_label(classifier, photo, count):
    with pytest.raises(ValueError, match=f"each of the model's 5 classes. Received: {count} names"):
        visualize.draw_grad_cam(classifier, photo, 1, labels=["a"] * count)


@pytest.mark.parametrize("name", ["sampling_points", "receptive_field", "grad_cam"])
def test_refused_before_the_model_is_called(classifier, photo, tmp_path, monkeypatch, name):
    def observe(*_):
        raise AssertionError("the model was called")

    monkeypatch.setattr("keras_internimage.visualize.network.observe", observe)
    draw = getattr(visualize, f"draw_{name}")
    with pytest.raises(ValueError, match="`path` must end in .png"):
        draw(classifier, photo, path=tmp_path / "picture.jpg")
    with pytest.raises(FileNotFoundError, match="folder of `path`"):
        draw(classifier, photo, path=tmp_path / "nowhere" / "a.png")
    with pytest.raises(ValueError, match="`side` must be an int, at least 32"):
        draw(classifier, photo, side=31)
    if name == "grad_cam":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        message = r"matplotlib must be installed.*\[report\]'. Received: labels with 'ä'"
        with pytest.raises(ModuleNotFoundError, match=message):
            draw(classifier, photo, labels=["a", "ä"])
