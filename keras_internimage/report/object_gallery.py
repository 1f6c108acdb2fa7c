"""The images in which a detector errs most: the truth with what was missed, and false alarms."""

import bisect
import dataclasses

import numpy as np

from keras_internimage.report import gallery
from keras_internimage.report.object_errors import errors
from keras_internimage.report.objects import Drawn, draw_objects
from keras_internimage.report.text import clean, count, short_path

SHOWN = 12
SIDE = 420  # pixels of a thumbnail
THRESHOLD = 0.5  # detections are more probable
TITLES = ("truth", "prediction")
_LETTERS = 13
_COLUMNS = 2
_WRONG = (255, 40, 40)
_RIGHT = (235, 235, 235)


@dataclasses.dataclass(frozen=True)
class Seen:
    """An image that was validated.

    Attributes:
        path: of the image, shortened.
        missed, false: how many objects were missed, and how many detections are false alarms.
        right: how many detections are right.
        names: of the classes missed or falsely found, each once.
        pictures: uint8 `(h, w, 3)`: truth and prediction over the image.
    """

    path: str
    missed: int
    false: int
    right: int
    names: tuple[str, ...]
    pictures: tuple[np.ndarray, np.ndarray]


class WorstObjects:
    """Collects the images with the most errors, while a detector is validated.

    An error is an object that no detection of its class overlaps with by half, or a detection,
    more probable than 0.5, that is of no object.

    Args:
        class_names: of the classes, by label.
        most: how many are kept.

    Attributes:
        seen: of the images kept, the worst first.
        images: how many were added.
        wrong: how many of these have an error.
        missed, false, right: totals.
    """

    def __init__(self, class_names, most=SHOWN):
        self.class_names, self.most = [clean(name) for name in class_names], most
        self.seen, self.images, self.wrong = [], 0, 0
        self.missed, self.false, self.right = 0, 0, 0

    def add(self, path, image, objects, detections):
        """Adds an image.

        Args:
            path: of its file.
            image: of Pillow, RGB, or a function that returns it, called where it is shown.
            objects: of the truth, each with `box`, `label` and `crowd`, such as
                `data.CocoObject`.
            detections: with `boxes`, `labels` and `scores`, such as `detector.Detections`.
        """
        kept = np.asarray(detections.scores) > THRESHOLD
        boxes, labels = detections.boxes[kept], detections.labels[kept]
        scores = detections.scores[kept]
        truth = np.array([one.box for one in objects], float).reshape(-1, 4)
        crowds = np.array([one.crowd for one in objects], bool)
        missed, false = errors(truth, [one.label for one in objects], crowds, boxes, labels)
        self.images += 1
        self.missed += int(missed.sum())
        self.false += int(false.sum())
        self.right += int((~crowds & ~missed).sum())
        number = int(missed.sum() + false.sum())
        if not number:
            return
        self.wrong += 1
        if len(self.seen) == self.most and _errors(self.seen[-1]) >= number:
            return
        image = image() if callable(image) else image
        wrong = [one.label for one, lost in zip(objects, missed, strict=True) if lost]
        wrong += labels[false].tolist()
        made = Seen(
            clean(short_path(path)),
            int(missed.sum()),
            int(false.sum()),
            int((~crowds & ~missed).sum()),
            tuple(self.class_names[label] for label in dict.fromkeys(wrong)),
            self._pictures(image, objects, missed, boxes, labels, scores, false),
        )
        bisect.insort(self.seen, made, key=lambda one: -_errors(one))
        del self.seen[self.most :]

    def heading(self):
        """One sentence on how many there are."""
        if not self.images:
            return "No validation images."
        if not self.wrong:
            return f"No error in {count(self.images, gallery.VALIDATED)}."
        if self.wrong == 1:
            return "The only image with errors"
        which = "All" if len(self.seen) == self.wrong else f"The {len(self.seen)} worst of"
        return f"{which} {self.wrong:,} images with errors"

    def _pictures(self, image, objects, missed, boxes, labels, scores, false):
        from PIL import Image

        factor = SIDE / max(image.size)
        size = [max(1, round(side * factor)) for side in image.size]
        resample = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
        image = image.resize(size, resample)
        truth = [
            self._drawn(one.box, factor, lost, self.class_names[one.label] if lost else "")
            for one, lost in zip(objects, missed, strict=True)
            if not one.crowd
        ]
        found = [
            self._drawn(box, factor, wrong, f"{self.class_names[label]} {score:.0%}" * wrong)
            for box, label, score, wrong in zip(
                boxes, labels.tolist(), scores, false.tolist(), strict=True
            )
        ]
        # What is wrong on top.
        return tuple(
            np.asarray(draw_objects(image, sorted(some, key=lambda one: not one.heavy), _LETTERS))
            for some in (truth, found)
        )

    def _drawn(self, box, factor, wrong, words):
        box = np.asarray(box, float) * factor
        return Drawn(box, _WRONG if wrong else _RIGHT, words, heavy=bool(wrong))


def draw(worst, names, theme, lettering):
    """A figure: for each image its two pictures, and what is wrong."""
    caption = "Left the truth, right what was detected; errors are red, the others pale."
    cell, pair = 2.6, 2 * 2.6 + gallery.GAP  # inches
    made, say, places = gallery.sheet(worst, caption, _COLUMNS, (pair, cell), 0.6, theme, lettering)
    for one, (x, y) in zip(worst.seen, places, strict=True):
        gallery.show_beside(made, x, y, cell, one.pictures, theme)
        say(x, y + cell + 0.2, told(one), 9, theme.wrong, "bold")
        say(x, y + cell + 0.38, f"{one.path}: {', '.join(one.names)}", 7, theme.muted)
    return made


def told(one):
    """What is said of an image."""
    missed = count(one.missed, "object") + " missed" if one.missed else ""
    false = count(one.false, "false alarm") if one.false else ""
    right = f"{one.right:,} right"
    return ", ".join(part for part in (missed, false, right) if part)


def _errors(one):
    return one.missed + one.false
