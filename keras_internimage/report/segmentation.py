"""What a report on a training for segmentation is made of."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keras_internimage.report.mask_gallery import Worst
from keras_internimage.report.provenance import Provenance
from keras_internimage.report.results import arrays, of_classes


@dataclasses.dataclass
class SegmentationResults:
    """A finished training for segmentation, as `report.write` takes it.

    Args:
        class_names: one name per class.
        history: as of `Results`, with `logits_mean_iou` and `val_logits_mean_iou`.
        counts: integers `(classes, classes)`: the confusion matrix of all pixels of the validation
            images, rows are true classes.
        worst: the validation images, with the worst of them: `mask_gallery.Worst`.
        train_pixels: `(classes,)`, integers: how many pixels of each class were trained on. None
            leaves them out.
        settings, skipped, title, provenance: as of `Results`.
    """

    class_names: Sequence[str]
    history: Mapping[str, Sequence[float] | np.ndarray]
    counts: np.ndarray
    worst: Worst
    train_pixels: np.ndarray | Sequence[int] | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    title: str = "Training report"
    provenance: Provenance | None = None

    def checked(self) -> "SegmentationResults":
        """A copy with NumPy arrays of known types.

        Raises:
            ValueError: where the parts do not fit together.
        """
        names = [str(name) for name in self.class_names]
        counts = np.asarray(self.counts)
        square = (len(names), len(names))
        if not names or counts.shape != square or counts.dtype.kind not in "iu":
            raise ValueError(
                "`counts` must be integers of the shape (classes, classes), of one class or more. "
                f"Received: shape={counts.shape}, dtype={counts.dtype}, {len(names)} classes"
            )
        if len(self.worst.palette) != len(names):
            raise ValueError(
                f"`worst` must have a colour for each of {len(names)} classes. "
                f"Received: {len(self.worst.palette)} colours"
            )
        return dataclasses.replace(
            self,
            class_names=names,
            history=arrays(self.history),
            counts=counts.astype(np.int64),
            train_pixels=of_classes("train_pixels", self.train_pixels, len(names)),
        )
