"""Outlines and run lengths of COCO's annotations as bitmaps, without pycocotools.

COCO's own rule for what an outline covers is kept to the pixel: metrics are computed by it, and the
published models were trained on its bitmaps. Pillow draws other pixels along the border.
"""

import dataclasses

import numpy as np

# COCO draws outlines on a grid as many times as fine.
_FINE = 5


@dataclasses.dataclass(frozen=True, slots=True)
class RunLengths:
    """A bitmap as COCO stores it: lengths of runs down the columns, the first one of zeros.

    Attributes:
        height, width: of the bitmap in pixels.
        counts: lengths, as a tuple of ints, or packed into text.
    """

    height: int
    width: int
    counts: "tuple[int, ...] | str"


Polygons = tuple[np.ndarray, ...]


def draw_mask(segmentation: "Polygons | RunLengths", height: int, width: int) -> np.ndarray:
    """The bitmap of an object: what any of its outlines covers, or its run lengths.

    Args:
        segmentation: arrays `(points, 2)` of x and y in pixels, each a closed outline; or
            `RunLengths`.
        height, width: of the image in pixels.

    Returns:
        uint8 array `(height, width)` of zeros and ones.

    Raises:
        ValueError: run lengths are damaged, or of another size.
    """
    if isinstance(segmentation, RunLengths):
        counts = lengths(segmentation, height, width)
        values = np.arange(len(counts)) & 1
        return np.repeat(values, counts).astype("uint8").reshape(width, height).T
    mask = np.zeros((height, width), "uint8")
    for outline in segmentation:
        mask |= _draw(outline, height, width)
    return mask


def lengths(runs: RunLengths, height: int, width: int) -> np.ndarray:
    """The run lengths of a bitmap as integers.

    Raises:
        ValueError: they are damaged, or of a bitmap of another size. The message is the reason, to
            be read after the object's name.
    """
    if (runs.height, runs.width) != (height, width):
        raise ValueError(
            f"has run lengths of {runs.height} x {runs.width} pixels (height x width), its image "
            f"has {height} x {width}"
        )
    stored = runs.counts
    counts = _unpacked(stored) if isinstance(stored, str) else stored
    total = sum(counts)  # of Python's integers: a sum of 64 bits can wrap round to the right one
    if min(counts, default=0) < 0 or total != height * width:
        raise ValueError(
            f"has run lengths of {total} pixels in all, its image has {height * width}"
        )
    return np.asarray(counts, "int64")


def _draw(outline, height, width):
    """One outline, by COCO's rule.

    On a grid five times as fine each edge is a line of one point for each step along its longer
    side. Where the line steps from one fine column to the next, and there is the middle of a
    column of pixels between them, all pixels of that column below the line change between outside
    and inside.
    """
    points = np.trunc(_FINE * np.asarray(outline, "float64") + 0.5).astype("int64")
    columns, rows = _along(points, np.roll(points, -1, axis=0))
    step = np.flatnonzero(columns[1:] != columns[:-1])
    # The middle of pixel c is at 5 c + 2 of the finer grid's columns, whose middles are at halves.
    column, outside = np.divmod(np.minimum(columns[step], columns[step + 1]) - 2, _FINE)
    # As in COCO's tool, the column from the middle of the last pixel on is outside.
    known = (outside == 0) & (column >= 0) & (column < width)
    row = np.minimum(rows[step], rows[step + 1])[known]
    row = np.ceil(np.clip((row + 0.5) / _FINE - 0.5, 0, height)).astype("int64")
    # Down the columns, one after the other: a change at the end of one is at the next one's top.
    changes = np.bincount(column[known] * height + row, minlength=height * width + 1)
    inside = np.cumsum(changes[: height * width]) & 1
    return inside.astype("uint8").reshape(width, height).T


def _along(starts, ends):
    """Columns and rows of the points on all edges, one edge after the other."""
    reach = np.abs(ends - starts)
    flat = reach[:, 0] >= reach[:, 1]
    length = np.where(flat, reach[:, 0], reach[:, 1])
    # Each edge is stepped along from its lower end, so that both directions meet the same points.
    axis = np.where(flat, 0, 1)[:, None]
    backwards = np.take_along_axis(starts, axis, 1) > np.take_along_axis(ends, axis, 1)
    low, high = np.where(backwards, ends, starts), np.where(backwards, starts, ends)
    edge = np.repeat(np.arange(len(starts)), length + 1)
    first = np.cumsum(length + 1) - (length + 1)
    step = np.arange(len(edge)) - first[edge]
    step = np.where(backwards[edge, 0], length[edge] - step, step)
    rise = np.where(flat, high[:, 1] - low[:, 1], high[:, 0] - low[:, 0])
    slope = rise / np.maximum(length, 1)
    other = np.where(flat, low[:, 1], low[:, 0])[edge]
    across = np.trunc(other + slope[edge] * step + 0.5).astype("int64")
    along = np.take_along_axis(low, axis, 1)[edge, 0] + step
    return np.where(flat[edge], along, across), np.where(flat[edge], across, along)


def _unpacked(text):
    """Lengths of text: five bits in each character, the lowest first, from '0' on.

    The sixth bit says that more follow, the highest bit of the last one is the sign. From the
    third length on it is the difference to the one before the last.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"has packed run lengths with the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if abs(value) >> 62:
            raise ValueError("has packed run lengths that are no sizes of runs")
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("has packed run lengths that end within a number")
    return counts
