"""Colours of classes, and `classes.txt`, which names them."""

import colorsys
import pathlib
import re
from collections.abc import Sequence

FILE = "classes.txt"
# A line of this name gives the colour of pixels that belong to no class.
IGNORED = "ignore"

Colour = tuple[int, int, int]


def default_palette(classes: int) -> tuple[Colour, ...]:
    """Colours that are told apart, those of PASCAL VOC: black, dark red, dark green, olive, ...

    Bits 0, 1 and 2 of a class' number are the highest bits of red, green and blue, bits 3, 4 and 5
    the next ones, and so on.
    """
    colours = []
    for number in range(classes):
        red = green = blue = 0
        for place in range(8):
            bits = number >> (3 * place)
            red |= (bits & 1) << (7 - place)
            green |= (bits >> 1 & 1) << (7 - place)
            blue |= (bits >> 2 & 1) << (7 - place)
        colours.append((red, green, blue))
    return tuple(colours)


def bright_palette(classes: int) -> tuple[Colour, ...]:
    """Colours for lines over photographs: bright, each far from the one before.

    Hues are a golden section apart; every second round is paler.
    """
    colours = []
    for number in range(classes):
        hue = (number * 0.618034 + 0.97) % 1
        saturation = (0.95, 0.6)[number // 8 % 2]
        part = colorsys.hsv_to_rgb(hue, saturation, 1.0)
        red, green, blue = (round(255 * value) for value in part)
        colours.append((red, green, blue))
    return tuple(colours)


def read_classes(
    path: pathlib.Path,
) -> tuple[tuple[str, ...], tuple[Colour, ...], tuple[Colour, ...]]:
    """Names, colours and the colours of ignored pixels of a `classes.txt`.

    The lines are `name` or `name R G B`, the class 0 first; a name may hold spaces. A line
    `ignore R G B` is no class: pixels of that colour count nowhere. There are no comments.

    Returns:
        `(names, palette, ignored)`; the last two are empty where the lines have no colours.

    Raises:
        ValueError: it is no such file; the message names the line.
    """
    try:
        lines = path.read_text("utf-8-sig").rstrip().splitlines()
    except ValueError as error:
        raise ValueError(f"{path} must be UTF-8 text. Received: {error}") from error
    names: list[str] = []
    palette: list[Colour] = []
    ignored: list[Colour] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        match = re.fullmatch(r"(.*\S)\s+(\d+)\s+(\d+)\s+(\d+)", text)
        name = match[1] if match else text
        colour = (int(match[2]), int(match[3]), int(match[4])) if match else None
        problem = None
        if not name:
            problem = "an empty line"
        elif text.startswith("#"):
            problem = f"{text}: there are no comments"
        elif colour is None and re.search(r"\d[\s,;]+\d+[\s,;]+\d", text):
            problem = f"{text}: a colour is three numbers at the end, after spaces"
        elif colour is not None and max(colour) > 255:
            problem = f"{text}: colours are numbers of 0 to 255"
        elif colour in palette or colour in ignored:
            problem = f"{text}: the colour of another class"
        elif name.lower() == IGNORED and colour is not None:
            ignored.append(colour)
            continue
        elif name in names:
            problem = f"{name}, a second time"
        elif names and bool(palette) != (colour is not None):
            problem = f"{text}: either all lines have a colour, or none has"
        if problem:
            raise ValueError(
                f"{path} must have lines `name` or `name R G B`, one for each class. "
                f"Received: line {number}: {problem}"
            )
        names.append(name)
        if colour is not None:
            palette.append(colour)
    if not names:
        raise ValueError(f"{path} must name at least one class. Received: an empty file")
    if len(names) > 255:
        raise ValueError(
            f"{path} must have at most 255 classes: 255 stands for ignored pixels. "
            f"Received: {len(names)}"
        )
    return tuple(names), tuple(palette), tuple(ignored)


def classes_text(names: Sequence[str], palette: Sequence[Colour]) -> str:
    """The content of a `classes.txt` that `read_classes` reads: `name R G B` lines.

    Without colours where two classes share one, as in ADE20K, or where a class is called as pixels
    of no class are.
    """
    coloured = len(set(palette)) == len(palette)
    if not coloured or any(name.lower() == IGNORED for name in names):
        return "".join(f"{name}\n" for name in names)
    return "".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in zip(names, palette, strict=True))
