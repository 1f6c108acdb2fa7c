"""`load_detector`: a finished model of detection with its classes and its preprocessing."""

import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_internimage import finished, models, predictor
from keras_internimage.checkpoints import infer_config, open_checkpoint, published
from keras_internimage.checkpoints.infer import describe
from keras_internimage.checkpoints.published import Published
from keras_internimage.data.detection_classes import detection_classes
from keras_internimage.data.labels import Labels, check_unique
from keras_internimage.data.resizing import Resizing
from keras_internimage.detector.inference import RESIZING, Detector, check_model
from keras_internimage.finished import Place, row_of
from keras_internimage.variants import title


def load_detector(
    model: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    class_names: str | os.PathLike | Sequence[str] | None = None,
    resizing: Resizing | None = None,
    **options: Any,
) -> Detector:
    """Loads a finished model of detection.

    ```python
    detector = load_detector("mask_rcnn_internimage_t_fpn_3x_coco", threshold=0.5)
    for box, label in zip(found.boxes, found.labels):  # found = detector.predict("photo.jpg")[0]
        print(detector.class_names[label], box)
    ```

    Args:
        model: the name of a published checkpoint, which is downloaded once; the output folder of
            `internimage-train`; a `.keras` file; or, with `weights`, the letter of a variant,
            such as "T".
        weights: of a variant: "coco", the name of a published checkpoint, or an official file
            (`.pth`, `.safetensors`).
        class_names: names of the classes, or a file of them: JSON, or text with one name a line;
            or "coco". None takes the published ones, or `labels.json` beside the model.
        resizing: None takes that of the published accuracy, or of the labels' resolution, which
            the longer side may exceed as much as in the published one.
        **options: of `Detector`: `threshold`, `category_ids`, `multiple`.

    Returns:
        A `Detector`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no detector, or an argument does not fit it.
    """
    place = locate(model, weights)
    return assemble(place, read_labels(class_names), resizing, warnings.warn, **options)


def locate(model: str | os.PathLike, weights: str | os.PathLike | None = None) -> Place:
    """What `load_detector` is to load, as `finished.locate`."""
    return finished.locate("detection", model, weights)


def is_detector(model: keras.Model) -> bool:
    """Whether a model gives boxes, labels, scores and masks."""
    try:
        check_model(model)
    except ValueError:
        return False
    return True


def read_labels(labels: str | os.PathLike | Sequence[str] | None) -> Labels | None:
    """`Labels` of names, of a file of them, or of a published data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is another one, or two names are the same.
    """
    if isinstance(labels, str) and labels in published.DETECTION_DATA:
        return Labels(tuple(row.name for row in detection_classes(labels)))
    read = predictor.read_labels(labels)
    if read is not None:
        check_unique("class_names", read.classes)
    return read


def known_classes(place: Place) -> Labels | None:
    """`Labels` that belong to a model, or None. Loads no model."""
    row = row_of(place)
    if row is not None:
        return read_labels(row.data)
    return predictor.labels_beside(place) if isinstance(place, pathlib.Path) else None


def assemble(
    place: Place,
    labels: Labels | None,
    resizing: Resizing | None,
    say: Callable[[str], object],
    model: keras.Model | None = None,
    **options: Any,
) -> Detector:
    """The `Detector` of what `locate` and `read_labels` found; `say` is given a remark.

    `model` is that of a file, where it has been loaded.
    """
    known = known_classes(place)
    labels = labels or known
    model = model or _build(place)
    classes = check_model(model)
    if labels is None and classes != len(detection_classes("coco")):
        say("classes are shown as numbers: there is no labels.json beside the model")
    if labels is not None and len(labels.classes) != classes:
        raise ValueError(
            f"The labels must be as many as the model has classes, {classes}. "
            f"Received: {len(labels.classes)} labels"
        )
    if resizing is None and known is not None and known.resolution:
        resizing = resizing_at(known.resolution)
    names = None if labels is None else labels.classes
    return Detector(model, names, resizing=resizing, **options)


def resizing_at(resolution: int) -> Resizing:
    """The size at which a model sees images whose shorter side was `resolution` in training."""
    return Resizing(resolution, round(resolution * RESIZING.longest / RESIZING.shortest))


def _build(place):
    if isinstance(place, pathlib.Path):
        return predictor.load_model(place)
    if isinstance(place, Published):
        return _function(place.name, place.variant)(weights=place.name)
    guess = infer_config(open_checkpoint(place.path).shapes())
    if not guess.family.startswith(tuple(_FUNCTIONS)) or guess.classes is None:
        raise ValueError(
            f"weights must hold a detector's heads. Received: weights={place.path}, without them"
        )
    function = _function(guess.family, place.variant)
    if function is None:
        raise ValueError(
            f"weights must be of a detector that there is on {title(place.variant)}. "
            f"Received: weights={place.path}, of {describe(guess)}"
        )
    return function(weights=place.path, classes=guess.classes)


# By the begin of a published name, and of the name of its family's rename table.
_FUNCTIONS = {"mask_rcnn": "MaskRCNN", "cascade": "CascadeMaskRCNN"}


def _function(name, variant):
    """The function of a detector on a variant, None where there is none."""
    kind = next(kind for kind in _FUNCTIONS if name.startswith(kind))
    return getattr(models, f"{_FUNCTIONS[kind]}{variant}", None)
