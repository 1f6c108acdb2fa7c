"""`load_segmenter`: a finished segmentation model with its classes and its preprocessing."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_internimage import finished, models, predictor
from keras_internimage.checkpoints import infer_config, open_checkpoint, published
from keras_internimage.checkpoints.published import Published
from keras_internimage.data.labels import Labels, check_unique
from keras_internimage.data.palette import FILE, Colour, default_palette, read_classes
from keras_internimage.data.resizing import Resizing
from keras_internimage.data.segmentation_classes import segmentation_classes
from keras_internimage.finished import Place, row_of
from keras_internimage.segmenter.inference import Segmenter, check_model

# The official models for Cityscapes see its images, of 2048 x 1024 pixels, as they are.
_CITYSCAPES = Resizing(1024, 2048)
_MULTIPLE = 32


def load_segmenter(
    model: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    labels: str | os.PathLike | Sequence[str] | None = None,
    resizing: Resizing | None = None,
    **options: Any,
) -> Segmenter:
    """Loads a finished segmentation model.

    ```python
    segmenter = load_segmenter("upernet_internimage_t_512_160k_ade20k")
    classes = segmenter.label_map(read_image("photo.jpg"))  # (H, W), numbers of segmenter.labels
    ```

    Args:
        model: the name of a published checkpoint, which is downloaded once; the output folder of
            `internimage-train`; a `.keras` file; or, with `weights`, the letter of a `UperNet`
            variant, "T" to "H".
        weights: of a variant: "ade20k", "cityscapes", the name of a published checkpoint, or an
            official file (`.pth`, `.safetensors`).
        labels: names of the classes, or a file of them: JSON, or text with one name a line, also
            `classes.txt` with colours; or "ade20k" or "cityscapes". None takes the published ones,
            or `labels.json` and `classes.txt` beside the model. Where they are fewer than the
            model's outputs, the first outputs count, and a warning says so.
        resizing: None takes that of the published accuracy, or of the labels' resolution; without
            either, images keep their own size.
        **options: of `Segmenter`: `palette`, `crop`, `stride`, `scales`, `flip`, `batch_size`.

    Returns:
        A `Segmenter`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no segmentation model, or an argument does not fit it.
    """
    place = locate(model, weights)
    return assemble(place, read_labels(labels), resizing, warnings.warn, **options)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names of classes, their colours (None where they have none), and the side of images."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...] | None = None
    resolution: int | None = None


def locate(model: str | os.PathLike, weights: str | os.PathLike | None = None) -> Place:
    """What `load_segmenter` is to load, as `finished.locate`."""
    return finished.locate("segmentation", model, weights)


def is_segmentation(model: keras.Model) -> bool:
    """Whether a model gives logits of the classes for each pixel."""
    try:
        check_model(model)
    except ValueError:
        return False
    return True


def read_labels(labels: str | os.PathLike | Sequence[str] | None) -> Classes | None:
    """`Classes` of names, of a file of them, or of a published data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is another one, or two names are the same.
    """
    classes = _read_labels(labels)
    if classes is not None:
        check_unique("labels", classes.names)
    return classes


def _read_labels(labels):
    if isinstance(labels, str) and labels in published.SEGMENTATION_DATA:
        return _of_data(labels)
    if isinstance(labels, (str, os.PathLike)) and pathlib.Path(labels).suffix == ".txt":
        path = pathlib.Path(labels)
        if not path.is_file():
            raise FileNotFoundError(f"The labels must be a file. Received: {path}, no such file")
        names, palette, _ = read_classes(path)
        return Classes(names, palette or None)
    return _of_labels(predictor.read_labels(labels))


def known_classes(place: Place) -> Classes | None:
    """`Classes` that belong to a model, or None. Loads no model."""
    row = row_of(place)
    if row is not None:
        return _of_data(row.data)
    if not isinstance(place, pathlib.Path):
        return None
    classes = _of_labels(predictor.labels_beside(place))
    beside = place.with_name(FILE)
    if beside.is_file():
        names, palette, _ = read_classes(beside)
        if classes is None:
            return Classes(names, palette or None)
        if names == classes.names:
            return dataclasses.replace(classes, palette=palette or None)
    return classes


def assemble(
    place: Place,
    classes: Classes | None,
    resizing: Resizing | None,
    say: Callable[[str], object],
    model: keras.Model | None = None,
    **options: Any,
) -> Segmenter:
    """The `Segmenter` of what `locate` and `read_labels` found; `say` is given a remark.

    `model` is that of a file, where it has been loaded.
    """
    row, given = row_of(place), classes is not None
    classes = classes or known_classes(place)
    model = model or _build(place)
    outputs = check_model(model)
    if classes is None:
        say("classes are shown as numbers: there is no labels.json or classes.txt beside the model")
        classes = Classes(tuple(map(str, range(outputs))))
    names = classes.names
    if len(names) > outputs or (len(names) < outputs and not given and row is None):
        raise ValueError(
            f"The labels must be as many as the model has classes, {outputs}. "
            f"Received: {len(names)} labels"
        )
    if given and len(names) < outputs:
        say(f"of the model's {outputs} outputs the first {len(names)} count, which have labels")
    if resizing is None and row is not None:
        resizing = published_resizing(row)
    elif resizing is None and classes.resolution and not any(model.input_shape[1:3]):
        resizing = resizing_at(classes.resolution)
    palette = options.pop("palette", None) or classes.palette or default_palette(len(names))
    return Segmenter(model, names, palette=palette, resizing=resizing, **options)


def published_resizing(row: Published) -> Resizing:
    """The size at which a published checkpoint sees images in the official test."""
    return resizing_at(row.resolution) if row.data == "ade20k" else _CITYSCAPES


def resizing_at(resolution: int) -> Resizing:
    """The size at which a model sees images that was trained on crops of a side."""
    return Resizing(resolution, multiple=_MULTIPLE)


def _build(place):
    if isinstance(place, pathlib.Path):
        return predictor.load_model(place)
    if isinstance(place, Published):
        return getattr(models, f"UperNet{place.variant}")(weights=place.name, output_size="quarter")
    guess = infer_config(open_checkpoint(place.path).shapes())
    if guess.family != "upernet" or guess.classes is None:
        raise ValueError(
            f"weights must hold UperNet's head. Received: weights={place.path}, without it"
        )
    build = getattr(models, f"UperNet{place.variant}")
    return build(weights=place.path, classes=guess.classes, output_size="quarter")


def _of_data(data):
    rows = segmentation_classes(data)
    return Classes(tuple(row.name for row in rows), tuple(row.color for row in rows))


def _of_labels(labels: Labels | None) -> Classes | None:
    return None if labels is None else Classes(labels.classes, None, labels.resolution)
