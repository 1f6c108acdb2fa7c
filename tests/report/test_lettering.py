"""Which fonts are found for users' names, and how names are made to fit."""

import pytest
from report.fonts import OTHER, RARE, list_without, make_font

from keras_internimage.report import lettering, style

pytestmark = pytest.mark.any_backend


@pytest.fixture
def folder(tmp_path, monkeypatch):
    forget = list_without(tmp_path, monkeypatch)
    yield tmp_path
    forget()


@pytest.mark.parametrize("family", ["NanumGothic X", "Noto Sans KR"])
def test_a_font_that_is_newer_than_the_list_is_used(folder, family):
    """Of a family that is known, or of any other."""
    make_font(folder / "new.ttf", family, [RARE])
    (folder / "damaged.ttf").write_bytes(b"no font")
    letters = lettering.Lettering([f"cat {RARE}"])
    assert letters.families == ["DejaVu Sans", family]
    assert letters.missing == set() and letters.drawable(RARE) == RARE
    assert letters.width(RARE, 10) == pytest.approx(12.34, abs=0.3)


def test_the_list_is_extended_only_where_characters_are_missing(folder, monkeypatch):
    make_font(folder / "new.ttf", "Newer", [RARE])
    asked = []
    monkeypatch.setattr(lettering, "_add_new_fonts", lambda: asked.append(1))
    assert lettering.Lettering(["cat", "e\u0301té ẞ Ω"]).families == ["DejaVu Sans"]
    assert not asked
    assert lettering.Lettering([RARE]).missing == {RARE}
    assert asked


def test_no_warnings_of_fonts(folder, caplog):
    """A family without a bold weight, as most of the fallback families are."""
    make_font(folder / "new.ttf", "Newer", [RARE])
    letters = lettering.Lettering([RARE])
    with style.drawing(letters.families):
        assert letters.width(RARE, 9, "bold") == pytest.approx(9 * 1.234, abs=0.3)
    assert not caplog.records


def test_several_fonts_together(folder):
    make_font(folder / "a.ttf", "Aaa", [RARE])
    make_font(folder / "b.ttf", "Bbb", [OTHER, RARE])
    assert lettering.Lettering([OTHER + RARE]).families == ["DejaVu Sans", "Aaa", "Bbb"]
    assert lettering.Lettering([OTHER]).families == ["DejaVu Sans", "Bbb"]


def test_fonts_of_boxes_are_no_help(folder):
    """Systems have fonts that draw a box for every character."""
    make_font(folder / "boxes.ttf", "Last Resort", [RARE])
    assert lettering.Lettering([RARE]).missing == {RARE}


def test_pictures_with_names_in_the_new_font(folder, tmp_path):
    """Drawn without matplotlib's warning of a glyph that is missing."""
    import numpy as np
    from report.test_pictures import assert_within

    from keras_internimage.report import matrix

    make_font(folder / "new.ttf", "Newer", [RARE])
    letters = lettering.Lettering([RARE * 3, "cat"])
    names = lettering.class_labels([RARE * 3, "cat"], letters)
    assert names == [RARE * 3, "cat"]
    with style.drawing(letters.families):
        figure = matrix.draw(np.eye(2, dtype=int), names, style.LIGHT, letters)
        shown = [text for text, _ in assert_within(figure)]
    assert RARE * 3 in shown


def test_names_are_shortened_to_the_room_there_is():
    letters = lettering.Lettering()
    assert letters.fitted("short", 9, 100) == "short"
    name = "Canis lupus familiaris, the golden retriever"
    short = letters.fitted(name, 9, 100)
    begin, end = short.split(lettering.ELLIPSIS)
    assert name.startswith(begin) and name.endswith(end) and len(begin) > len(end) > 2
    assert letters.width(short, 9) <= 100 < letters.width(name, 9)


def test_names_that_no_font_draws_become_numbers():
    unassigned = "\U0001fbff\U000e0fff"
    names = ["cat", unassigned, f"mostly readable {unassigned[1]}"]
    letters = lettering.Lettering(names)
    assert lettering.class_labels(names, letters) == ["cat", "#1", "mostly readable \ufffd"]
