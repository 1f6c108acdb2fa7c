"""Detections as pictures: masks, boxes, and the name and probability of each."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from keras_internimage.data.palette import Colour, bright_palette
from keras_internimage.detector.detections import Detections
from keras_internimage.report.lettering import Lettering, class_labels
from keras_internimage.report.objects import Drawn, draw_objects

if TYPE_CHECKING:
    import PIL.Image


class Drawing:
    """Draws the detections of images.

    Args:
        class_names: of the classes, by label.
        say: is given a remark where names cannot be drawn: Pillow's own font has ASCII alone, and
            others are found by matplotlib.
        palette: a colour for each class; None takes bright ones.

    Raises:
        ValueError: the colours are not as many as the classes.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        say: Callable[[str], object] = lambda text: None,
        palette: Sequence[Colour] | None = None,
    ):
        self.palette = tuple(palette or bright_palette(len(class_names)))
        if len(self.palette) != len(class_names):
            raise ValueError(
                f"palette must have a colour for each of {len(class_names)} classes. "
                f"Received: {len(self.palette)} colours"
            )
        self.names = _drawable(class_names, say)

    def draw(
        self, image: "PIL.Image.Image", detections: Detections, letters: int | None = None
    ) -> "PIL.Image.Image":
        """A copy of an image with the detections over it, the most probable on top.

        Args:
            image: of Pillow, RGB, upright.
            detections: of it.
            letters: height of the letters in pixels; None takes 1/40 of the longer side, at
                least 12.
        """
        objects = [
            Drawn(
                box,
                self.palette[label],
                f"{self.names[label]} {score:.0%}",
                _Window(detections, index),
            )
            for index, (box, label, score) in enumerate(
                zip(detections.boxes, detections.labels, detections.scores, strict=True)
            )
        ]
        return draw_objects(image, objects, letters)


def _drawable(names, say):
    """The names, or numbers where they cannot be drawn."""
    others = [name for name in names if not name.isascii()]
    if not others:
        return tuple(names)
    if importlib.util.find_spec("matplotlib") is None:
        say(
            "names that are not ASCII are drawn as numbers: matplotlib finds fonts for them "
            f"(pip install 'keras-internimage[report]'), as for {others[0]}"
        )
        return tuple(name if name.isascii() else f"#{i}" for i, name in enumerate(names))
    drawn = tuple(class_labels(names, Lettering(others)))
    lost = [name for i, name in enumerate(names) if drawn[i] == f"#{i}" != name]
    if lost:
        say(f"names are drawn as numbers where no font has their characters, as of {lost[0]}")
    return drawn


class _Window:
    """The mask of an object, made when it is drawn: all of them would be large."""

    def __init__(self, detections, index):
        self.detections, self.index = detections, index

    def __iter__(self):
        return iter(self.detections.window(self.index))
