"""Objects drawn over an image: masks, boxes and words that are read on any photograph."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from keras_internimage.data.palette import Colour
from keras_internimage.report.lines import Line

_OPACITY = 0.4
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)
# Of the longer side of an image; and the least, in pixels.
_LETTERS, _LEAST_LETTERS = 0.025, 12
_LINE, _LEAST_LINE = 0.0025, 2


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """An object as it is drawn.

    Attributes:
        box: left, top, right, bottom in pixels.
        colour: of the box and the mask.
        words: beside the box; none for an empty text.
        mask: iterable of `rows, columns, covered`: slices of the image, and booleans; None for no
            mask.
        heavy: whether the box has thick lines.
    """

    box: Sequence[float]
    colour: Colour
    words: str = ""
    mask: Iterable | None = None
    heavy: bool = False


def draw_objects(image, objects: Sequence[Drawn], letters: int | None = None):
    """A copy of an image with objects over it, the first one on top.

    Boxes and words have a dark outline, words are white: they stand out from light and from dark
    pixels. Words lie above their box, or inside, or below, where there is room.

    Args:
        image: of Pillow, RGB.
        objects: `Drawn`.
        letters: height of the letters in pixels; None takes 1/40 of the longer side, at least 12.
    """
    from PIL import Image, ImageDraw

    size = letters or max(_LEAST_LETTERS, round(_LETTERS * max(image.size)))
    line = max(_LEAST_LINE, round(_LINE * max(image.size)))
    pixels = np.array(image)
    for one in reversed(objects):
        if one.mask is not None:
            _lay(pixels, one, line)
    made = Image.fromarray(pixels)
    draw = ImageDraw.Draw(made)
    for one in reversed(objects):
        _frame(draw, one, line * (2 if one.heavy else 1))
    taken: list[tuple[float, float, float, float]] = []
    written = [(one, Line(one.words, size)) for one in objects if one.words]
    places = [_place(one.box, words.width, size, made.size, taken) for one, words in written]
    for (_, words), (left, top) in reversed(list(zip(written, places, strict=True))):
        middle, baseline = left + words.width / 2, top + round(0.8 * size)
        outline = {"stroke_width": max(1, round(size / 8)), "stroke_fill": _DARK}
        words.draw(draw, middle, baseline, _LIGHT, **outline)
    return made


def _lay(pixels, one, line):
    """A mask over the pixels, with its rim in the full colour."""
    rows, columns, covered = one.mask
    part = pixels[rows, columns]
    colour = np.array(one.colour, "float32")
    part[covered] = np.rint((1 - _OPACITY) * part[covered] + _OPACITY * colour)
    inner = covered.copy()
    for axis in (0, 1):
        inside, moved = np.moveaxis(inner, axis, 0), np.moveaxis(covered, axis, 0)
        inside[line:] &= moved[:-line]
        inside[:-line] &= moved[line:]
    part[covered & ~inner] = one.colour


def _frame(draw, one, line):
    left, top, right, bottom = (round(float(x)) for x in one.box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    # Thinner where a box would be filled.
    line = min(line, max(1, min(right - left, bottom - top) // 6))
    rim = (line + 1) // 2
    # Around it and within, so that the colour lies between two dark lines.
    for grow, width, colour in ((rim, 2 * rim + line, _DARK), (0, line, one.colour)):
        around = (left - grow, top - grow, right + grow, bottom + grow)
        if around[2] - around[0] >= 2 * width and around[3] - around[1] >= 2 * width:
            draw.rectangle(around, outline=colour, width=width)
        else:  # too small for a hole
            draw.rectangle(around, fill=colour)


def _place(box, width, size, limits, taken):
    """Where words begin, left and top: the first place that touches no other words."""
    left, top, right, bottom = (float(x) for x in box)
    height, gap = round(1.1 * size), size // 4
    places = [
        (left, top - height - gap),
        (left + gap, top + gap),
        (left + gap, bottom - height - gap),
        (left, bottom + gap),
        (right - width - gap, top + gap),
        (right - width - gap, bottom - height - gap),
    ]
    # And further down, line by line.
    places += [(left + gap, y) for y in range(int(top) + gap, limits[1], height)]
    kept = []
    for x, y in places:
        # Words never leave the image.
        x = min(max(x, gap), max(limits[0] - width - gap, 0))
        if y < 0 or y + height > limits[1]:
            continue
        spot = (x, y, x + width, y + height)
        kept.append(spot)
        if not any(_touch(spot, other) for other in taken):
            break
    else:
        y = min(max(top, 0), max(limits[1] - height, 0))
        x = min(max(left, 0), max(limits[0] - width, 0))
        spot = kept[0] if kept else (x, y, x + width, y + height)
    taken.append(spot)
    return spot[:2]


def _touch(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
