"""Half-pixel bilinear resizing a few rows at a time, and the size at which images are seen.

The numbers are those of `layers.resampling.resize_bilinear`. That one makes a whole image at once:
150 scores for each pixel of a photograph of 4000 x 3000 would take 7 GB.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Resizing:
    """The size at which a model sees an image of any size.

    ```
    r = min(longest / max(W, H), shortest / min(W, H)),    w, h = floor(r W + 1/2), floor(r H + 1/2)
    ```

    and then each side upwards to a multiple of `multiple`, by a second bilinear resizing.

    Args:
        shortest: the shorter side in pixels, unless the longer one would exceed `longest`.
        longest: the longer side in pixels at most. 0 means four times `shortest`, as for the
            published ADE20K models.
        multiple: 32 for the published ADE20K models, 1 for those of Cityscapes.

    Raises:
        ValueError: an argument is no positive int, or `longest` is less than `shortest`.

    Source: `mmcv.imrescale` and mmsegmentation's `ResizeToMultiple`, which the official test
    pipelines consist of.
    """

    shortest: int
    longest: int = 0
    multiple: int = 1

    def __post_init__(self):
        if self.longest == 0 and isinstance(self.shortest, int):
            object.__setattr__(self, "longest", 4 * self.shortest)
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))
        if self.longest < self.shortest:
            raise ValueError(
                "longest must be at least shortest. "
                f"Received: longest={self.longest}, shortest={self.shortest}"
            )

    def sizes(self, height: int, width: int, scale: float = 1.0) -> list[tuple[int, int]]:
        """Heights and widths that an image is resized to, one after the other.

        Args:
            height, width: of the image.
            scale: factor of `shortest` and `longest`, for several scales.
        """
        longest, shortest = int(self.longest * scale), int(self.shortest * scale)
        factor = min(longest / max(height, width), shortest / min(height, width))
        size = scaled(height, factor), scaled(width, factor)
        rounded = tuple(math.ceil(side / self.multiple) * self.multiple for side in size)
        return [size] if rounded == size else [size, rounded]


def scaled(side, factor):
    """A side in pixels times a factor, rounded half up; at least 1."""
    return max(int(side * factor + 0.5), 1)


def check_positive(name, value):
    """Raises ValueError unless an argument is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int. Received: {name}={value!r}")


class Rows(Protocol):
    """Numbers `(height, width, C)` that are made a few rows at a time."""

    height: int
    width: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """float32 `(stop - start, width, C)`."""


class Map:
    """`Rows` of an array `(H, W, C)`."""

    def __init__(self, values):
        self.values = values
        self.height, self.width = values.shape[:2]

    def rows(self, start, stop):
        return self.values[start:stop]


class Resized:
    """`Rows` at another size: bilinear, pixel centres at halves, no antialiasing.

    ```
    y[i] = (1 - f) x[k] + f x[k + 1],    k + f = (i + 1/2) n / s - 1/2    within [0, n - 1]
    ```
    """

    def __init__(self, source: Rows, height: int, width: int):
        self.source, self.height, self.width = source, height, width
        self._down = _taps(source.height, height)
        self._across = _taps(source.width, width)

    def rows(self, start, stop):
        if self.source.height == self.height:
            values = self.source.rows(start, stop)
        else:
            lower, upper, share = (taps[start:stop] for taps in self._down)
            first = int(lower[0])
            values = self.source.rows(first, int(upper[-1]) + 1)
            values = _between(values, 0, lower - first, upper - first, share)
        if self.source.width != self.width:
            values = _between(values, 1, *self._across)
        return values


def resized(source: Rows, height: int, width: int) -> Rows:
    """`Rows` at a size, which may be their own."""
    if (source.height, source.width) == (height, width):
        return source
    return Resized(source, height, width)


def resize_image(pixels: np.ndarray, sizes: list[tuple[int, int]]) -> np.ndarray:
    """An image of 8 bits `(H, W, 3)` at the last of some sizes, by way of the others."""
    for height, width in sizes:
        if pixels.shape[:2] != (height, width):
            source = Resized(_Floats(pixels), height, width)
            made = np.empty((height, width, pixels.shape[2]), "uint8")
            for start, stop in bands(height, width * pixels.shape[2]):
                made[start:stop] = np.rint(source.rows(start, stop))
            pixels = made
    return pixels


class _Floats(Map):
    def rows(self, start, stop):
        return self.values[start:stop].astype("float32")


# Numbers that are worked on at a time: 4 MB, so that they stay in the cache.
BAND = 1 << 20


def bands(height: int, row: int) -> list[tuple[int, int]]:
    """Rows `(start, stop)` of bands that have at most `BAND` numbers, of `row` in each row."""
    count = max(BAND // max(row, 1), 1)
    return [(start, min(start + count, height)) for start in range(0, height, count)]


def _taps(n, s):
    """Of each of `s` pixels: the two of `n` that it lies between, and the second one's share."""
    places = np.clip((np.arange(s) + 0.5) * (n / s) - 0.5, 0, n - 1)
    lower = places.astype("int64")
    return lower, np.minimum(lower + 1, n - 1), (places - lower).astype("float32")


def _between(values, axis, lower, upper, share):
    share = share.reshape(-1, 1, 1) if axis == 0 else share[:, None]
    made = np.take(values, upper, axis)
    below = np.take(values, lower, axis)
    made -= below
    made *= share
    made += below
    return made
