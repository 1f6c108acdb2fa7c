"""What a report on a training for detection is made of."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keras_internimage.data.coco_metrics import CocoScores
from keras_internimage.report.object_gallery import WorstObjects
from keras_internimage.report.provenance import Provenance
from keras_internimage.report.results import arrays, of_classes


@dataclasses.dataclass
class DetectionResults:
    """A finished training for detection, as `report.write` takes it.

    Args:
        class_names: one name per class.
        history: as of `Results`, with `val_box_ap` and `val_mask_ap`, from 0 to 1, and the losses.
        scores: `CocoScores` of the finished model on the validation images.
        worst: the validation images, with the worst of them: `object_gallery.WorstObjects`.
        train_objects: `(classes,)`, integers: how many objects of each class were trained on. None
            leaves them out.
        settings, skipped, title, provenance: as of `Results`.
    """

    class_names: Sequence[str]
    history: Mapping[str, Sequence[float] | np.ndarray]
    scores: CocoScores
    worst: WorstObjects
    train_objects: np.ndarray | Sequence[int] | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    title: str = "Training report"
    provenance: Provenance | None = None

    def checked(self) -> "DetectionResults":
        """A copy with NumPy arrays of known types.

        Raises:
            ValueError: where the parts do not fit together.
        """
        names = [str(name) for name in self.class_names]
        if not names or len(self.scores.class_names) != len(names):
            raise ValueError(
                "`scores` must be of the classes, one or more. "
                f"Received: {len(names)} classes, scores of {len(self.scores.class_names)}"
            )
        if len(self.worst.class_names) != len(names):
            raise ValueError(
                f"`worst` must have a name for each of {len(names)} classes. "
                f"Received: {len(self.worst.class_names)} names"
            )
        return dataclasses.replace(
            self,
            class_names=names,
            history=arrays(self.history),
            train_objects=of_classes("train_objects", self.train_objects, len(names)),
        )
