"""Label maps as pictures: with a palette, over the image, and with a legend."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_internimage.data.palette import Colour

# Classes of a file with a palette; 255 stands for ignored pixels.
MOST_CLASSES = 255
OPACITY = 0.5
# Pixels of the legend's rows and letters.
_ROW, _LETTERS = 28, 16


def with_palette(labels: np.ndarray, palette: Sequence[Colour]) -> Image.Image:
    """A label map as an image of mode P: its values are the classes' numbers.

    Args:
        labels: `(H, W)`, 0 to `len(palette) - 1`.
        palette: a colour for each class, at most 255.

    Raises:
        ValueError: there are more classes.
    """
    if len(palette) > MOST_CLASSES:
        raise ValueError(
            f"palette must have at most {MOST_CLASSES} colours. Received: {len(palette)}"
        )
    picture = Image.fromarray(labels.astype("uint8"), "L")
    # Numbers of no class are white.
    colours = np.full((256, 3), 255, "uint8")
    colours[: len(palette)] = palette
    picture.putpalette(colours.tobytes())
    return picture


def overlay(
    image: Image.Image, labels: np.ndarray, palette: Sequence[Colour], opacity: float = OPACITY
) -> Image.Image:
    """The colours of the classes over the image."""
    return Image.blend(image, with_palette(labels, palette).convert("RGB"), opacity)


def legend(rows: Sequence[tuple[str, Colour, float]]) -> Image.Image:
    """A picture of `(name, colour, share)` of each class that is there, shares from 0 to 1."""
    font = ImageFont.load_default(_LETTERS)
    texts = [f"{share:6.1%}  {name}" for name, _, share in rows]
    width = max((font.getlength(text) for text in texts), default=0)
    picture = Image.new("RGB", (int(width) + 2 * _ROW, _ROW * max(len(rows), 1)), "white")
    draw = ImageDraw.Draw(picture)
    for number, (text, (_, colour, _)) in enumerate(zip(texts, rows, strict=True)):
        top = number * _ROW
        draw.rectangle((4, top + 4, _ROW - 4, top + _ROW - 4), fill=colour, outline="black")
        draw.text((_ROW + 6, top + _ROW // 2), text, fill="black", font=font, anchor="lm")
    return picture
