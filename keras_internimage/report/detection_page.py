"""What the report says of a detector."""

import numpy as np

from keras_internimage.report import object_gallery, page
from keras_internimage.report.gallery import VALIDATED
from keras_internimage.report.text import count, share

# COCO's numbers in words.
_MEANINGS = {
    "AP": "mean over overlaps from 0.5 to 0.95",
    "AP50": "at an overlap of 0.5",
    "AP75": "at an overlap of 0.75",
    "APs": "of objects smaller than 32 x 32 pixels",
    "APm": "of objects up to 96 x 96 pixels",
    "APl": "of larger objects",
    "AR1": "recall with the best detection of each image",
    "AR10": "recall with 10 detections of each image",
    "AR100": "recall with 100 detections of each image",
    "ARs": "of these, objects smaller than 32 x 32 pixels",
    "ARm": "of these, objects up to 96 x 96 pixels",
    "ARl": "of these, larger objects",
}


def render(results, drawn_names, worst, pictures):
    """The page, as text.

    Args:
        results: checked `DetectionResults`.
        drawn_names: what the pictures call the classes.
        worst: of `object_gallery.WorstObjects`.
        pictures: as for `page.render`, "recall" in place of "matrix".
    """
    scores = results.scores
    masks = scores.mask is not None
    return page.of_any_model(
        "detection",
        results,
        drawn_names,
        None,
        pictures,
        unit="object",
        tiles=_tiles(results),
        unknown="",
        calibration="",
        recall=[page.picture(picture) for picture in pictures["recall"]],
        numbers=_numbers(scores),
        heads=["Class", "Objects", "Box AP50", "Box AP"] + ["Mask AP"] * masks,
        classes=_classes(scores, results.class_names),
        empty=_empty(scores.objects),
        trained=_trained(results.train_objects, scores.objects, results.class_names),
        worst=[_worst(one) for one in worst.seen],
        worst_heading=worst.heading(),
        worst_total=_total(worst),
    )


def _tiles(results):
    scores, classes = results.scores, len(results.class_names)
    known = int(np.isfinite(scores.box.per_class).sum())
    over = f"mean over overlaps and {count(known, 'class', 'classes')}"
    tiles = [("Box AP", share(scores.box.numbers["AP"]), "", over)]
    if scores.mask is not None:
        tiles.append(("Mask AP", share(scores.mask.numbers["AP"]), "", over))
    tiles.append(("Box AP50", share(scores.box.numbers["AP50"]), "", "at an overlap of 0.5"))
    found = page.best_epoch(results.history)
    return tiles + found + page.validated(results.worst.images, classes)


def _numbers(scores):
    """Rows `(name, meaning, boxes, masks)`; the last one is empty without masks."""
    return [
        (
            name,
            _MEANINGS[name],
            share(value),
            share(scores.mask.numbers[name]) if scores.mask is not None else "",
        )
        for name, value in scores.box.numbers.items()
    ]


def _classes(scores, names):
    """`(name, objects, box AP50, bar, box AP, mask AP)`, the worst first, unknown ones last."""
    box, mask = scores.box, scores.mask
    order = np.argsort(np.nan_to_num(box.per_class, nan=np.inf), kind="stable")
    return [
        (
            names[i],
            f"{scores.objects[i]:,}",
            share(box.per_class_50[i]),
            f"{np.nan_to_num(box.per_class[i]):.3f}",
            share(box.per_class[i]),
            share(mask.per_class[i]) if mask is not None else "",
        )
        for i in order
    ]


def _empty(objects):
    empty = int((objects == 0).sum())
    verb = "has" if empty == 1 else "have"
    return f"{count(empty, 'class', 'classes')} {verb} no objects to validate" if empty else ""


def _trained(train, validation, names):
    """Rows `(name, bar, objects trained on, objects validated)`, most first."""
    if train is None:
        return []
    most = max(int(train.max()), 1)
    return [
        (names[i], f"{train[i] / most:.3f}", f"{train[i]:,}", f"{validation[i]:,}")
        for i in np.argsort(-train, kind="stable")
    ]


def _total(worst):
    """A sentence on all images."""
    if not worst.images:
        return ""
    return (
        f"In {count(worst.images, VALIDATED)}, with detections of a probability above "
        f"{object_gallery.THRESHOLD:g}: {worst.right:,} objects found, {worst.missed:,} missed, "
        f"{count(worst.false, 'false alarm')}."
    )


def _worst(one):
    height, width = one.pictures[0].shape[:2]
    return {
        "width": width,
        "height": height,
        "pictures": [
            {"address": page.jpeg(pixels), "description": f"{one.path}, {title}"}
            for title, pixels in zip(object_gallery.TITLES, one.pictures, strict=True)
        ],
        "told": object_gallery.told(one),
        "names": one.names,
        "path": one.path,
    }
