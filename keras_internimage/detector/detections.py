"""What was detected in an image."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_internimage.data import run_lengths
from keras_internimage.models.detection.pasting import paste_window

_DIGITS = 5  # of scores in files


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """The objects of an image, the most probable first.

    Masks are kept at the size at which the model makes them, a few KB each, and put into the image
    when they are asked for: a hundred masks of a photograph of 12 megapixels would take 1.2 GB.

    Attributes:
        height, width: of the image in pixels.
        boxes: float32 `(D, 4)`: left, top, right, bottom in pixels of the image.
        labels: int32 `(D,)`: numbers of classes, from 0.
        scores: float32 `(D,)`: probabilities.
        masks: float32 `(D, 28, 28)`: for each cell of the box, the probability that it is covered.
    """

    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray

    def __post_init__(self):
        count = len(self.boxes)
        shapes = tuple(np.shape(x) for x in (self.boxes, self.labels, self.scores))
        if shapes != ((count, 4), (count,), (count,)) or len(self.masks) != count:
            raise ValueError(
                "boxes must be (D, 4), labels and scores (D,), and masks (D, h, w). "
                f"Received: {', '.join(map(str, shapes))}, {np.shape(self.masks)}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, threshold: float) -> "Detections":
        """Those whose score is greater."""
        kept = self.scores > threshold
        parts = (x[kept] for x in (self.boxes, self.labels, self.scores, self.masks))
        return Detections(self.height, self.width, *parts)

    def window(self, index: int) -> tuple[slice, slice, np.ndarray]:
        """Where the mask of one object lies: `(rows, columns, covered)`, slices and booleans."""
        return paste_window(self.masks[index], self.boxes[index], (self.height, self.width))

    def mask(self, index: int) -> np.ndarray:
        """The pixels that one object covers, booleans `(height, width)`."""
        made = np.zeros((self.height, self.width), bool)
        rows, columns, covered = self.window(index)
        made[rows, columns] = covered
        return made

    def coco(self, image_id: int | str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a COCO results file, which `pycocotools.coco.COCO.loadRes` reads.

        Args:
            image_id: what the file calls the image.
            category_ids: of the classes, in the order of `labels`.

        Returns:
            Dicts of `image_id`, `category_id`, `bbox` (left, top, width, height), `score` and
            `segmentation` (run lengths, packed).
        """
        rows = []
        for index, (box, label, score) in enumerate(
            zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        ):
            left, top, right, bottom = box
            sides = (left, top, right - left, bottom - top)
            of_rows, of_columns, covered = self.window(index)
            place = (of_rows.start, of_columns.start)
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": int(category_ids[label]),
                    "bbox": [round(side, 3) for side in sides],
                    "score": round(score, _DIGITS),
                    "segmentation": run_lengths.encode(covered, (self.height, self.width), place),
                }
            )
        return rows
