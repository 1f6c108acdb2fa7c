"""The report as one HTML file: nothing is loaded, nothing runs.

Here is what the page says, of a classifier and of any model; `segmentation_page` and
`detection_page` have what it says of segmentation and of detectors. How it is laid out is in
`templates`. Every value is escaped by Jinja, none is marked as safe.
"""

import base64
import dataclasses
import io

import numpy as np

from keras_internimage.report import describe, matrix, metrics, style
from keras_internimage.report.gallery import VALIDATED
from keras_internimage.report.text import DASH, clean, count, number, percent, share

PAIRS = 12
OPEN_ROWS = 20  # of a longer table; the others unfold
PICTURE_DPI = 192  # of the page's pictures: two pixels each of a browser's 96 per inch
IMBALANCED = 10  # times as many training images: from here on it is said
MEASURES = {
    "val_accuracy": "validation accuracy",
    "val_logits_mean_iou": "validation mIoU",
    "val_box_ap": "validation box AP",
    "val_loss": "validation loss",
    "accuracy": "training accuracy",
    "logits_mean_iou": "training mIoU",
    "loss": "training loss",
}


def render(results, drawn_names, gallery, pictures):
    """The page, as text.

    Args:
        results: checked `Results`.
        drawn_names: what the pictures call the classes.
        gallery: of `gallery.collect`.
        pictures: `"curves"` and `"matrix"`: lists of `(description, light PNG, dark PNG)` as
            bytes, of `PICTURE_DPI`. Without a picture, the matrix is drawn by the page itself.
    """
    names = results.class_names
    predicted = metrics.predictions(results.scores)
    counts = metrics.confusion(results.labels, predicted, len(names))
    per_class = metrics.per_class(results.labels, predicted, len(names))
    return of_any_model(
        "classification",
        results,
        drawn_names,
        counts,
        pictures,
        unit="image",
        matrix_numbers="count images" if matrix.Plan.of(counts).number_size else "",
        tiles=_tiles(results, predicted),
        unknown=_unknown(predicted),
        calibration=_calibration(results.labels, results.scores),
        images=_images_by_class(results.train_counts, per_class.support, names),
        classes=_classes(per_class, names, drawn_names),
        empty=_empty(per_class.support),
        mistakes=[_mistake(mistake, names) for mistake in gallery.mistakes],
        mistakes_heading=gallery.heading(),
        mistakes_note=gallery.note(),
    )


def of_any_model(task, results, drawn_names, counts, pictures, unit, **values):
    """The page of a task: what the tasks have in common, and `values` of this one.

    Args:
        task: the template between the confusion matrix and the settings.
        results, drawn_names, pictures: as for `render`.
        counts: the confusion matrix; None for a task that has none.
        unit: what it counts, "image" or "pixel".
    """
    names = results.class_names
    return _template().render(
        task=task,
        title=results.title,
        themes={"light": dataclasses.asdict(style.LIGHT), "dark": dataclasses.asdict(style.DARK)},
        curves=[picture(one) for one in pictures["curves"]],
        confusion=counts is not None,
        names=names,
        numbered=any(numbered(names, drawn_names)),
        unit=unit,
        provenance=results.provenance.rows() if results.provenance else {},
        settings=results.settings,
        skipped=results.skipped,
        open_rows=OPEN_ROWS,
        **({} if counts is None else _confusion(pictures["matrix"], counts, names, unit)),
        **values,
    )


def _confusion(drawn, counts, names, unit):
    return {
        "matrix": [picture(one) for one in drawn],
        "heat_map": None if drawn else _heat_map(counts, names, unit),
        "pairs": _pairs(counts, names),
    }


def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_internimage.report"),
        autoescape=True,  # by default Jinja escapes nothing
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clean": clean, "count": count}
    return environment.get_template("report.html.jinja")


def _tiles(results, predicted):
    """`(name, value, small print behind it, note)` of the page's head."""
    labels, scores, classes = results.labels, results.scores, len(results.class_names)
    right, total = int((predicted == labels).sum()), len(labels)
    low, high = metrics.interval(right, total)
    tiles = []
    if total:
        between = f"95\N{NO-BREAK SPACE}% interval {number(100 * low, 1)}{DASH}{share(high)}"
        tiles.append(("Accuracy", share(right / total), "", between))
        if classes > 5:
            top = share(metrics.top_k(labels, scores, 5))
            tiles.append(("Top-5 accuracy", top, "", "true class among the five likeliest"))
        f1 = metrics.per_class(labels, predicted, classes).f1
        note = "over the classes, each counted once"
        tiles.append(("Mean F1", number(np.nanmean(f1), 3), "", note))
    return tiles + best_epoch(results.history) + validated(total, classes)


def best_epoch(history):
    """The tile of the best epoch, if there is one."""
    best = metrics.best_epoch(history)
    if not best:
        return []
    epoch, key, value = best
    epochs = max(len(x) for x in history.values())
    value = number(value, 4) if "loss" in key else share(value)
    return [("Best epoch", str(epoch), f"of {epochs}", f"{MEASURES[key]} {value}")]


def validated(images, classes):
    """The tile of the validation images."""
    return [("Validation images", f"{images:,}", "", f"in {count(classes, 'class', 'classes')}")]


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
        f"{share(confidence)}, and {share(accuracy)} of them are right: it is {verdict}. "
        f"The expected calibration error is {100 * error:.1f} points."
    )


def _unknown(predicted):
    """How many images have no prediction; empty where all have one."""
    unknown = int((predicted == metrics.UNKNOWN).sum())
    return count(unknown, VALIDATED) if unknown else ""


def _heat_map(counts, names, unit):
    """What of the matrix is not empty, `(row, column, opacity, text)`, and its description."""
    shares = metrics.shares(counts)
    cells = []
    for true, predicted in np.argwhere(counts):
        value = shares[true, predicted]
        text = f"{clean(names[true])}, taken for {clean(names[predicted])}: "
        if true == predicted:
            text = f"{clean(names[true])}, classified correctly: "
        text += f"{count(counts[true, predicted], unit)} ({percent(value)} of the true class)"
        # As in the picture of the matrix, the root makes single images visible.
        cells.append((true, predicted, f"{np.sqrt(value):.2f}", text))
    return {"cells": cells, "description": describe.confusion(counts, names, unit)}


def _pairs(counts, names):
    """`(true class, predicted class, bar, images, share of the true class)`."""
    pairs = metrics.confused_pairs(counts, PAIRS)
    return [
        (
            names[true],
            names[predicted],
            f"{images / pairs[0][2]:.3f}",
            f"{images:,}",
            share(images / counts[true].sum()),
        )
        for true, predicted, images in pairs
    ]


def _images_by_class(train, validation, names):
    """Rows `(name, bar, training images, validation images)`, most first, and what to say."""
    if train is None:
        return None
    most, least = int(train.max()), int(train.min())
    what = f"{most:,} training images each"
    if least != most:
        what = f"{least:,} to {most:,} training images a class"
    if least and most >= IMBALANCED * least:
        what += f": the largest has {most / least:.0f} times as many as the smallest"
    order = np.argsort(-train, kind="stable")
    rows = [
        (names[i], f"{train[i] / max(most, 1):.3f}", f"{train[i]:,}", f"{validation[i]:,}")
        for i in order
    ]
    totals = (
        f"{count(int(train.sum()), 'training image')}, {count(int(validation.sum()), VALIDATED)}"
    )
    return {"rows": rows, "summary": f"{totals}; {what}."}


def _classes(of, names, drawn_names):
    """`(name, its number in pictures, precision, recall, bar, F1, images)`, the worst first."""
    by_number = numbered(names, drawn_names)
    return [
        (
            names[i],
            drawn_names[i] if by_number[i] else "",
            number(of.precision[i], 3),
            number(of.recall[i], 3),
            f"{np.nan_to_num(of.f1[i]):.3f}",
            number(of.f1[i], 3),
            f"{of.support[i]:,}",
        )
        for i in of.worst_first()
    ]


def _empty(support):
    """The part of a sentence on classes that are not validated; empty where all are."""
    empty = int((support == 0).sum())
    verb = "has" if empty == 1 else "have"
    return f"{count(empty, 'class', 'classes')} {verb} no validation images" if empty else ""


def _mistake(mistake, names):
    height, width = mistake.image.shape[:2]
    return {
        "address": jpeg(mistake.image),
        "width": width,
        "height": height,
        "description": describe.mistake(mistake, names),
        "true": names[mistake.true],
        "predicted": names[mistake.predicted],
        "true_probability": percent(mistake.true_probability),
        "probability": percent(mistake.probability),
        "path": mistake.path,
    }


def picture(drawn):
    """A picture for the page: `(description, light PNG, dark PNG)`."""
    description, light, dark = drawn
    width, height = _size(light)
    light, dark = ("data:image/png;base64," + base64.b64encode(x).decode() for x in (light, dark))
    return {
        "description": description,
        "light": light,
        "dark": dark,
        "width": width,
        "height": height,
    }


def _size(png):
    """Width and height of a picture on the page."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return tuple(round(side * 96 / PICTURE_DPI) for side in image.size)


def jpeg(pixels):
    """The address of a picture, with all of it in it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def numbered(names, drawn_names):
    """Per class, whether the pictures show a number instead of the name."""
    return [
        drawn != clean(name) and drawn == f"#{i}"
        for i, (name, drawn) in enumerate(zip(names, drawn_names, strict=True))
    ]
