"""Which objects of an image were missed, and which detections are false alarms."""

import numpy as np

OVERLAP = 0.5  # from here on a detection is of an object


def overlaps(boxes: np.ndarray, others: np.ndarray, of_first: bool = False) -> np.ndarray:
    """Intersection over union `(N, M)` of boxes `(N, 4)` and `(M, 4)`; 0 where nothing is.

    `of_first` divides by the area of the first boxes instead, as COCO does for crowds.
    """
    boxes, others = np.asarray(boxes, float)[:, None], np.asarray(others, float)[None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(
        boxes[..., :2], others[..., :2]
    )
    shared = np.maximum(sides, 0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (boxes, others)]
    whole = areas[0] + 0 * shared if of_first else areas[0] + areas[1] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def errors(
    boxes: np.ndarray,
    labels: np.ndarray,
    crowds: np.ndarray,
    found_boxes: np.ndarray,
    found_labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Compares detections with the truth of an image, by boxes, as COCO does at an overlap of 0.5.

    One after the other, the most probable first, a detection takes the object of its class that
    it overlaps with the most, of those that no other has. One on a crowd is no false alarm.

    Args:
        boxes, labels: `(N, 4)` and `(N,)` of the objects.
        crowds: `(N,)`, booleans.
        found_boxes, found_labels: `(D, 4)` and `(D,)`, the most probable first.

    Returns:
        `(missed, false)`: booleans `(N,)` and `(D,)`.
    """
    boxes, found_boxes = np.reshape(boxes, (-1, 4)), np.reshape(found_boxes, (-1, 4))
    crowds = np.asarray(crowds, bool)
    shares = overlaps(found_boxes, boxes)
    on_crowds = overlaps(found_boxes, boxes, of_first=True)
    free, false = ~crowds, np.ones(len(found_boxes), bool)
    for index, label in enumerate(found_labels):
        same = np.asarray(labels) == label
        candidates = np.where(free & same, shares[index], -1)
        if candidates.size and candidates.max() >= OVERLAP:
            free[candidates.argmax()] = False
            false[index] = False
        elif (crowds & same & (on_crowds[index] >= OVERLAP)).any():
            false[index] = False
    return free & ~crowds, false
