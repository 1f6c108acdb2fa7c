"""COCO's twelve numbers of a detector, for boxes and for masks."""

import pathlib

import numpy as np

from keras_internimage import finished
from keras_internimage.commands import class_names
from keras_internimage.commands.evaluate import predictions
from keras_internimage.data.check import explain
from keras_internimage.data.coco import read_coco
from keras_internimage.data.coco_layout import Part, coco_layout
from keras_internimage.data.coco_metrics import CocoMetrics, check_installed
from keras_internimage.data.layout import FolderError
from keras_internimage.detector import evaluate_files, loading
from keras_internimage.progress import Progress


def evaluate(options, place, say):
    """Evaluates a detector on a folder of images with COCO's annotations.

    Returns:
        `(results, failed)`: what is printed and written, and `(path, reason)` of images that
        cannot be read, which count as images without detections.

    Raises:
        FolderError: the classes are not those of the model, or the annotations cannot be read.
        ValueError: the file is no detector.
        ImportError: pycocotools is not installed.
    """
    check_installed()
    finished.check_task(place, "detection")
    labels = loading.read_labels(options.labels)
    part = _part(options, say)
    data = part.data
    known = labels or loading.known_classes(place)
    if known is not None:  # before anything long
        class_names.check(
            part.annotations, data.class_names, len(known.classes), known.classes, say
        )
    resizing = options.resolution and loading.resizing_at(options.resolution)
    detector = loading.assemble(
        place, labels, resizing or None, say if known else lambda remark: None
    )
    class_names.check(part.annotations, data.class_names, detector.classes, None, say)
    metrics = CocoMetrics(data)
    with Progress("Evaluating", len(data.images)) as progress:
        failed = evaluate_files(
            detector,
            metrics,
            lambda image: part.path(image.file_name),
            options.batch_size or 1,
            advance=progress.advance,
        )
    if len(failed) == len(data.images):
        raise ValueError(
            "At least one image must be readable. Received: "
            f"{len(failed)} files, such as {failed[0][0]}: {_reason(*failed[0])}"
        )
    if options.predictions is not None:
        predictions.write_coco(options.predictions, metrics.rows)
    return _results(metrics, detector, place, failed), [
        (path, _reason(path, error)) for path, error in failed
    ]


def _part(options, say):
    """The annotations, and the folder of the images."""
    if options.annotations is not None:
        folder = pathlib.Path(options.folder)
        if not folder.is_dir():
            raise FolderError(f"FOLDER must be that of the images. Received: {folder}")
        return Part(pathlib.Path(options.annotations), folder, read_coco(options.annotations))
    layout = coco_layout(options.folder, part="validation")
    for note in layout.notes:
        say(note)
    return layout.validation or layout.train


def _results(metrics, detector, place, failed):
    scores = metrics.result()
    box_ap, mask_ap = (getattr(place, name, None) for name in ("box_ap", "mask_ap"))
    results = {
        "images": len(metrics.images) - len(failed),
        "classes": len(scores.class_names),
        "shorter_side": detector.resizing.shortest,
        "box": _numbers(scores.box),
        "mask": None if scores.mask is None else _numbers(scores.mask),
    }
    if box_ap is not None:
        published = {"box": box_ap / 100, "mask": mask_ap / 100, "data": "COCO val2017"}
        results["published"] = published
    masks = [None] * detector.classes if scores.mask is None else scores.mask.per_class
    results["per_class"] = [
        {
            "label": name,
            "objects": int(objects),
            "box_ap": _or_none(box),
            "box_ap50": _or_none(box_50),
            "mask_ap": None if mask is None else _or_none(mask),
        }
        for name, objects, box, box_50, mask in zip(
            scores.class_names,
            scores.objects,
            scores.box.per_class,
            scores.box.per_class_50,
            masks,
            strict=True,
        )
    ]
    return results


def lines(results):
    """Rows `(name, boxes, masks, remark)` of the table."""
    published = results.get("published")
    box, mask = results["box"], results["mask"] or {}
    remarks = {}
    if published is not None:
        both = f"{published['box']:.1%} and {published['mask']:.1%}"
        remarks["AP"] = f"published: {both} ({published['data']})"
    return [
        ("images", str(results["images"]), "", f"at {results['shorter_side']} pixels"),
        ("", "boxes", "masks", ""),
        *(
            (name, _percent(value), _percent(mask.get(name)), remarks.get(name, ""))
            for name, value in box.items()
        ),
        ("", "", "", ""),
        ("class", "box AP", "mask AP", "objects"),
        *(
            (row["label"], _percent(row["box_ap"]), _percent(row["mask_ap"]), str(row["objects"]))
            for row in results["per_class"]
        ),
    ]


def _numbers(precision):
    return {name: _or_none(value) for name, value in precision.numbers.items()}


def _percent(value):
    return "-" if value is None else f"{value:.1%}"


def _or_none(value):
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def _reason(path, error):
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    return explain(path, error)
