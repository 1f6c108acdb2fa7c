"""Writes the report."""

import importlib.util
import os
import pathlib

from keras_internimage.files import atomic_write
from keras_internimage.report import (
    curves,
    describe,
    detection_page,
    gallery,
    lettering,
    mask_gallery,
    matrix,
    metrics,
    object_gallery,
    page,
    recall_curves,
    segmentation_page,
    style,
)
from keras_internimage.report.detection import DetectionResults
from keras_internimage.report.results import Results
from keras_internimage.report.segmentation import SegmentationResults

PACKAGES = ("jinja2", "matplotlib")  # of the extra `report`
_THEMES = (style.LIGHT, style.DARK)


def write(
    folder: str | os.PathLike[str], results: Results | SegmentationResults | DetectionResults
) -> pathlib.Path:
    """Writes `curves.png`, `confusion.png`, `mistakes.png` and `report.html` into a folder.

    Of a detector, `precision.png` in place of `confusion.png`.

    The page holds all it shows, also the pictures, so that it can be sent as one file. Everything
    is drawn before the first file is written, and each file is written under another name and
    then renamed: where this fails, files of an earlier report stay as they were.

    Args:
        folder: path; made where it does not exist. Files of these names in it are replaced.
        results: `Results`, `SegmentationResults` or `DetectionResults`.

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
    if isinstance(results, DetectionResults):
        return _draw_detection(results)
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
        pictures = {
            "curves": _curves(results),
            "matrix": _matrix(results, counts, names, fonts, pixels),
        }
        return {
            "curves.png": style.png(curves.draw(results.history, style.LIGHT)),
            "confusion.png": style.png(
                matrix.draw(counts, names, style.LIGHT, fonts, percent=pixels)
            ),
            "mistakes.png": style.png(draw(worst, names, style.LIGHT, fonts)),
            "report.html": of_page(results, names, worst, pictures).encode(),
        }


def _draw_detection(results):
    """The files' contents, by name, of a detector."""
    worst, scores = results.worst, results.scores
    fonts = lettering.Lettering([*results.class_names, *(one.path for one in worst.seen)])
    names = lettering.class_labels(results.class_names, fonts)
    with style.drawing(fonts.families):
        recall = (_picture(recall_curves.draw(scores, theme)) for theme in _THEMES)
        pictures = {
            "curves": _curves(results),
            "recall": [(recall_curves.describe(scores), *recall)],
        }
        return {
            "curves.png": style.png(curves.draw(results.history, style.LIGHT)),
            "precision.png": style.png(recall_curves.draw(scores, style.LIGHT)),
            "mistakes.png": style.png(object_gallery.draw(worst, names, style.LIGHT, fonts)),
            "report.html": detection_page.render(results, names, worst, pictures).encode(),
        }


def _curves(results):
    """Those of the page, each with its description."""
    return [
        (
            describe.curve(results.history, title),
            *(_picture(curves.draw(results.history, theme, [title])) for theme in _THEMES),
        )
        for title in curves.panels(results.history)
    ]


def _matrix(results, counts, names, fonts, pixels):
    """That of the page; none of many classes, of which the page draws it itself."""
    if len(names) > matrix.MANY:
        return []
    text = describe.confusion(counts, results.class_names, "pixel" if pixels else "image")
    drawn = (
        _picture(matrix.draw(counts, names, theme, fonts, pairs=False, percent=pixels))
        for theme in _THEMES
    )
    return [(text, *drawn)]


def _picture(made):
    return style.png(made, page.PICTURE_DPI)
