"""Finished models: a file, a published checkpoint, or a variant with a file of weights."""

import dataclasses
import os
import pathlib

from keras_internimage import predictor
from keras_internimage.checkpoints import published
from keras_internimage.checkpoints.published import Published


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of a task's models and the official file of its weights."""

    letter: str
    path: pathlib.Path
    task: str

    @property
    def name(self) -> str:
        return f"{self.letter} with {self.path}"

    @property
    def row(self) -> Published | None:
        """The published checkpoint that the file has the name of, or None."""
        names = published.names(self.task)
        return published.find(self.path.stem) if self.path.stem in names else None


Place = pathlib.Path | Published | Variant


def locate(task: str, model: str | os.PathLike, weights: str | os.PathLike | None = None) -> Place:
    """What `load_segmenter` or `load_detector` is to load. Loads nothing.

    Args:
        task: "segmentation" or "detection".
        model: folder, file, name of a published checkpoint, or, with `weights`, a variant.
        weights: of a variant: a keyword, a published name, or a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a file of another kind, or a checkpoint for another task.
    """
    if weights is None:
        place = predictor.locate(model)
        check_task(place, task)
        return place
    variants = dict.fromkeys(row.variant for row in published.PUBLISHED if row.task == task)
    if model not in variants:
        raise ValueError(
            f"With weights, model must be one of {', '.join(variants)}. "
            f"Received: model={str(model)!r}, weights={str(weights)!r}"
        )
    keywords = published.KEYWORDS[task]
    if weights in keywords:
        return published.for_variant(str(model), str(weights))
    if weights in published.names(task):
        row = published.find(str(weights))
        if row.variant != model:
            raise ValueError(
                "weights must be for the variant. "
                f"Received: model={str(model)!r}, weights={row.name!r}"
            )
        return row
    path = pathlib.Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights must be {', '.join(map(repr, keywords))}, a published name "
            f"({', '.join(published.names(task))}), or a file. "
            f"Received: weights={path}, no such file"
        )
    return Variant(str(model), path, task)


def check_task(place: Place, task: str) -> None:
    """Raises ValueError for a published checkpoint of another task."""
    if isinstance(place, Published) and place.task != task:
        raise ValueError(
            f"The model must be one for {task}. Received: {place.name}, for {place.task}"
        )


def row_of(place: Place) -> Published | None:
    """The published checkpoint that a place is of, or None."""
    return place if isinstance(place, Published) else getattr(place, "row", None)
