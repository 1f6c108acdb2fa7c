"""Finished models: a file, a published checkpoint, a repository, or a variant with weights."""

import dataclasses
import functools
import os
import pathlib

from keras_internimage import predictor
from keras_internimage.checkpoints import infer_config, open_checkpoint, published
from keras_internimage.checkpoints.infer import Guess
from keras_internimage.checkpoints.published import Published
from keras_internimage.checkpoints.repositories import Repository
from keras_internimage.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of a task's models and the official file of its weights."""

    variant: str
    path: pathlib.Path
    task: str
    top1: None = None  # nothing was published of it

    @property
    def name(self) -> str:
        return f"{self.variant} with {self.path}"

    @property
    def weights(self) -> pathlib.Path:
        return self.path

    @functools.cached_property
    def guess(self) -> Guess:
        """The model that the file is of, by its shapes."""
        return infer_config(open_checkpoint(self.path).shapes())

    @property
    def classes(self) -> int:
        """Number of classes of a classifier.

        Raises:
            ValueError: the file has no classifier.
        """
        if self.guess.family != "classifier" or self.guess.classes is None:
            raise ValueError(
                f"weights must hold a classifier. Received: weights={self.path}, without one"
            )
        return self.guess.classes

    @property
    def resolution(self) -> int:
        """Side of the images that the variant's classifier takes."""
        return VARIANTS[self.variant].resolution

    @property
    def row(self) -> Published | None:
        """The published checkpoint that the file has the name of, or None."""
        names = published.names(self.task)
        return published.find(self.path.stem) if self.path.stem in names else None


Place = pathlib.Path | Published | Variant | Repository


def locate(
    task: str | None, model: str | os.PathLike, weights: str | os.PathLike | None = None
) -> Place:
    """What `load`, or the function of a task, is to load. Loads no weights.

    Args:
        task: "classification", "segmentation" or "detection". None takes any: with `weights`, that
            of the weights.
        model: folder, file, name of a published checkpoint, address or folder of a repository of
            the hub, or, with `weights`, a variant.
        weights: of a variant: a keyword, a published name, or a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a file of another kind, or a checkpoint for another task.
    """
    if weights is None:
        if model in _variants(task) and not pathlib.Path(model).exists():
            raise ValueError(
                "A variant needs weights (--weights): "
                f"{', '.join(_keywords(task))}, the name of a published checkpoint "
                f"({', '.join(_of_variant(task, str(model)))}), or an official file. "
                f"Received: model={str(model)!r}, without weights"
            )
        place = predictor.locate(model)
        if task is not None:
            check_task(place, task)
        return place
    task = task or _task_of(weights)
    variants = _variants(task)
    if model not in variants:
        raise ValueError(
            f"With weights, model must be one of {', '.join(variants)}. "
            f"Received: model={str(model)!r}, weights={str(weights)!r}"
        )
    if weights in _keywords(task):
        return published.for_variant(str(model), str(weights))
    if weights in published.names(task):
        row = published.find(str(weights))
        if row.variant != model:
            raise ValueError(
                "weights must be for the variant. "
                f"Received: model={str(model)!r}, weights={row.name!r}"
            )
        return row
    _check_file(weights, task)
    return Variant(str(model), pathlib.Path(weights), task)


# By the family of a file's rename table.
_TASKS = {
    "classifier": "classification",
    "upernet": "segmentation",
    "mask_rcnn": "detection",
    "cascade_mask_rcnn": "detection",
}


def _variants(task):
    """The variants that there are published models of a task, or of any, on."""
    rows = (row for row in published.PUBLISHED if task in (None, row.task))
    return dict.fromkeys(row.variant for row in rows)


def _of_variant(task, variant):
    """Names of the published checkpoints of a variant."""
    return [name for name in published.names(task) if published.find(name).variant == variant]


def _keywords(task):
    keywords = published.KEYWORDS
    return keywords[task] if task else [word for words in keywords.values() for word in words]


def _task_of(weights):
    """The task of a keyword, a published name or a file."""
    task = published.keyword_task(weights)
    if task is not None:
        return task
    if weights in published.names():
        return published.find(str(weights)).task
    _check_file(weights, None)
    return _TASKS[infer_config(open_checkpoint(weights).shapes()).family]


def _check_file(weights, task):
    if not pathlib.Path(weights).is_file():
        raise FileNotFoundError(
            f"weights must be {', '.join(map(repr, _keywords(task)))}, a published name "
            f"({', '.join(published.names(task))}), or a file. "
            f"Received: weights={weights}, no such file"
        )


def check_task(place: Place, task: str) -> None:
    """Raises ValueError for a published checkpoint, or a repository, of another task."""
    own = getattr(place, "task", task)
    if own != task:
        raise ValueError(f"The model must be one for {task}. Received: {place.name}, for {own}")


def row_of(place: Place) -> Published | None:
    """The published checkpoint that a place is of, or None."""
    return place if isinstance(place, Published) else getattr(place, "row", None)
