"""Finished classifiers, with their labels and their preprocessing."""

import collections.abc
import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

    from keras_internimage.checkpoints.published import Published
    from keras_internimage.checkpoints.repositories import Repository

MODEL = "model.keras"  # in the folder of a training
_WHAT = (
    "The model must be a folder of internimage-train, a .keras file, the name of a published "
    "checkpoint, or a repository of the hub (hf://organisation/name) or a folder with its files"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions(collections.abc.Sequence):
    """What is on some images: `predictions[i]` is a tuple of `(label, probability)`, best first.

    Attributes:
        images: what each row belongs to: a `pathlib.Path`, or the object that was given.
        top: for each image, the most probable classes as `(label, probability)`.
        scores: float32 array `(N, classes)`, the probabilities of all classes in the order of the
            predictor's `labels`.
    """

    images: tuple
    top: tuple[tuple[tuple[str, float], ...], ...]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, index):
        return self.top[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A classifier with its labels and preprocessing; `keras_internimage.load` makes one.

    Attributes:
        model: the Keras model, not compiled: normalised images `(N, H, W, 3)` to scores.
        labels: names of the classes, in the order of the model's outputs; their numbers where no
            names are known.
        resolution: side in pixels of the square images that the model takes.
    """

    model: "keras.Model"
    labels: tuple[str, ...]
    resolution: int

    def predict(self, images: Any, top: int = 5, batch_size: int = 16) -> Predictions:
        """Names what is on images.

        Photographs are turned upright by their EXIF orientation, and go through the official
        evaluation transform (`keras_internimage.preprocessing.load_image`).

        Args:
            images: a path, a folder (all images below it), a `PIL.Image.Image`, a uint8 array
                `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, or a sequence of those, a uint8 array
                `(N, H, W, 3)` included.
            top: how many classes of each image to return, at most all of them.
            batch_size: images at a time.

        Returns:
            `Predictions`.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: an image cannot be read, or an argument is out of range.
        """
        for name, value in (("top", top), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer, at least 1. Received: {name}={value}")
        from keras_internimage.data import ahead

        given = ahead.sequence(images)
        rows = []
        for _, scores, error in self.stream(given, batch_size):
            if error is not None:
                raise error
            rows.append(scores)
        scores = np.stack(rows) if rows else np.zeros((0, len(self.labels)), "float32")
        return Predictions(tuple(given), tuple(self.best(row, top) for row in scores), scores)

    def best(self, scores: np.ndarray, top: int) -> tuple[tuple[str, float], ...]:
        """The most probable classes of one row of scores, as `(label, probability)`."""
        order = np.argsort(-scores, kind="stable")[:top]
        return tuple((self.labels[i], float(scores[i])) for i in order)

    def stream(
        self, images: collections.abc.Sequence, batch_size: int, exif_orientation: bool = True
    ):
        """Predicts image by image while the next ones are read in threads.

        `exif_orientation` is that of `preprocessing.load_image`.

        Yields:
            `(image, scores, None)` in order, or `(image, None, error)` for what cannot be read.
        """
        from keras_internimage.data import ahead

        def read(image):
            return _read(image, self.resolution, exif_orientation)

        for batch in ahead.batches(images, read, batch_size):
            readable = [pixels for _, (pixels, _) in batch if pixels is not None]
            scores = iter(())
            if readable:
                # One shape for all batches: XLA compiles one program.
                missing = min(batch_size, len(images)) - len(readable)
                filled = np.stack(readable + [readable[-1]] * missing)
                scores = iter(probabilities(self.model, filled))
            for image, (pixels, error) in batch:
                yield (image, None, error) if pixels is None else (image, next(scores), None)

    def export(self, path: str | os.PathLike, **options) -> pathlib.Path:
        """Writes the model as a file for another program, with preprocessing and labels.

        Args:
            path: as for `keras_internimage.export`.
            **options: of `keras_internimage.export`. Here `include_preprocessing` is True and
                `labels` are the predictor's, where they are names, unless given; and where the
                model takes images of any size, `input_shape` is that of the resolution.

        Returns:
            `path`, as a `pathlib.Path`.

        Raises:
            ValueError, ImportError, RuntimeError: as `keras_internimage.export`.
        """
        from keras_internimage import exports

        options.setdefault("include_preprocessing", True)
        if self.labels != _numbers(len(self.labels)):
            options.setdefault("labels", self.labels)
        if options.get("input_shape") is None and None in self.model.input_shape[1:3]:
            options["input_shape"] = (self.resolution, self.resolution, 3)
        return exports.export(self.model, path, **options)


def locate(model: str | os.PathLike) -> "pathlib.Path | Published | Repository":
    """The `.keras` file, published checkpoint or repository that `model` names. Loads no weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a file of another kind, or a repository of another kind of model.
    """
    from keras_internimage.checkpoints import hub

    path = pathlib.Path(model)
    if hub.is_address(model) or (path.is_dir() and not (path / MODEL).is_file()):
        from keras_internimage.checkpoints import repositories

        if hub.is_address(model) or repositories.is_repository(model):
            return repositories.open_repository(model)
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise FileNotFoundError(
                f"A model's folder must hold {MODEL}, which internimage-train writes at its end. "
                f"Received: {path / MODEL}, no such file"
            )
        return path / MODEL
    if path.exists():
        if path.suffix != ".keras":
            raise ValueError(
                "MODEL must be a .keras file (internimage-convert makes one of a checkpoint). "
                f"Received: {path}"
            )
        return path
    if path.name == str(model) and not path.suffix:  # as no file of a model is called
        from keras_internimage.checkpoints import published

        if str(model) in published.names():
            return published.find(str(model))
    raise FileNotFoundError(f"{_WHAT}. Received: {path}, no such file")


def read_labels(labels):
    """`data.labels.Labels` of names or of a file of them, which is JSON or has one name a line."""
    from keras_internimage.data import labels as files

    if labels is None:
        return None
    if not isinstance(labels, (str, os.PathLike)):
        return files.Labels(tuple(map(str, labels)))
    path = pathlib.Path(labels)
    if not path.is_file():
        raise FileNotFoundError(f"The labels must be a file. Received: {path}, no such file")
    try:
        text = path.read_text("utf-8-sig")
    except ValueError as error:
        raise ValueError(
            f"The labels must be JSON or UTF-8 text. Received: {path}: {error}"
        ) from error
    if path.suffix == ".json" or text.lstrip()[:1] in ("[", "{"):
        return files.read(path)
    return files.Labels(tuple(line.strip() for line in text.rstrip().splitlines()))


def assemble(place, labels, resolution, say, model=None) -> Predictor:
    """The `Predictor` of what `locate` and `read_labels` found; `say` is given a remark.

    `model` is that of a file, where it has been loaded.
    """
    if isinstance(place, pathlib.Path):
        model = model or load_model(place)
        check_classifier(model, place)
        labels = labels or labels_beside(place)
        known = labels.resolution if labels else None
    else:
        check_published_classifier(place)
        model = build_published(place, resolution)
        labels = labels or _labels_of(place)
        known = place.resolution
    classes = model.output_shape[-1]
    if labels is not None and len(labels.classes) != classes:
        raise ValueError(
            f"The labels must be as many as the model has classes, {classes}. "
            f"Received: {len(labels.classes)} labels"
        )
    height, width = model.input_shape[1:3]
    side = resolution or height or width or known or 224
    for size in (height, width):
        if size not in (None, side):
            raise ValueError(
                f"The model takes images of {height} x {width} pixels. "
                f"Received: resolution={resolution}"
                if resolution
                else f"The model must take square images. Received: {height} x {width} pixels"
            )
    return Predictor(model, labels.classes if labels else _names(classes, say), side)


def labels_beside(path: pathlib.Path):
    """The `Labels` of `labels.json` beside a model's file, or None."""
    from keras_internimage.data import labels

    return labels.read(path.with_name(labels.FILE))


def load_model(path: pathlib.Path) -> "keras.Model":
    """The model of a `.keras` file, not compiled.

    Raises:
        ValueError: it is damaged.
    """
    import keras

    # Registers what a model of this package consists of; a command has not done so yet.
    import keras_internimage.layers
    import keras_internimage.models  # noqa: F401

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # zip, JSON, HDF5 and Keras itself: a damaged file fails in each
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"MODEL must be a .keras file that Keras loads. Received: {path} ({reason})"
        ) from error


def build_published(
    place: "Published | Repository | Any", resolution: int | None = None
) -> "keras.Model":
    """The model of a published checkpoint, downloaded if it is not in the cache, or the like.

    Args:
        place: what `locate` or `finished.locate` found, but for a path.
        resolution: side of the images, None for that of the place.
    """
    from keras_internimage import models
    from keras_internimage.variants import function_name

    side = resolution or place.resolution
    options: dict[str, Any] = {"classes": place.classes, "input_shape": (side, side, 3)}
    if hasattr(place, "config"):
        return models.InternImage(**place.config, weights=place.weights, **options)
    build = getattr(models, function_name(place.variant))
    return build(weights=place.weights, **options)


def _labels_of(place):
    from keras_internimage.data.labels import Labels

    names = getattr(place, "labels", None)
    return None if names is None else Labels(names)


def check_published_classifier(row: "Published | Repository | Any") -> None:
    """Raises ValueError for a published checkpoint that does not classify images."""
    if row.task != "classification":
        raise ValueError(
            "MODEL must be a classifier (internimage-segment takes models of segmentation, "
            f"internimage-detect detectors). Received: {row.name}"
        )


def check_classifier(model: "keras.Model", path: pathlib.Path) -> None:
    """Raises ValueError unless the model gives scores of classes for normalised images."""
    import keras

    shapes: Any = (getattr(model, "input_shape", None), getattr(model, "output_shape", None))
    if not all(isinstance(shape, tuple) for shape in shapes) or (
        len(shapes[0]) != 4 or shapes[0][-1] != 3 or len(shapes[1]) != 2
    ):
        raise ValueError(
            "MODEL must take images (N, H, W, 3) and give one score for each class "
            "(internimage-segment takes models of segmentation). "
            f"Received: {path}, from {shapes[0]} to {shapes[1]}"
        )
    dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
    if "float" not in dtype:
        raise ValueError(
            f"MODEL must take normalised images, of a float type. Received: {path}, of {dtype}"
        )


def probabilities(model: "keras.Model", images: np.ndarray) -> np.ndarray:
    """float32 probabilities `(N, classes)` of normalised images; logits are softmaxed."""
    import keras

    scores = np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(images)), "float32")
    activation = getattr(model.layers[-1], "activation", None)
    if activation is keras.activations.linear:
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
    return scores


def _numbers(classes):
    return tuple(str(index) for index in range(classes))


def _names(classes, say):
    from keras_internimage.preprocessing import IMAGENET_CLASSES, decode_predictions

    if classes == IMAGENET_CLASSES:
        ranks = np.arange(classes, 0, -1, "float32")[None]
        try:
            return tuple(name for _, name, _ in decode_predictions(ranks, top=classes)[0])
        except RuntimeError as error:
            say(f"classes are shown as numbers. {error}")
    return _numbers(classes)


def _read(image, size, exif_orientation):
    from keras_internimage.preprocessing import load_image

    try:
        return load_image(image, size, exif_orientation=exif_orientation), None
    except FileNotFoundError:
        return None, FileNotFoundError(f"An image must exist. Received: {image}, no such file")
    except ValueError as error:
        return None, error
