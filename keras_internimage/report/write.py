"""Writes the report."""

import importlib.util
import os
import pathlib

from keras_internimage.files import atomic_write
from keras_internimage.report import (
    curves,
    describe,
    gallery,
    lettering,
    mask_gallery,
    matrix,
    metrics,
    page,
    segmentation_page,
    style,
)
from keras_internimage.report.results import Results
from keras_internimage.report.segmentation import SegmentationResults

PACKAGES = ("jinja2", "matplotlib")  # of the extra `report`


def write(folder: str | os.PathLike[str], results: Results | SegmentationResults) -> pathlib.Path:
    """Writes `curves.png`, `confusion.png`, `mistakes.png` and `report.html` into a folder.

    The page holds all it shows, also the pictures, so that it can be sent as one file. Everything
    is drawn before the first file is written, and each file is written under another name and
    then renamed: where this fails, files of an earlier report stay as they were.

    Args:
        folder: path; made where it does not exist. Files of these names in it are replaced.
        results: `Results`, or `SegmentationResults`.

    Returns:
        `pathlib.Path` of `report.html`.

    Raises:
        ModuleNotFoundError: where Jinja2 or matplotlib is not installed.
        NotADirectoryError: `folder` is a file.
        ValueError: where the parts of `results` do not fit together.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} must be installed to write a report: "
            "pip install 'keras-internimage[report]'"
        )
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"`folder` must be a folder. Received: folder={folder}, a file")
    results = results.checked()
    files = _draw(results)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as unfinished:
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    return folder / "report.html"


def _draw(results):
    """The files' contents, by name."""
    if isinstance(results, SegmentationResults):
        worst = results.worst
        fonts = lettering.Lettering([*results.class_names, *(one.path for one in worst.seen)])
        of_page, counts, draw = segmentation_page.render, results.counts, mask_gallery.draw
    else:
        worst = gallery.collect(results)
        words = [*results.class_names, *(mistake.path for mistake in worst.mistakes)]
        fonts = lettering.Lettering([*words, worst.note()])
        predicted = metrics.predictions(results.scores)
        counts = metrics.confusion(results.labels, predicted, len(results.class_names))
        of_page, draw = page.render, gallery.draw
    names = lettering.class_labels(results.class_names, fonts)
    pixels = of_page is segmentation_page.render
    with style.drawing(fonts.families):
        pictures = _pictures(results, counts, names, fonts, pixels)
        return {
            "curves.png": style.png(curves.draw(results.history, style.LIGHT)),
            "confusion.png": style.png(
                matrix.draw(counts, names, style.LIGHT, fonts, percent=pixels)
            ),
            "mistakes.png": style.png(draw(worst, names, style.LIGHT, fonts)),
            "report.html": of_page(results, names, worst, pictures).encode(),
        }


def _pictures(results, counts, names, fonts, pixels):
    """Those of the page, by what they show."""
    themes = (style.LIGHT, style.DARK)
    pictures = {
        "curves": [
            (
                describe.curve(results.history, title),
                *(_picture(curves.draw(results.history, x, [title])) for x in themes),
            )
            for title in curves.panels(results.history)
        ],
        "matrix": [],
    }
    if len(names) <= matrix.MANY:  # of more classes the page draws the matrix itself
        unit = "pixel" if pixels else "image"
        text = describe.confusion(counts, results.class_names, unit)
        drawn = (
            _picture(matrix.draw(counts, names, x, fonts, pairs=False, percent=pixels))
            for x in themes
        )
        pictures["matrix"].append((text, *drawn))
    return pictures


def _picture(made):
    return style.png(made, page.PICTURE_DPI)
