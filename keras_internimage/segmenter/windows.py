"""Scores of a sliding window, made when their rows are asked for."""

import numpy as np

from keras_internimage.data.resizing import Map, resized

Size = tuple[int, int]


def positions(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, the last one shifted back to fit."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(k * stride, side - crop), 0) for k in range(count)]


class Windows:
    """`Rows` of the mean over all windows that cover a pixel.

    Only the scores of windows that reach the rows asked for are kept. Windows reach over the edge
    of an image that is smaller: what they see there is 0, the mean colour.

    Args:
        predict: from a batch of normalised windows `(N, *crop, 3)` to scores `(N, h, w, C)`.
        image: normalised, `(H, W, 3)`.
        crop, stride: height and width in pixels.
        batch_size: windows at a time.

    Source: `slide_inference` of mmsegmentation, which lets a window shrink with the image instead.
    """

    def __init__(self, predict, image: np.ndarray, crop: Size, stride: Size, batch_size: int):
        self.predict, self.image, self.crop = predict, image, crop
        self.height, self.width = image.shape[:2]
        self.batch_size = batch_size
        self.tops, self.lefts = (
            positions(side, size, step)
            for side, size, step in zip(image.shape[:2], crop, stride, strict=True)
        )
        self.scores: dict = {}  # by top and left

    def rows(self, start, stop):
        tops = [y for y in self.tops if y < stop and y + self.crop[0] > start]
        self.scores = {place: x for place, x in self.scores.items() if place[0] in tops}
        places = [(y, x) for y in tops for x in self.lefts]
        self._compute([place for place in places if place not in self.scores])
        classes = next(iter(self.scores.values())).shape[-1]
        total = np.zeros((stop - start, self.width, classes), "float32")
        count = np.zeros((stop - start, self.width, 1), "float32")
        for y, x in places:
            window = resized(Map(self.scores[y, x]), *self.crop)
            top, bottom = max(start, y), min(stop, y + self.crop[0])
            right = min(x + self.crop[1], self.width)
            there = slice(top - start, bottom - start), slice(x, right)
            total[there] += window.rows(top - y, bottom - y)[:, : right - x]
            count[there] += 1
        total /= count
        return total

    def _compute(self, places):
        for begin in range(0, len(places), self.batch_size):
            some = places[begin : begin + self.batch_size]
            # One shape for all batches: XLA compiles one program.
            batch = np.zeros((self.batch_size, *self.crop, 3), "float32")
            for window, (y, x) in zip(batch, some, strict=False):
                piece = self.image[y : y + self.crop[0], x : x + self.crop[1]]
                window[: piece.shape[0], : piece.shape[1]] = piece
            for place, scores in zip(some, self.predict(batch), strict=False):
                self.scores[place] = scores.copy()  # not a view of the whole batch
