"""`--predictions`: what a model said of every image that it was evaluated on.

For classification PATH is a `.csv` file: of each image its class, the rank of that class and the
most probable classes. For segmentation it is a folder: `masks/` with a PNG of class numbers for
each image, `images.csv`, `classes.txt`. For detection it is a `.json` file: COCO's results, masks
as run lengths.

Images that could not be read are in the tables, with the reason.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_internimage import command_line, files
from keras_internimage.commands import images
from keras_internimage.report.metrics import rank

SUFFIXES = {"classification": ".csv", "detection": ".json"}
TOP = 5
TABLE, MASKS = "images.csv", "masks"


def check(options: argparse.Namespace, task: str) -> None:
    """Raises ValueError unless the predictions can be written where --predictions says."""
    path = pathlib.Path(options.predictions)
    if task == "segmentation":
        if path.suffix.lower() in (".csv", ".json", ".png"):
            raise ValueError(
                "--predictions must be a folder for segmentation. "
                f"Received: --predictions {options.predictions}"
            )
        command_line.check_out(path, "--predictions")
        return
    suffix = SUFFIXES[task]
    if path.suffix.lower() != suffix:
        raise ValueError(
            f"--predictions must end in {suffix} for {task}. "
            f"Received: --predictions {options.predictions}"
        )
    command_line.check_file(path, "--predictions", (suffix,))


def write_classes(path: str, rows: Sequence[tuple], labels: Sequence[str]) -> None:
    """Writes the predictions of a classifier.

    Args:
        path: of the CSV file.
        rows: `(file, class, scores, reason)` of each image; `scores` is None where `reason` says
            why the image could not be read.
        labels: names of the classes.
    """
    top = min(TOP, len(labels))
    names = [f"{what}_{k}" for k in range(1, top + 1) for what in ("predicted", "probability")]
    table = []
    for file, truth, scores, reason in rows:
        cells = [images.shown(file), labels[truth]]
        if scores is None:
            table.append((*cells, "", *("" for _ in names), reason))
            continue
        order = np.argsort(-scores, kind="stable")
        best = [(labels[i], f"{scores[i]:.6f}") for i in order[:top]]
        place = int(rank(np.array([truth]), scores[None])[0])
        table.append((*cells, place + 1, *(cell for pair in best for cell in pair), ""))
    images.write_csv(pathlib.Path(path), ("file", "class", "rank", *names, "error"), table)


def write_coco(path: str, rows: Any) -> None:
    """Writes COCO's results of a detector."""
    images.write_text(pathlib.Path(path), json.dumps(rows) + "\n")


class LabelMaps:
    """A folder of the masks that a segmentation model gives; `add` writes that of an image.

    Args:
        folder: new, empty, or of an earlier run.
        pairs: paths `(image, mask)` of all that is going to be evaluated.
        segmenter: the `Segmenter`.
    """

    def __init__(self, folder, pairs, segmenter):
        from keras_internimage.data.palette import FILE, classes_text

        self._folder = pathlib.Path(folder)
        self._palette = segmenter.palette
        named = images.distinct_names(image for image, _ in pairs)
        self._names = {path: f"{name}.png" for name, path in named.items()}
        self._rows = {}
        masks = [f"{MASKS}/{name}" for name in self._names.values()]
        (self._folder / MASKS).mkdir(parents=True, exist_ok=True)
        files.write_manifest(self._folder, [*masks, TABLE, FILE])
        text = classes_text(segmenter.labels, segmenter.palette)
        images.write_text(self._folder / FILE, text)

    def add(self, image, found, counts):
        """Writes the mask of an image; `counts` is its confusion matrix, true classes in rows."""
        from keras_internimage.segmenter import drawing

        name = f"{MASKS}/{self._names[image]}"
        with files.atomic_write(self._folder / name) as unfinished:
            drawing.with_palette(found, self._palette).save(unfinished)
        self._rows[image] = (name, int(counts.sum()), int(np.trace(counts)), "")

    def finish(self, failed):
        """Writes the table; `failed` is `(path, reason)` of what could not be used."""
        rows = [(images.shown(image), *row) for image, row in self._rows.items()]
        rows += [(images.shown(path), "", "", "", reason) for path, reason in failed]
        heads = ("file", "mask", "pixels", "right_pixels", "error")
        images.write_csv(self._folder / TABLE, heads, rows)
        files.write_manifest(self._folder)
