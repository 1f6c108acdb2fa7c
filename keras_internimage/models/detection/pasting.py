"""Masks of boxes to masks of images."""

from collections.abc import Sequence

import numpy as np

THRESHOLD = 0.5


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size: Sequence[int], threshold: float = THRESHOLD
) -> np.ndarray:
    """The pixels of an image that objects cover.

    A mask is stretched over its box and read at the centres of the image's pixels, bilinearly
    between those of its own, with zeros around. A pixel is covered where that is not less than
    `threshold`.

    Args:
        masks: `(D, h, w)`, probabilities.
        boxes: `(D, 4)`, left, top, right, bottom in pixels.
        size: height and width of the image.
        threshold: of the interpolated probability.

    Returns:
        A boolean array `(D, height, width)`.

    Raises:
        ValueError: the shapes do not fit.
    """
    masks = np.asarray(masks, np.float32)
    boxes = np.asarray(boxes, np.float32)
    if masks.ndim != 3 or boxes.shape != (len(masks), 4):
        raise ValueError(
            "`masks` must be (D, h, w) and `boxes` (D, 4). "
            f"Received: masks of {masks.shape}, boxes of {boxes.shape}"
        )
    height, width = size
    pasted = np.zeros((len(masks), *size), bool)
    for mask, box, image in zip(masks, boxes, pasted, strict=True):
        rows, columns, covered = paste_window(mask, box, size, threshold)
        image[rows, columns] = covered
    return pasted


def paste_window(
    mask: np.ndarray, box: np.ndarray, size: Sequence[int], threshold: float = THRESHOLD
) -> tuple[slice, slice, np.ndarray]:
    """The part of an image that one object may cover, and which pixels of it it does.

    Args:
        mask: `(h, w)`, probabilities.
        box, size, threshold: as for `paste_masks`, of one object.

    Returns:
        `(rows, columns, covered)`: two slices, and a boolean array of the part.
    """
    height, width = size
    rows, by_row = _axis(box[1], box[3], mask.shape[0], height)
    columns, by_column = _axis(box[0], box[2], mask.shape[1], width)
    # Two matrices for what one pixel after the other would be: the weights are separable.
    return rows, columns, by_row @ mask @ by_column.T >= threshold


def _axis(low, high, cells, pixels):
    """The pixels along one side that a box may cover, and the weights of the cells for each."""
    if not high > low:
        return slice(0, 0), np.zeros((0, cells), np.float32)
    # Up to half a cell outside of the box the mask fades to zero.
    margin = (high - low) / cells
    first = int(np.clip(np.floor(low - margin), 0, pixels))
    last = int(np.clip(np.ceil(high + margin) + 1, first, pixels))
    centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    places = (centres - low) / (high - low) * np.float32(cells) - np.float32(0.5)
    distance = np.abs(places[:, None] - np.arange(cells, dtype=np.float32))
    return slice(first, last), np.maximum(1 - distance, 0)
