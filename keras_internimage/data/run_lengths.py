"""Masks as COCO's results store them: lengths of runs down the columns, packed into text."""

from typing import Any

import numpy as np


def encode(
    mask: np.ndarray, size: tuple[int, int] | None = None, place: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """A mask as a COCO results file holds it: `{"size": [H, W], "counts": text}`.

    Pixels are counted down the first column, then down the next: so many zeros, so many ones, and
    so on. `pycocotools.mask.decode` gives the mask back.

    Args:
        mask: booleans `(h, w)`, or numbers, of which all but 0 count.
        size: height and width of the image, where `mask` is a part of it. Zeros are around.
        place: row and column of the part's first pixel in the image.

    Raises:
        ValueError: `mask` has not two axes, or reaches over the image.
    """
    mask = np.asarray(mask)
    size = mask.shape if size is None else size
    fits = mask.ndim == 2 and all(
        0 <= first and first + length <= side
        for first, length, side in zip(place, mask.shape, size, strict=True)
    )
    if not fits:
        raise ValueError(
            "`mask` must be (h, w), and lie in the image. "
            f"Received: a mask of {mask.shape} at {tuple(place)} in an image of {tuple(size)}"
        )
    height, width = map(int, size)
    # Above and below each column there is nothing, so that it has as many begins as ends.
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), "int8")
    columns[:, 1:-1] = (mask != 0).T
    steps = np.diff(columns, axis=1)
    edges = []
    for step in (1, -1):
        column, row = np.nonzero(steps == step)
        edges.append((column.astype("int64") + place[1]) * height + row + place[0])
    begins, ends = edges
    # Of a run that goes on at the top of the next column.
    same = begins[1:] == ends[:-1]
    begins, ends = begins[np.r_[True, ~same][: len(begins)]], ends[np.r_[~same, True][: len(ends)]]
    places = np.r_[0, np.stack([begins, ends], 1).ravel(), height * width]
    counts = np.diff(places).tolist()
    if len(counts) > 1 and not counts[-1]:  # the last pixel is one: no zeros follow
        counts.pop()
    return {"size": [height, width], "counts": packed(counts)}


def packed(counts: list[int]) -> str:
    """Lengths of runs as text.

    From the third length on the difference to the one before the last is stored; five bits in
    each character, the lowest first, from "0" on. The sixth bit says that more follow; the highest
    bit of the last one is the sign.
    """
    text = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return "".join(text)
