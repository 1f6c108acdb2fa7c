"""Pictures side by side with titles, captions and a bar of colours, drawn by Pillow alone."""

import dataclasses

import numpy as np

from keras_internimage.report.lines import Line, font

# From nothing to most; each step is brighter than the one before, so that it reads in grey too.
COLOURS = (
    (10, 7, 35),
    (63, 15, 110),
    (136, 31, 118),
    (205, 63, 91),
    (246, 122, 56),
    (252, 194, 73),
    (255, 250, 205),
)
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 36), (95, 95, 105)
MARGIN, GAP = 16, 12
TITLE, CAPTION = 20, 16


@dataclasses.dataclass
class Panel:
    """One picture of a row: RGB array, title above, caption below (lines apart by newlines).

    The title may be a user's word; `plain_title` is drawn where no font has its characters.
    """

    picture: np.ndarray
    title: str
    caption: str = ""
    plain_title: str | None = None


def colours(values):
    """Values in [0, 1] as uint8 RGB, between the colours of `COLOURS`."""
    steps = np.linspace(0, 1, len(COLOURS))
    table = np.array(COLOURS, "float64")
    return np.uint8(
        np.round(np.stack([np.interp(values, steps, column) for column in table.T], axis=-1))
    )


def resized(picture, side):
    """An RGB array scaled so that its longer side has `side` pixels."""
    from PIL import Image

    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def overlay(photo, heat):
    """A photograph, grey and dark, under the colours of `heat` in [0, 1] where it is large."""
    grey = photo.astype("float64").mean(axis=-1, keepdims=True)
    base = 0.6 * (0.4 * photo + 0.6 * grey)
    opacity = (0.6 * np.sqrt(heat))[..., None]
    return np.uint8(np.clip(base * (1 - opacity) + colours(0.9 * heat) * opacity, 0, 255))


def row(panels, bar=None):
    """Panels side by side on white, as a uint8 RGB array.

    Args:
        panels: list of `Panel`, with pictures of the same height.
        bar: pair of texts for the ends of a bar of `COLOURS` under the panels, None for no bar.
    """
    from PIL import Image, ImageDraw

    caption_font = font(CAPTION)
    titles = [Line(panel.title, TITLE, panel.plain_title) for panel in panels]
    baseline = MARGIN + font(TITLE).getmetrics()[0]
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def wide(text, used):
        lines = text.splitlines() or [""]
        return int(np.ceil(max(ruler.textlength(line, font=used) for line in lines)))

    widths = [
        max(panel.picture.shape[1], title.width, wide(panel.caption, caption_font))
        for panel, title in zip(panels, titles, strict=True)
    ]
    height = max(p.picture.shape[0] for p in panels)
    lines = max(len(p.caption.splitlines()) for p in panels)
    line_height = CAPTION + 6
    top = MARGIN + (TITLE + 12 if any(p.title for p in panels) else 0)
    below = top + height + (8 if lines else 0)
    total = below + lines * line_height + (30 if bar else 0) + MARGIN
    full = sum(widths) + GAP * (len(panels) - 1) + 2 * MARGIN
    bar_width = 0
    if bar:
        bar_width = min(260, max(120, full // 4))
        texts = wide(bar[0], caption_font) + wide(bar[1], caption_font) + 16
        full = max(full, bar_width + texts + 2 * MARGIN)
    canvas = Image.new("RGB", (full, total), PAPER)
    draw = ImageDraw.Draw(canvas)
    left = (full - sum(widths) - GAP * (len(panels) - 1)) // 2
    for panel, title, width in zip(panels, titles, widths, strict=True):
        middle = left + width / 2
        canvas.paste(
            Image.fromarray(panel.picture), (left + (width - panel.picture.shape[1]) // 2, top)
        )
        title.draw(draw, middle, baseline, INK)
        for number, line in enumerate(panel.caption.splitlines()):
            place = (middle, below + number * line_height)
            draw.text(place, line, FAINT, caption_font, anchor="ma")
        left += width + GAP
    if bar:
        y = total - MARGIN - 14
        x = (full - bar_width - wide(bar[0], caption_font) - wide(bar[1], caption_font) - 16) // 2
        draw.text((x, y + 7), bar[0], FAINT, caption_font, anchor="lm")
        x += wide(bar[0], caption_font) + 8
        strip = np.tile(colours(np.linspace(0, 1, bar_width))[None], (14, 1, 1))
        canvas.paste(Image.fromarray(strip), (x, y))
        draw.text((x + bar_width + 8, y + 7), bar[1], FAINT, caption_font, anchor="lm")
    return np.asarray(canvas)
