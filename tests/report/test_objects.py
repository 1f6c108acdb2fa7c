"""Objects drawn over images: what stands out, and where words lie."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from keras_internimage.data.palette import bright_palette
from keras_internimage.detector import Detections
from keras_internimage.detector.drawing import Drawing
from keras_internimage.report.objects import Drawn, draw_objects

pytestmark = pytest.mark.any_backend
RED = (255, 0, 0)


def mask(*rows_and_columns):
    top, bottom, left, right = rows_and_columns
    return slice(top, bottom), slice(left, right), np.ones((bottom - top, right - left), bool)


@pytest.mark.parametrize("ground", ["white", "black"])
def test_boxes_and_words_stand_out(ground):
    image = Image.new("RGB", (200, 150), ground)
    made = np.asarray(draw_objects(image, [Drawn((20, 50, 160, 130), RED, "cat 90%")]))
    assert (made[80, 20] == RED).all() and (made[50, 100] == RED).all()  # the frame
    assert (made[80, 19] == 0).all() and (made[80, 22] == 0).all()  # dark around it and inside
    assert (made[90, 90] == np.asarray(image)[90, 90]).all()
    words = made[25:48, 20:90].reshape(-1, 3)
    assert (words == 255).all(1).any() and (words == 0).all(1).any()
    assert np.asarray(image).std() == 0  # a copy was drawn on


def test_masks_let_the_image_through_and_the_first_is_on_top():
    image = Image.new("RGB", (100, 80), (0, 0, 200))
    low = Drawn((10, 10, 60, 60), (0, 255, 0), mask=mask(10, 60, 10, 60))
    high = Drawn((30, 30, 90, 70), RED, mask=mask(30, 70, 30, 90))
    made = np.asarray(draw_objects(image, [high, low])).astype(int)
    np.testing.assert_array_equal(made[20, 20], [0, 102, 120])
    np.testing.assert_array_equal(made[65, 75], [102, 0, 120])
    assert made[45, 45, 0] == 102 and 0 < made[45, 45, 1] < 102


def test_words_do_not_cover_each_other_nor_leave_the_image():
    """The same box three times, at the upper right corner; and one larger than the image."""
    boxes = [(150, 0, 200, 90)] * 3 + [(-50, -50, 400, 400)]
    spots, image = [], Image.new("RGB", (200, 100))
    for count in range(1, 5):
        objects = [Drawn(box, RED, f"word {i}") for i, box in enumerate(boxes[:count])]
        plain = [Drawn(box, RED) for box in boxes[:count]]
        made, without = (np.asarray(draw_objects(image, x), int) for x in (objects, plain))
        spots.append((made != without).any(-1).sum())
    assert all(later > 0.9 * (n + 2) * spots[0] for n, later in enumerate(spots[1:]))


def test_tiny_boxes_and_images():
    image = Image.new("RGB", (3, 3))
    made = draw_objects(image, [Drawn((1, 1, 1.2, 1.1), RED, "x" * 40, mask(1, 2, 1, 2))])
    assert made.size == (3, 3)


def test_colours_are_bright_and_differ():
    colours = np.array(bright_palette(80))
    assert len({tuple(x) for x in colours.tolist()}) == 80 and (colours.max(1) == 255).all()
    assert np.abs(np.diff(colours, axis=0)).max(1).min() > 80


class TestNames:
    found = Detections(
        60,
        80,
        np.array([[10, 30, 50, 55]], "float32"),
        np.array([1]),
        np.array([0.7], "float32"),
        np.ones((1, 28, 28), "float32"),
    )

    def test_picture(self):
        image = Image.new("RGB", (80, 60), "gray")
        made = np.asarray(Drawing(["a", "b"]).draw(image, self.found), int)
        assert np.abs(made[45, 30] - 128).max() > 30  # its mask
        assert (made[52, 70] == 128).all()
        with pytest.raises(ValueError, match="a colour for each of 2 classes. Received: 1 col"):
            Drawing(["a", "b"], palette=[(1, 2, 3)])

    def test_no_font_or_no_matplotlib(self, monkeypatch):
        pytest.importorskip("matplotlib")
        said = []
        unknown = "\U0010fffd" * 3
        assert Drawing(["a", "Bär", unknown], said.append).names == ("a", "Bär", "#2")
        assert said == [
            f"names are drawn as numbers where no font has their characters, as of {unknown}"
        ]
        said.clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert Drawing(["a", "Bär"], said.append).names == ("a", "#1")
        assert "keras-internimage[report]'), as for Bär" in said[0]
