"""The images on which a segmentation model does worst: image, truth and prediction."""

import bisect
import dataclasses

import numpy as np

from keras_internimage.report import gallery
from keras_internimage.report.text import clean, count, share, short_path

SHOWN = 12
SIDE = 320  # pixels of a thumbnail
TITLES = ("image", "truth", "prediction")
# How strongly the colours of the classes lie over the image.
_OPACITY = 0.7
_COLUMNS = 2
# So many classes are named below an image, the largest first.
_NAMED = 6


@dataclasses.dataclass(frozen=True)
class Seen:
    """An image that was validated.

    Attributes:
        path: of the image, shortened.
        mean_iou: over the classes that are in the truth or the prediction.
        accuracy: the share of pixels that are right.
        classes: numbers of the classes in truth or prediction, the largest first.
        pictures: uint8 `(h, w, 3)`: the image, and truth and prediction in colours over it.
    """

    path: str
    mean_iou: float
    accuracy: float
    classes: tuple[int, ...]
    pictures: tuple[np.ndarray, np.ndarray, np.ndarray]


class Worst:
    """Collects the images of the lowest mIoU, while a model is validated.

    Args:
        palette: a colour for each class.
        most: how many are kept.

    Attributes:
        seen: of the images kept, the worst first.
        images: how many were added.
        wrong: how many of these have a pixel that is wrong.
    """

    def __init__(self, palette, most=SHOWN):
        self.palette, self.most = np.asarray(palette, "uint8"), most
        self.seen, self.images, self.wrong = [], 0, 0

    def add(self, path, image, truth, found, counts):
        """Adds an image.

        Args:
            path: of its file.
            image: of Pillow, RGB.
            truth, found: label maps `(H, W)`; 255 in the truth is ignored.
            counts: the confusion matrix of its pixels.
        """
        from keras_internimage.training.metrics import segmentation_scores

        self.images += 1
        scores = segmentation_scores(counts)
        if not scores.pixel_accuracy < 1:  # all right, or no pixel counts
            return
        self.wrong += 1
        if len(self.seen) == self.most and self.seen[-1].mean_iou <= scores.mean_iou:
            return
        sizes = counts.sum(0) + counts.sum(1)
        order = np.argsort(-sizes, kind="stable")
        made = Seen(
            clean(short_path(path)),
            scores.mean_iou,
            scores.pixel_accuracy,
            tuple(int(label) for label in order if sizes[label])[:_NAMED],
            self._pictures(image, truth, found),
        )
        bisect.insort(self.seen, made, key=lambda one: one.mean_iou)
        del self.seen[self.most :]

    def heading(self):
        """One sentence on how many there are."""
        if not self.images:
            return "No validation images."
        if not self.wrong:
            return f"No wrong pixel in {count(self.images, gallery.VALIDATED)}."
        if self.wrong == 1:
            return "The only image with wrong pixels"
        which = "All" if len(self.seen) == self.wrong else f"The {len(self.seen)} worst of"
        return f"{which} {self.wrong:,} images with wrong pixels"

    def _pictures(self, image, truth, found):
        from PIL import Image

        factor = SIDE / max(image.size)
        size = [max(1, round(side * factor)) for side in image.size]
        resample = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
        pixels = np.asarray(image.resize(size, resample), "uint8")
        width, height = size
        y = (np.arange(height) + 0.5) * truth.shape[0] / height
        x = (np.arange(width) + 0.5) * truth.shape[1] / width
        at = y.astype(int)[:, None], x.astype(int)
        return pixels, *(self._over(pixels, labels[at]) for labels in (truth, found))

    def _over(self, pixels, labels):
        """The colours of a label map over an image; where it is ignored, the image is grey."""
        known = labels < len(self.palette)
        colours = self.palette[np.where(known, labels, 0)]
        mixed = _OPACITY * colours + (1 - _OPACITY) * pixels
        grey = np.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape)
        return np.rint(np.where(known[..., None], mixed, grey)).astype("uint8")


def draw(worst, names, theme, lettering):
    """A figure: for each image its three pictures, the scores, and the classes."""
    from matplotlib.patches import Rectangle

    caption = "Image, truth, prediction; the lowest mIoU first. Grey pixels are ignored."
    cell, triple = 1.75, 3 * 1.75 + 2 * gallery.GAP  # inches
    made, say, places = gallery.sheet(
        worst, caption, _COLUMNS, (triple, cell), 0.72, theme, lettering
    )
    width, height = made.get_size_inches()
    for one, (x, y) in zip(worst.seen, places, strict=True):
        gallery.show_beside(made, x, y, cell, one.pictures, theme)
        said = scores(one)
        wide = lettering.width(said, 9, "bold") / 72 + 0.15
        say(x, y + cell + 0.2, said, 9, theme.wrong, "bold")
        say(x + wide, y + cell + 0.2, one.path, 7, theme.muted, room=triple - wide)
        left = x
        for label in one.classes:
            wide = min(lettering.width(lettering.drawable(names[label]), 8) / 72, 1.2)
            if left + wide + 0.2 > x + triple:
                break
            place = (left / width, 1 - (y + cell + 0.41) / height)
            box = Rectangle(
                place, 0.11 / width, 0.11 / height, facecolor=worst.palette[label] / 255
            )
            box.set(transform=made.transFigure, edgecolor=theme.muted, linewidth=0.5)
            made.add_artist(box)
            say(left + 0.17, y + cell + 0.4, names[label], 8, theme.ink, room=1.21)
            left += wide + 0.37
    return made


def scores(one):
    """What is said of an image."""
    return f"mIoU {share(one.mean_iou)}, {share(one.accuracy)} of the pixels right"
