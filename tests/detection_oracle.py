"""What detection's functions are by definition: loops over numbers, in float64."""

import numpy as np


def roi_align_matrix(size, box, stride, bins):
    """The weights `(bins, bins, *size)` of a map's pixels in each bin of one box."""
    height, width = size
    weights = np.zeros((bins, bins, height, width))
    left, top, right, bottom = np.asarray(box, np.float64) / stride - 0.5
    sides = np.array([bottom - top, right - left]) / bins
    counts = np.ceil(sides).astype(int)
    if counts.min() < 1:
        return weights
    for i, j, k, m in np.ndindex(bins, bins, *counts):
        y = top + (i + (k + 0.5) / counts[0]) * sides[0]
        x = left + (j + (m + 0.5) / counts[1]) * sides[1]
        if not (-1 <= y <= height and -1 <= x <= width):
            continue
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        row, column = int(y), int(x)
        below, right_of = min(row + 1, height - 1), min(column + 1, width - 1)
        dy, dx = y - row, x - column
        weights[i, j, row, column] += (1 - dy) * (1 - dx)
        weights[i, j, row, right_of] += (1 - dy) * dx
        weights[i, j, below, column] += dy * (1 - dx)
        weights[i, j, below, right_of] += dy * dx
    return weights / counts.prod()


def iou(box, other):
    """Intersection over union of two boxes."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = np.maximum(sides, 0).prod()
    union = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - shared
    return shared / union if union > 0 else 0.0


def nms(boxes, scores, classes, threshold):
    """Indices of the boxes that remain, the best first."""
    kept = []
    for k in np.argsort(-scores, kind="stable"):
        if np.isfinite(scores[k]) and all(
            classes[k] != classes[j] or iou(boxes[k], boxes[j]) <= threshold for j in kept
        ):
            kept.append(int(k))
    return kept


def decode(anchor, deltas):
    """The box that an anchor's deltas mean."""
    center, size = (anchor[:2] + anchor[2:]) / 2, anchor[2:] - anchor[:2]
    center = center + deltas[:2] * size
    limit = abs(np.log(16 / 1000))
    half = size * np.exp(np.clip(deltas[2:], -limit, limit)) / 2
    return np.concatenate([center - half, center + half])
