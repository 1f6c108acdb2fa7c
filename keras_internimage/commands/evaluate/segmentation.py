"""mIoU, mAcc and aAcc of a segmentation model, from one confusion matrix."""

import functools
from typing import TYPE_CHECKING, Protocol

import numpy as np

from keras_internimage.commands import class_names
from keras_internimage.commands.evaluate.predictions import LabelMaps
from keras_internimage.data.check import reading
from keras_internimage.data.mask_files import read_mask
from keras_internimage.data.mask_layout import mask_layout
from keras_internimage.data.masks import scan_segmentation
from keras_internimage.preprocessing import read_image
from keras_internimage.progress import Progress
from keras_internimage.segmenter import SCALES, loading
from keras_internimage.training.metrics import pixel_confusion, segmentation_scores

if TYPE_CHECKING:
    import PIL.Image


class Segmenter(Protocol):
    """What is evaluated: anything that gives a class for each pixel of an image.

    Attributes:
        classes: number of classes.
    """

    classes: int

    def label_map(self, image: "PIL.Image.Image") -> np.ndarray:
        """Integers `(H, W)` for an RGB image of that size: 0 to `classes - 1`."""


def evaluate(options, place, say):
    """Evaluates a segmentation model on a folder of images and masks.

    Returns:
        `(results, failed)`: what is printed and written, and `(path, reason)` of images and masks
        that cannot be used.

    Raises:
        FolderError: the classes are not those of the model, or no pair can be used.
        ValueError: the file is no segmentation model.
    """
    layout = mask_layout(options.folder, options.reduce_zero_label or None)
    if getattr(place, "task", "segmentation") != "segmentation":
        raise ValueError(
            "--task segmentation needs a segmentation model. "
            f"Received: {place.name}, for {place.task}"
        )
    if options.resolution is not None:
        raise ValueError(
            "--resolution is for classification. "
            f"Received: --resolution {options.resolution} for {options.folder}, with masks"
        )
    given = loading.read_labels(options.labels)
    labels = given or loading.known_classes(place)
    if labels is not None:  # before anything long
        check_classes(layout, len(labels.names), labels.names, say)
    # Where the model has no labels, those of the folder are shown.
    segmenter = loading.assemble(
        place,
        given,
        None,
        say if labels else lambda remark: None,
        scales=SCALES if options.multi_scale else (1.0,),
        flip=options.multi_scale,
    )
    check_classes(layout, segmenter.classes, None, say)
    images = scan_segmentation(layout, skip_bad=True, part="validation", classes=segmenter.classes)
    if layout.validation is None:
        say(
            f"{options.folder} has no part for validation (val/): all of its images are measured, "
            "also those that a model was trained on"
        )
    for note in images.notes:
        say(note)
    if options.predictions is None:
        counts, failed = confusion(segmenter, images)
    else:
        maps = LabelMaps(options.predictions, images.validation, segmenter)
        counts, failed = confusion(
            segmenter,
            images,
            lambda path, pixels, truth, found, here: maps.add(path, found, here),
        )
        maps.finish([*images.bad, *failed])
    scores = segmentation_scores(counts)
    names = images.class_names
    if labels is not None and layout.class_names is None:
        names = labels.names
    published = getattr(place, "miou_multiscale" if options.multi_scale else "miou", None)
    results = {
        "images": len(images.validation) - len(failed),
        "classes": len(names),
        "reduce_zero_label": images.reduce_zero_label,
        "multi_scale": options.multi_scale,
        "miou": _or_none(scores.mean_iou),
        "macc": _or_none(scores.mean_accuracy),
        "aacc": _or_none(scores.pixel_accuracy),
    }
    if published is not None:
        results["published"] = {"miou": published / 100, "data": place.data}
    results["per_class"] = [
        {"label": name, "iou": _or_none(iou), "accuracy": _or_none(accuracy), "pixels": int(pixels)}
        for name, iou, accuracy, pixels in zip(
            names, scores.iou, scores.accuracy, scores.pixels, strict=True
        )
    ]
    return results, [*images.bad, *failed]


def confusion(segmenter, images, seen=None):
    """`(counts, failed)`: the confusion matrix of all pixels, and files that went bad meanwhile.

    `seen`, if given, is called with `(path, image, truth, found, counts)` of each image.
    """
    classes = segmenter.classes
    counts, failed = np.zeros((classes, classes), "int64"), []
    with Progress("Evaluating", len(images.validation)) as progress:
        for image, mask in images.validation:
            progress.advance()
            reason, truth = reading(mask, functools.partial(read_mask, mask, images.encoding))
            if reason is not None:
                failed.append((mask, reason))
                continue
            reason, pixels = reading(image, functools.partial(read_image, image))
            if reason is not None:
                failed.append((image, reason))
                continue
            try:
                found = segmenter.label_map(pixels)
            except MemoryError:
                failed.append((image, "does not fit into memory"))
                continue
            here = pixel_confusion(truth, found, classes, images.ignore_value)
            counts += here
            if seen is not None:
                seen(image, pixels, truth, found, here)
    return counts, failed


def check_classes(layout, classes, names, say):
    """Raises FolderError unless a folder's classes are as many as a model's."""
    if layout.class_names is not None:
        class_names.check(layout.folder, layout.class_names, classes, names, say)


def lines(results):
    """Rows `(name, value, remark)` of the table."""
    published = results.get("published")
    remark = f"published: {published['miou']:.2%} ({published['data']})" if published else ""
    zero = "0 is ignored, 1 is the first class" if results["reduce_zero_label"] else ""
    return [
        ("images", str(results["images"]), zero),
        ("mIoU", _percent(results["miou"]), remark),
        ("mAcc", _percent(results["macc"]), ""),
        ("aAcc", _percent(results["aacc"]), ""),
        ("", "", ""),
        ("class", "IoU", "accuracy"),
        *(
            (row["label"], _percent(row["iou"]), _percent(row["accuracy"]))
            for row in results["per_class"]
        ),
    ]


def _percent(value):
    return "-" if value is None else f"{value:.2%}"


def _or_none(value):
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)
