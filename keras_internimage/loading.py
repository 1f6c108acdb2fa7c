"""A finished model of any task in one call: `keras_internimage.load(model).predict(images)`."""

import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import keras

from keras_internimage import finished, predictor
from keras_internimage.detector import loading as detecting
from keras_internimage.segmenter import loading as segmenting


@runtime_checkable
class FinishedModel(Protocol):
    """What `load` gives, whatever the task: a `Predictor`, a `Segmenter` or a `Detector`.

    Attributes:
        model: the Keras model, for normalised images.
        labels: names of the classes, in the order of the model's outputs.
    """

    @property
    def model(self) -> keras.Model: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def predict(self, images: Any) -> Sequence:
        """What is on images: a sequence with one result for each.

        Args:
            images: a path, a folder (all images below it), a `PIL.Image.Image`, a uint8 array, or a
                sequence of those.
        """

    def export(self, path: str | os.PathLike, **options: Any) -> pathlib.Path:
        """Writes the model as a file for another program, with normalisation and labels."""


# What each task's function takes besides model, weights and labels.
OPTIONS = {
    "classification": ("resolution",),
    "segmentation": ("resizing", "palette", "crop", "stride", "scales", "flip", "batch_size"),
    "detection": ("resizing", "threshold", "category_ids", "multiple"),
}


def load(
    model: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    labels: str | os.PathLike | Sequence[str] | None = None,
    **options: Any,
) -> FinishedModel:
    """Loads a finished model, whatever it was made for, to predict with.

    ```python
    for best in keras_internimage.load("flowers-internimage").predict(paths):
        label, probability = best[0]
    masks = keras_internimage.load("upernet_internimage_t_512_160k_ade20k").predict("photo.jpg")
    objects = keras_internimage.load("mask_rcnn_internimage_t_fpn_3x_coco").predict("photo.jpg")
    ```

    Args:
        model: the output folder of `internimage-train`; a `.keras` file; the name of a published
            checkpoint, which is downloaded once; a repository of the hub,
            `"hf://OpenGVLab/internimage_t_1k_224"` (`hf://organisation/name@revision`), or a folder
            with its files; or, with `weights`, the key of a variant, such as "T".
        weights: of a variant: a keyword ("imagenet", "ade20k", "cityscapes", "coco"), the name of a
            published checkpoint, or an official file (`.pth`, `.safetensors`). They say which task
            it is.
        labels: names of the classes, or a file of them. None takes those that belong to the model.
        **options: of the task's own function: for classification (`load_classifier`)
            `resolution`; for segmentation (`load_segmenter`) `resizing`, `palette`, `crop`,
            `stride`, `scales`, `flip`, `batch_size`; for detection (`load_detector`) `resizing`,
            `threshold`, `category_ids`, `multiple`.

    Returns:
        A `FinishedModel`: a `Predictor`, a `Segmenter` or a `Detector`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is for none of the tasks, or an argument does not fit it.
        TypeError: an option is for another task.
    """
    place = finished.locate(None, model, weights)
    task, built = getattr(place, "task", None), None
    if isinstance(place, pathlib.Path):
        _check_options(None, options)
        built = predictor.load_model(place)
        task = task_of(built)
    _check_options(task, options)
    if task == "classification":
        found = predictor.read_labels(labels)
        side = options.get("resolution")
        return predictor.assemble(place, found, side, warnings.warn, model=built)
    kind = segmenting if task == "segmentation" else detecting
    found, resizing = kind.read_labels(labels), options.pop("resizing", None)
    return kind.assemble(place, found, resizing, warnings.warn, model=built, **options)


def load_classifier(
    model: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    labels: str | os.PathLike | Sequence[str] | None = None,
    resolution: int | None = None,
) -> predictor.Predictor:
    """Loads a finished classifier, to predict with.

    Args:
        model: the output folder of `internimage-train`; a `.keras` file; the name of a published
            checkpoint, such as `"internimage_t_1k_224"`, which is downloaded once; a repository of
            the hub, `"hf://OpenGVLab/internimage_t_1k_224"`, or a folder with its files; or, with
            `weights`, the letter of a variant, such as "T".
        weights: of a variant: "imagenet", the name of a published checkpoint, or an official file
            (`.pth`, `.safetensors`).
        labels: names of the classes, or a file of them: JSON, or text with one name a line.
            None takes `labels.json` beside the model, or ImageNet's names for 1000 classes.
        resolution: side of the images in pixels. None takes the model's, or that of its labels.

    Returns:
        A `Predictor`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is no classifier of images, or labels or resolution do not fit it.
    """
    place = finished.locate("classification", model, weights)
    return predictor.assemble(place, predictor.read_labels(labels), resolution, warnings.warn)


def task_of(model: keras.Model) -> str:
    """The task of a Keras model, by what it gives; "classification" if it is none of the others.

    A backbone gives features for each pixel, which are no scores of classes.
    """
    if hasattr(model, "pyramid_outputs"):
        return "classification"
    if segmenting.is_segmentation(model):
        return "segmentation"
    return "detection" if detecting.is_detector(model) else "classification"


def _check_options(task, options):
    known = (
        OPTIONS[task] if task else sorted({name for names in OPTIONS.values() for name in names})
    )
    for name in options:
        if name not in known:
            of_task = f"of a model for {task}" if task else "of `load`"
            raise TypeError(
                f"The options {of_task} must be among {', '.join(known)}. "
                f"Received: {name}={options[name]!r}"
            )
