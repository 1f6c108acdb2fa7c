"""What a report is made of."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_internimage.report.provenance import Provenance


@dataclasses.dataclass
class Results:
    """A finished training, as `report.write` takes it.

    Args:
        class_names: one name per class.
        history: per epoch, lists of `loss`, `accuracy`, `val_loss`, `val_accuracy`,
            `learning_rate`. Any may be missing or hold values that are not finite; other keys are
            not shown.
        labels: `(N,)`, integers: the true class of each validation image.
        scores: `(N, classes)`: the predicted probabilities, rows in the order of `labels`.
        files: N paths of the validation images, in the same order.
        settings: what the training was started with, shown as a table in this order.
        skipped: `(path, reason)` of each file that was left out of the training.
        title: the page's heading.
        read: function from a path to the image as the model saw it before resizing, uint8
            `(H, W, 3)`, `(H, W)` or a `PIL.Image.Image`. None reads as `preprocessing.load_image`
            does: 8 bits, upright.
        train_counts: `(classes,)`, integers: how many images of each class were trained on. None
            leaves the table of images by class out.
        provenance: date, duration, versions, device and size of the model; None leaves them out.
            `Provenance.collect` finds most of it in the process that trained.
    """

    class_names: Sequence[str]
    history: Mapping[str, Sequence[float] | np.ndarray]
    labels: np.ndarray
    scores: np.ndarray
    files: Sequence[str | os.PathLike[str]]
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: Sequence[tuple[str | os.PathLike[str], str]] = ()
    title: str = "Training report"
    read: Callable | None = None
    train_counts: np.ndarray | Sequence[int] | None = None
    provenance: Provenance | None = None

    def checked(self) -> "Results":
        """A copy with NumPy arrays of known types.

        Raises:
            ValueError: where the parts do not fit together.
        """
        names = [str(name) for name in self.class_names]
        labels, scores = np.asarray(self.labels), np.asarray(self.scores)
        if not names:
            raise ValueError("`class_names` must name at least one class. Received: none")
        if labels.ndim != 1 or (len(labels) and not np.issubdtype(labels.dtype, np.integer)):
            raise ValueError(
                "`labels` must be integers of the shape (N,). "
                f"Received: shape={labels.shape}, dtype={labels.dtype}"
            )
        if scores.shape != (len(labels), len(names)):
            raise ValueError(
                "`scores` must be of the shape (N, classes), "
                f"({len(labels)}, {len(names)}) here. Received: shape={scores.shape}"
            )
        if len(self.files) != len(labels):
            raise ValueError(
                f"`files` must be as many as `labels`, {len(labels)}. "
                f"Received: {len(self.files)} files"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise ValueError(
                f"`labels` must be in 0..{len(names) - 1}. Received: {labels.min()}..{labels.max()}"
            )
        return dataclasses.replace(
            self,
            class_names=names,
            history=arrays(self.history),
            labels=labels.astype(np.int64),
            scores=scores.astype(np.float64),
            train_counts=self._checked_train_counts(len(names)),
        )

    def _checked_train_counts(self, classes):
        if self.train_counts is None:
            return None
        counts = np.asarray(self.train_counts)
        if counts.shape != (classes,) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise ValueError(
                f"`train_counts` must be integers of the shape ({classes},), none negative. "
                f"Received: shape={counts.shape}, dtype={counts.dtype}"
            )
        return counts.astype(np.int64)


def arrays(history: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, np.ndarray]:
    """The values of each epoch as arrays of floats."""
    return {key: np.asarray(values, float) for key, values in history.items()}


def of_classes(name: str, counts, classes: int) -> np.ndarray | None:
    """Counts of each class as int64, or None where there are none.

    Raises:
        ValueError: they are not as many as the classes; `name` is what the message calls them.
    """
    if counts is None:
        return None
    if np.shape(counts) != (classes,):
        raise ValueError(
            f"`{name}` must be of the shape ({classes},). Received: shape={np.shape(counts)}"
        )
    return np.asarray(counts, np.int64)
