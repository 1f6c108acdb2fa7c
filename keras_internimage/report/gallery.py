"""The worst mistakes: images, true and predicted classes."""

import dataclasses

import numpy as np

from keras_internimage import preprocessing
from keras_internimage.report import metrics, style
from keras_internimage.report.text import clean, count, percent, short_path

SHOWN = 24
COLUMNS = 6
SIDE = 280  # pixels of a thumbnail
GAP = 0.08  # inches between pictures of the same image
VALIDATED = "validation image"


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One misclassified image. `image` is uint8 `(h, w, 3)`, its longer side SIDE."""

    index: int
    true: int
    predicted: int
    probability: float
    true_probability: float
    path: str
    image: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The mistakes that are shown, the number of all, and the files that could not be read."""

    mistakes: list[Mistake]
    total: int
    images: int
    unreadable: list[tuple[str, str]]

    def heading(self):
        """One sentence on how many there are."""
        if not self.images:
            return "No validation images."
        if not self.total:
            return f"No mistakes among {count(self.images, VALIDATED)}."
        shown = len(self.mistakes)
        if not shown:
            return f"{self.total:,} of {count(self.images, VALIDATED)} wrong; none can be shown."
        if self.unreadable:
            return f"{shown} of {self.total:,} mistakes"
        if shown == self.total:
            return f"All {shown} mistakes" if shown > 1 else "The only mistake"
        worst = f"{shown} worst" if shown > 1 else "worst"
        return f"The {worst} of {self.total:,} mistakes"

    def note(self):
        """One sentence on files that could not be read; empty where there are none."""
        if not self.unreadable:
            return ""
        named = ", ".join(clean(short_path(path)) for path, _ in self.unreadable[:3])
        more = len(self.unreadable) - 3
        return f"Left out, as they cannot be read: {named}" + (
            f" and {more} more." if more > 0 else "."
        )


def collect(results, most=SHOWN):
    """Reads the `most` worst mistakes of `results` that can be read, worst first."""
    order = metrics.worst_mistakes(results.labels, results.scores)
    predicted = metrics.predictions(results.scores)
    read = results.read or preprocessing.read_image
    mistakes, unreadable = [], []
    for index in order:
        if len(mistakes) == most or len(unreadable) == 10 * most:
            break
        path = results.files[index]
        try:
            image = _thumbnail(read(path))
        except Exception as error:  # decoders raise anything; the report names the file
            unreadable.append((path, str(error)))
            continue
        mistakes.append(
            Mistake(
                index=int(index),
                true=int(results.labels[index]),
                predicted=int(predicted[index]),
                probability=float(results.scores[index, predicted[index]]),
                true_probability=float(results.scores[index, results.labels[index]]),
                path=clean(short_path(path)),
                image=image,
            )
        )
    return Gallery(mistakes, len(order), len(results.labels), unreadable)


def draw(gallery, names, theme, lettering):
    """A figure of the gallery: a thumbnail each, below it what was predicted and what is true."""
    heading, note = gallery.heading(), gallery.note()
    columns = min(COLUMNS, max(3, len(gallery.mistakes)))
    rows = -(-len(gallery.mistakes) // columns)
    cell, words, gap, margin = 1.75, 0.72, 0.22, 0.3  # inches
    top, bottom = 0.95 if rows else 0.75, 0.5 if note else 0.15
    width = 2 * margin + columns * cell + (columns - 1) * gap
    height = top + rows * (cell + words) + max(rows - 1, 0) * gap * 0.5 + bottom
    made = style.figure(width, height, theme)
    say = writer(made, lettering, cell)
    say(margin, 0.45, heading, 12, theme.ink, "bold", width - 2 * margin)
    if rows:
        caption = "The predicted class and its probability, then the true class. "
        caption += "The most confidently wrong come first."
        say(margin, 0.68, caption, 9, theme.muted, room=width - 2 * margin)
    for i, mistake in enumerate(gallery.mistakes):
        row, column = divmod(i, columns)
        x = margin + column * (cell + gap)
        y = top + row * (cell + words + gap * 0.5)
        show(made, x, y, cell, mistake.image, theme)
        y += cell + 0.2
        number = percent(mistake.probability)
        # Two texts: a name written from right to left would turn the number's order, too.
        indent = lettering.width(f"{number}  ", 9, "bold") / 72
        say(x, y, number, 9, theme.wrong, "bold")
        say(x + indent, y, names[mistake.predicted], 9, theme.wrong, "bold", cell - indent)
        say(x, y + 0.18, f"true: {names[mistake.true]}", 9, theme.ink)
        say(x, y + 0.35, mistake.path, 7, theme.muted)
    if note:
        say(margin, height - 0.2, note, 8.5, theme.muted, room=width - 2 * margin)
    return made


def sheet(worst, caption, most, size, words, theme, lettering):
    """An empty figure for the pictures of `worst.seen`, with its heading.

    Args:
        worst: has `seen`, what is shown, and `heading()`.
        caption: below the heading, if anything is shown.
        most: columns at most.
        size: width and height of one's pictures, in inches.
        words: inches below them.

    Returns:
        The figure, a `writer`, and where each one's pictures begin, from the left and the top.
    """
    columns = min(most, max(1, len(worst.seen)))
    rows = -(-len(worst.seen) // columns)
    between, margin, top = 0.4, 0.3, 0.95 if rows else 0.75
    width = 2 * margin + columns * size[0] + (columns - 1) * between
    made = style.figure(width, top + rows * (size[1] + words) + 0.15, theme)
    say = writer(made, lettering, size[0])
    say(margin, 0.45, worst.heading(), 12, theme.ink, "bold", width - 2 * margin)
    if rows:
        say(margin, 0.68, caption, 9, theme.muted, room=width - 2 * margin)
    places = [divmod(i, columns) for i in range(len(worst.seen))]
    at = [(margin + j * (size[0] + between), top + i * (size[1] + words)) for i, j in places]
    return made, say, at


def writer(made, lettering, room):
    """A function that writes text into a figure: inches from the left and the top, and so on."""
    width, height = made.get_size_inches()
    inches = {"va": "baseline", "ha": "left"}

    def say(x, y, text, size, colour, weight="normal", room=room):
        text = lettering.fitted(lettering.drawable(text), size, room * 72, weight)
        place = (x / width, 1 - y / height)
        made.text(*place, text, fontsize=size, color=colour, fontweight=weight, **inches)

    return say


def _thumbnail(image):
    from PIL import Image

    image = preprocessing.read_image(image)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if max(image.size) < SIDE:  # tiny images are shown large, their pixels as they are
        factor = SIDE / max(image.size)
        size = [max(1, round(side * factor)) for side in image.size]
        image = image.resize(size, Image.Resampling.NEAREST)
    return np.asarray(image)


def show(made, x, y, cell, image, theme):
    """The image in the middle of a square of `cell` inches, from the left and the top."""
    width, height = made.get_size_inches()
    axes = made.add_axes([x / width, 1 - (y + cell) / height, cell / width, cell / height])
    high, wide = image.shape[:2]
    x, y = (1 - wide / max(wide, high)) / 2, (1 - high / max(wide, high)) / 2
    axes.imshow(image, extent=(x, 1 - x, y, 1 - y), interpolation="antialiased")
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], facecolor=theme.page)
    axes.spines[:].set_visible(False)


def show_beside(made, x, y, cell, pictures, theme):
    """Pictures of the same image beside each other, each as by `show`."""
    for k, picture in enumerate(pictures):
        show(made, x + k * (cell + GAP), y, cell, picture, theme)
