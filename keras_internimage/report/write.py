"""Writes the report."""

import importlib.util
import os
import pathlib

from keras_internimage.files import atomic_write
from keras_internimage.report import curves, gallery, matrix, metrics, page, style, text


def write(folder, results):
    """Writes `curves.png`, `confusion.png`, `mistakes.png` and `report.html` into a folder.

    The page holds all it shows, also the pictures, so that it can be sent as one file. Everything
    is drawn before the first file is written, and each file is written under another name and
    then renamed: where this fails, files of an earlier report stay as they were.

    Args:
        folder: path; made where it does not exist. Files of these names in it are replaced.
        results: `Results`.

    Returns:
        `pathlib.Path` of `report.html`.

    Raises:
        ModuleNotFoundError: where matplotlib is not installed.
        ValueError: where the parts of `results` do not fit together.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "matplotlib must be installed to write a report: pip install keras-internimage[report]"
        )
    results = results.checked()
    found = gallery.collect(results)
    files = _draw(results, found)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as unfinished:
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    return folder / "report.html"


def _draw(results, found):
    """The files' contents, by name."""
    words = [*results.class_names, *(mistake.path for mistake in found.mistakes)]
    lettering = text.Lettering([*words, found.note()])
    with style.drawing(lettering.families):
        return _files(results, found, lettering)


def _files(results, found, lettering):
    names = text.class_labels(results.class_names, lettering)
    predicted = metrics.predictions(results.scores)
    counts = metrics.confusion(results.labels, predicted, len(names))
    themes = (style.LIGHT, style.DARK)
    pictures = {
        "curves": [
            (
                f"{title} over the epochs",
                *(_picture(curves.draw(results.history, x, [title])) for x in themes),
            )
            for title in curves.panels(results.history)
        ],
        "matrix": [
            (
                "Confusion matrix",
                *(_picture(matrix.draw(counts, names, x, lettering, pairs=False)) for x in themes),
            )
        ],
    }
    return {
        "curves.png": style.png(curves.draw(results.history, style.LIGHT)),
        "confusion.png": style.png(matrix.draw(counts, names, style.LIGHT, lettering)),
        "mistakes.png": style.png(gallery.draw(found, names, style.LIGHT, lettering)),
        "report.html": page.render(results, names, found, pictures).encode(),
    }


def _picture(made):
    return style.png(made, page.PICTURE_DPI)
