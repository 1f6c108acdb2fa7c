"""What the report says of a model for segmentation."""

import numpy as np

from keras_internimage.report import mask_gallery, matrix, page
from keras_internimage.report.text import clean, count, share


def render(results, drawn_names, worst, pictures):
    """The page, as text.

    Args:
        results: checked `SegmentationResults`.
        drawn_names: what the pictures call the classes.
        worst: of `mask_gallery.Worst`.
        pictures: as for `page.render`.
    """
    from keras_internimage.training.metrics import segmentation_scores

    counts, names = results.counts, results.class_names
    scores = segmentation_scores(counts)
    colours = ["#" + bytes(colour.tolist()).hex() for colour in worst.palette]
    plan = matrix.Plan.of(matrix.percents(counts))
    return page.of_any_model(
        "segmentation",
        results,
        drawn_names,
        counts,
        pictures,
        unit="pixel",
        matrix_numbers="are this share in percent" if plan.number_size else "",
        tiles=_tiles(results, scores),
        unknown="",
        calibration="",
        classes=_classes(scores, names, drawn_names, colours),
        empty=_empty(scores.pixels),
        trained=_trained(results.train_pixels, scores.pixels, names, colours),
        worst=[_worst(one, names, colours) for one in worst.seen],
        worst_heading=worst.heading(),
    )


def _tiles(results, scores):
    classes = len(results.class_names)
    known = int(np.isfinite(scores.iou).sum())
    mean = f"over {count(known, 'class', 'classes')}, at the images' own size"
    tiles = [
        ("mIoU", share(scores.mean_iou), "", mean),
        ("Mean accuracy", share(scores.mean_accuracy), "", "over the classes, each counted once"),
        ("Pixel accuracy", share(scores.pixel_accuracy), "", "the share of right pixels"),
    ]
    found = page.best_epoch(results.history)
    return tiles + found + page.validated(results.worst.images, classes)


def _classes(scores, names, drawn_names, colours):
    """`(colour, name, number in pictures, accuracy, bar, IoU, share of pixels)`, worst first."""
    by_number = page.numbered(names, drawn_names)
    total = max(1, int(scores.pixels.sum()))
    order = np.argsort(np.nan_to_num(scores.iou, nan=np.inf), kind="stable")
    return [
        (
            colours[i],
            names[i],
            drawn_names[i] if by_number[i] else "",
            share(scores.accuracy[i]),
            f"{np.nan_to_num(scores.iou[i]):.3f}",
            share(scores.iou[i]),
            share(scores.pixels[i] / total),
        )
        for i in order
    ]


def _empty(pixels):
    empty = int((pixels == 0).sum())
    verb = "has" if empty == 1 else "have"
    return f"{count(empty, 'class', 'classes')} {verb} no validation pixels" if empty else ""


def _trained(train, validation, names, colours):
    """Rows `(colour, name, bar, share of the training pixels, of the validation pixels)`."""
    if train is None:
        return []
    shares = [pixels / max(1, int(pixels.sum())) for pixels in (train, validation)]
    most = max(shares[0].max(), 1e-9)
    return [
        (colours[i], names[i], f"{shares[0][i] / most:.3f}", *(share(part[i]) for part in shares))
        for i in np.argsort(-train, kind="stable")
    ]


def _worst(one, names, colours):
    height, width = one.pictures[0].shape[:2]
    return {
        "width": width,
        "height": height,
        "pictures": [
            {"address": page.jpeg(pixels), "description": f"{one.path}, {title}"}
            for title, pixels in zip(mask_gallery.TITLES, one.pictures, strict=True)
        ],
        "scores": mask_gallery.scores(one),
        "classes": [(colours[i], clean(names[i])) for i in one.classes],
        "path": one.path,
    }
