"""Average precision of a detector: of files with annotations, of batches, and during `fit`."""

import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_internimage.data import run_lengths
from keras_internimage.data.coco import CocoDataset, CocoImage, CocoObject
from keras_internimage.data.coco_masks import RunLengths
from keras_internimage.data.coco_metrics import CocoMetrics, CocoScores, check_installed
from keras_internimage.data.resizing import check_positive
from keras_internimage.detector.detections import Detections
from keras_internimage.detector.inference import Detector, check_model, model_detections
from keras_internimage.preprocessing import read_image
from keras_internimage.report.object_gallery import WorstObjects

Seen = Callable[[CocoImage, pathlib.Path, Detections], object]


def evaluate_files(
    detector: Detector,
    metrics: CocoMetrics,
    paths: Callable[[CocoImage], pathlib.Path],
    batch_size: int = 1,
    seen: Seen | None = None,
    advance: Callable[[], object] = lambda: None,
) -> list[tuple[pathlib.Path, Exception]]:
    """Adds what a detector finds in the images of `metrics` to them.

    Args:
        detector: a `Detector` with the classes of the annotations, in their order.
        metrics: `CocoMetrics`.
        paths: function from a `CocoImage` to the image's path.
        batch_size: images at a time.
        seen: called with the `CocoImage`, its path and its `Detections`.
        advance: called after each image.

    Returns:
        `(path, error)` of each image that cannot be read, or has another size than the annotations
        say. They count as images without detections.

    Raises:
        ValueError: the detector has another number of classes.
    """
    classes = len(metrics.dataset.class_names)
    if detector.classes != classes:
        raise ValueError(
            f"There must be as many classes as the model has, {detector.classes}. "
            f"Received: {metrics.dataset.path} with {classes}"
        )
    files = [paths(image) for image in metrics.images]
    failed: list[tuple[pathlib.Path, Exception]] = []
    stream = detector.stream(files, batch_size)
    for image, (path, found, error) in zip(metrics.images, stream, strict=True):
        advance()
        size = (image.height, image.width)
        if found is not None and (found.height, found.width) != size:
            error = ValueError(
                f"is {found.width} x {found.height} pixels, {image.width} x {image.height} by the "
                "annotations"
            )
        if error is not None:
            failed.append((path, error))
            continue
        metrics.add(image.id, found)
        if seen is not None:
            seen(image, path, found)
    return failed


def evaluate_batches(
    model: keras.Model, batches: Iterable[tuple[Any, Any]]
) -> tuple[CocoMetrics, CocoScores]:
    """The average precision of a model on batches as `fit` takes them.

    Sizes are those of the images as the model sees them, so that small, medium and large objects
    are others than in the files; there are no crowds.

    Args:
        model: `MaskRCNN`, or another with its inputs and outputs.
        batches: of `(x, y)`: `x` images or a dict, as the model is called with; `y` a dict of
            "boxes" `(N, M, 4)` in the model's `bounding_box_format`, "labels" `(N, M)`, -1 where
            there is none, and, for masks, "masks" `(N, M, H, W)`.

    Returns:
        `(metrics, scores)`.

    Raises:
        ValueError: `y` is not as said above.
    """
    images: list[CocoImage] = []
    objects: list[CocoObject] = []
    found: list[Detections] = []
    for batch in _each(batches):
        x, y = batch[:2]
        x = dict(x) if isinstance(x, dict) else {"images": x}
        x.pop("original_sizes", None)  # boxes of targets are in the resized image, too
        shape = np.shape(x["images"])
        sizes = np.asarray(_numpy(x.get("image_sizes", [shape[1:3]] * shape[0])), int).tolist()
        for size, one in zip(sizes, model_detections(model, x, sizes), strict=True):
            images.append(CocoImage(len(images), f"{len(images)}", size[1], size[0]))
            found.append(one)
        first = len(images) - len(sizes)
        objects += _objects(model, y, sizes, first, len(objects))
    classes = check_model(model)
    dataset = CocoDataset(
        pathlib.Path("validation data"),
        tuple(map(str, range(classes))),
        tuple(range(1, classes + 1)),
        tuple(images),
        tuple(objects),
    )
    metrics = CocoMetrics(dataset)
    for image, one in zip(images, found, strict=True):
        metrics.add(image.id, one)
    return metrics, metrics.result()


def collect(worst: WorstObjects, dataset: CocoDataset) -> Seen:
    """What `evaluate_files` calls to collect the images with the most errors, for a report."""
    objects = dataset.by_image()

    def seen(image, path, found):
        worst.add(path, lambda: read_image(path), objects[image.id], found)

    return seen


class CocoEvaluation(keras.callbacks.Callback):
    """Average precision on validation images after each epoch of `fit`.

    It puts `val_box_ap`, `val_box_ap50`, and where there are masks `val_mask_ap` and
    `val_mask_ap50` into the logs, from 0 to 1; not a number where there is no object. Callbacks
    that look at these, such as `EarlyStopping`, must come after it.

    ```python
    evaluation = CocoEvaluation(read_coco("val/_annotations.coco.json"), "val")
    model.fit(train, epochs=12, callbacks=[evaluation, EarlyStopping("val_box_ap", mode="max")])
    ```

    Args:
        validation: a `CocoDataset`, or batches of `(x, y)` that can be gone through again and
            again, as for `evaluate_batches`.
        folder: of the images of a `CocoDataset`.
        every: how many epochs lie between two evaluations. The others have no numbers.
        batch_size: images of a `CocoDataset` at a time.
        **options: of `Detector`: `resizing`, `multiple`.

    Attributes:
        scores: `CocoScores` of the last evaluation; None before.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: an argument is not as said above.
    """

    def __init__(
        self,
        validation: CocoDataset | Iterable[tuple[Any, Any]],
        folder: str | os.PathLike | None = None,
        *,
        every: int = 1,
        batch_size: int = 1,
        **options: Any,
    ):
        super().__init__()
        check_installed()
        check_positive("every", every)
        check_positive("batch_size", batch_size)
        files = isinstance(validation, CocoDataset)
        if files != (folder is not None):
            raise ValueError(
                "`folder` must be given for a CocoDataset, and for nothing else. "
                f"Received: folder={folder!r}, validation of {type(validation).__name__}"
            )
        if not files and (options or isinstance(validation, Iterator)):
            what = f"{', '.join(options)} for batches" if options else "an iterator"
            raise ValueError(
                "`validation` must be batches that can be gone through again, and take no options "
                f"of a Detector. Received: {what}"
            )
        self.validation, self.folder = validation, folder
        self.every, self.batch_size, self.options = every, batch_size, options
        self.scores: CocoScores | None = None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % self.every:
            return
        self.scores = self.evaluate(self.model)
        if logs is not None:
            logs.update(log_values(self.scores))

    def evaluate(self, model: keras.Model) -> CocoScores:
        """The `CocoScores` of a model, on what `validation` is."""
        if not isinstance(self.validation, CocoDataset):
            return evaluate_batches(model, self.validation)[1]
        folder = pathlib.Path(os.fspath(self.folder or ""))
        metrics = CocoMetrics(self.validation)
        detector = Detector(model, self.validation.class_names, **self.options)
        failed = evaluate_files(
            detector, metrics, lambda image: folder / image.file_name, self.batch_size
        )
        if failed:
            path, error = failed[0]
            raise ValueError(
                f"All images must be readable. Received: {path}: {error} ({len(failed)} in all)"
            )
        return metrics.result()


def log_values(scores: CocoScores) -> dict[str, float]:
    """What of some scores a history holds, by its keys."""
    values = {}
    for name, precision in (("box", scores.box), ("mask", scores.mask)):
        if precision is not None:
            values[f"val_{name}_ap"] = precision.numbers["AP"]
            values[f"val_{name}_ap50"] = precision.numbers["AP50"]
    return values


def _each(batches):
    """The batches, also of a `PyDataset`, whose iterator never ends."""
    if hasattr(batches, "__getitem__") and hasattr(batches, "__len__"):
        return (batches[index] for index in range(len(batches)))
    return batches


def _objects(model, y, sizes, first_image, first_object):
    """The objects of a batch's targets."""
    if not isinstance(y, dict) or not {"boxes", "labels"} <= set(y):
        received = sorted(y) if isinstance(y, dict) else type(y).__name__
        raise ValueError(f"Targets must be a dict of boxes and labels. Received: {received}")
    boxes, labels = (np.asarray(_numpy(y[name])) for name in ("boxes", "labels"))
    masks = np.asarray(_numpy(y["masks"])) if "masks" in y else None
    made: list[CocoObject] = []
    for index, (height, width) in enumerate(sizes):
        corners = keras.utils.bounding_boxes.convert_format(
            boxes[index].astype("float32"),
            source=model.bounding_box_format,
            target="xyxy",
            height=height,
            width=width,
        )
        corners = _numpy(corners)
        for place in np.flatnonzero(labels[index] >= 0).tolist():
            segmentation = None
            if masks is not None:
                runs = run_lengths.encode(masks[index, place, :height, :width])
                segmentation = RunLengths(height, width, runs["counts"])
            box = tuple(map(float, corners[place]))
            number = first_object + len(made)
            label = int(labels[index, place])
            made.append(CocoObject(number, first_image + index, label, box, segmentation))
    return made


def _numpy(x):
    return keras.ops.convert_to_numpy(x)
