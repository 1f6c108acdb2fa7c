"""The report as one HTML file: nothing is loaded, nothing runs."""

import base64
import html
import io

import numpy as np

from keras_internimage.report import matrix, metrics, style
from keras_internimage.report.gallery import count_images, percent
from keras_internimage.report.page_style import sheet
from keras_internimage.report.text import clean

DASH = "–"
PAIRS = 12
OPEN_ROWS = 20  # of a longer table; the others unfold
MEASURES = {
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "accuracy": "training accuracy",
    "loss": "training loss",
}


def render(results, drawn_names, gallery, pictures):
    """The page, as text.

    Args:
        results: checked `Results`.
        drawn_names: what the pictures call the classes.
        gallery: of `gallery.collect`.
        pictures: `"curves"` and `"matrix"`: lists of `(description, light PNG, dark PNG)` as
            bytes, of `PICTURE_DPI`.
    """
    predicted = metrics.predictions(results.scores)
    counts = metrics.confusion(results.labels, predicted, len(results.class_names))
    sections = [
        _headline(results, predicted),
        _section("Training", _curves(pictures["curves"])),
        _section("Confusion", _confusion(results, drawn_names, counts, pictures["matrix"])),
        _section("Classes", _classes(results, drawn_names, predicted)),
        _section("Worst mistakes", _gallery(results, gallery)),
        _section("Settings", _settings(results.settings)),
        _section("Files left out", _skipped(results.skipped)),
    ]
    title = html.escape(clean(results.title))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{sheet(style.LIGHT, style.DARK)}</style>
</head>
<body>
<main>
<h1>{_text(results.title)}</h1>
{"".join(sections)}
</main>
</body>
</html>
"""


def _section(heading, content):
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>\n" if content else ""


def _headline(results, predicted):
    labels, scores, classes = results.labels, results.scores, len(results.class_names)
    right, total = int((predicted == labels).sum()), len(labels)
    low, high = metrics.interval(right, total)
    tiles = []
    if total:
        range_ = f"95\N{NO-BREAK SPACE}% interval {_number(100 * low, 1)}{DASH}{_share(high)}"
        tiles.append(("Accuracy", _share(right / total), range_))
        if classes > 5:
            top = metrics.top_k(labels, scores, 5)
            tiles.append(("Top-5 accuracy", _share(top), "true class among the five likeliest"))
        f1 = metrics.per_class(labels, predicted, classes).f1
        tiles.append(("Mean F1", _number(np.nanmean(f1), 3), "over the classes, each counted once"))
    best = metrics.best_epoch(results.history)
    if best:
        epoch, key, value = best
        epochs = max(len(x) for x in results.history.values())
        value = _share(value) if "accuracy" in key else _number(value, 4)
        note = f"{MEASURES[key]} {value}"
        tiles.append(("Best epoch", f"{epoch} <small>of {epochs}</small>", note))
    tiles.append(("Validation images", f"{total:,}", f"in {_count(classes, 'class', 'classes')}"))
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class=note>{note}</dd></div>"
        for name, value, note in tiles
    )
    notes = [_unknown(predicted), _calibration(labels, scores)]
    return f"<dl class=tiles>{items}</dl>\n" + "".join(f"<p>{x}</p>" for x in notes if x)


def _calibration(labels, scores):
    confidence, accuracy, error = metrics.calibration(labels, scores)
    if not np.isfinite(error):
        return ""
    gap = 100 * (confidence - accuracy)
    verdict = "as sure as it should be"
    if abs(gap) >= 1:
        verdict = f"{'over' if gap > 0 else 'under'}confident by {abs(gap):.1f} points"
    return (
        f"Calibration: on average the model gives its answers a probability of "
        f"{_share(confidence)}, and {_share(accuracy)} of them are right: it is {verdict}. "
        f"The expected calibration error is {100 * error:.1f} points."
    )


def _unknown(predicted):
    unknown = int((predicted == metrics.UNKNOWN).sum())
    if not unknown:
        return ""
    return (
        f"<strong class=wrong>The scores of {count_images(unknown)} are not finite.</strong> "
        "They count as wrong, and are left out of the confusion matrix and of the mistakes."
    )


def _curves(pictures):
    if not pictures:
        return "<p>No history was recorded.</p>"
    return f"<div class=curves>{''.join(map(_picture, pictures))}</div>"


def _confusion(results, drawn_names, counts, pictures):
    (picture,) = pictures
    colours = "The colour is the share of the true class"
    numbers = matrix.Plan.of(counts).number_size
    colours += ", the numbers count images." if numbers else "."
    if any(_numbered(results.class_names, drawn_names)):
        colours += " A name that the picture's fonts lack is a number there; the table of classes "
        colours += "has both."
    parts = [
        f"<p>Rows are true classes, columns predicted ones. {colours}</p>",
        f"<div class=scroll>{_picture(picture)}</div>",
    ]
    pairs = metrics.confused_pairs(counts, PAIRS)
    if pairs:
        names, most = results.class_names, pairs[0][2]
        rows = [
            [
                _text(names[true]),
                _text(names[predicted]),
                _bar(images / most, str(images)),
                _share(images / counts[true].sum()),
            ]
            for true, predicted, images in pairs
        ]
        heads = ["True class", "Predicted class", "Images", "Of the true class"]
        parts.append("<h3>Most confused pairs</h3>" + _table("pairs", heads, rows, numbers=2))
    return "\n".join(parts)


def _classes(results, drawn_names, predicted):
    names = results.class_names
    of = metrics.per_class(results.labels, predicted, len(names))
    number = _numbered(names, drawn_names)
    rows = [
        [
            _text(names[i]) + (f" <small>{drawn_names[i]}</small>" if number[i] else ""),
            *(_number(value[i], 3) for value in (of.precision, of.recall)),
            _bar(np.nan_to_num(of.f1[i]), _number(of.f1[i], 3)),
            f"{of.support[i]:,}",
        ]
        for i in of.worst_first()
    ]
    heads = ["Class", "Precision", "Recall", "F1", "Images"]
    parts = [
        "<p>The lowest F1 first. Precision is the share of right ones among the images given that "
        "class, recall among the images of that class.</p>"
    ]
    empty = int((of.support == 0).sum())
    if empty:
        verb = "has" if empty == 1 else "have"
        parts.append(
            f"<p>{_count(empty, 'class', 'classes')} {verb} no validation images; "
            f"what that leaves undefined is shown as {DASH}.</p>"
        )
    parts.append(_folded("classes", heads, rows, "classes", numbers=4))
    return "\n".join(parts)


def _gallery(results, gallery):
    figures = []
    names = results.class_names
    for mistake in gallery.mistakes:
        true, guess = _text(names[mistake.true]), _text(names[mistake.predicted])
        height, width = mistake.image.shape[:2]
        figures.append(
            f'<figure><div class=frame><img src="{_jpeg(mistake.image)}" width="{width}" '
            f'height="{height}" alt=""></div>'
            f"<figcaption><b class=wrong>{percent(mistake.probability)} {guess}</b>"
            f"<span>true ({percent(mistake.true_probability)}): {true}</span>"
            f"<small>{_text(mistake.path)}</small></figcaption></figure>"
        )
    heading = html.escape(gallery.heading())
    if figures:
        heading = heading.rstrip(".") + (
            ", the most confidently wrong first: the probability of the predicted class and its "
            "name, then those of the true class."
        )
    parts = [f"<p>{heading}</p>"]
    if figures:
        parts.append(f"<div class=gallery>{''.join(figures)}</div>")
    if gallery.unreadable:
        parts.append(f"<p class=note>{html.escape(gallery.note())}</p>")
    return "\n".join(parts)


def _settings(settings):
    rows = [[_text(key), _text(value)] for key, value in settings.items()]
    return _table("settings", None, rows) if rows else ""


def _skipped(skipped):
    if not skipped:
        return ""
    rows = [[_text(path), _text(reason)] for path, reason in skipped]
    what = _count(len(rows), "file was", "files were")
    return f"<p>{what} left out of the training.</p>" + _folded(
        "skipped", ["File", "Reason"], rows, "files"
    )


def _folded(kind, heads, rows, what, numbers=0):
    """A table; of a long one, the rows after the first OPEN_ROWS unfold."""
    if len(rows) <= OPEN_ROWS * 1.5:
        return _table(kind, heads, rows, numbers)
    rest = rows[OPEN_ROWS:]
    return (
        _table(kind, heads, rows[:OPEN_ROWS], numbers)
        + f"<details><summary>{len(rest):,} more {what}</summary>"
        + _table(kind, heads, rest, numbers)
        + "</details>"
    )


def _table(kind, heads, rows, numbers=0):
    """The last `numbers` columns are numbers. Cells are HTML."""
    first = len(rows[0]) - numbers

    def cells(tag, values):
        return "".join(
            f"<{tag} class=number>{value}</{tag}>" if i >= first else f"<{tag}>{value}</{tag}>"
            for i, value in enumerate(values)
        )

    head = f"<thead><tr>{cells('th', heads)}</tr></thead>" if heads else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f"<table class={kind}>{head}<tbody>{body}</tbody></table>"


def _bar(share, text):
    return f'<span class=bar style="--part:{share:.3f}">{text}</span>'


def _picture(picture):
    description, light, dark = picture
    width, height = _size(light)
    address = "data:image/png;base64,"
    light, dark = (address + base64.b64encode(x).decode() for x in (light, dark))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" width="{width}" height="{height}" style="--natural:{width}px" '
        f'alt="{html.escape(description)}"></picture>'
    )


PICTURE_DPI = 192  # of the page's pictures: two pixels each of a browser's 96 per inch


def _size(png):
    """Width and height of a picture on the page."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return tuple(round(side * 96 / PICTURE_DPI) for side in image.size)


def _jpeg(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _text(value):
    """Of users: escaped, and its direction of writing does not reach the words around it."""
    return f"<bdi>{html.escape(clean(value))}</bdi>"


def _numbered(names, drawn_names):
    """Per class, whether the pictures show a number instead of the name."""
    return [
        drawn != clean(name) and drawn == f"#{i}"
        for i, (name, drawn) in enumerate(zip(names, drawn_names, strict=True))
    ]


def _number(value, digits):
    return f"{value:,.{digits}f}" if np.isfinite(value) else DASH


def _share(value):
    if not np.isfinite(value):
        return DASH
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _count(number, one, many):
    return f"{number:,} {one if number == 1 else many}"
