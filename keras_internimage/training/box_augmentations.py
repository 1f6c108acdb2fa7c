"""Random changes of training images together with the boxes and masks of their objects."""

import dataclasses
import math

import numpy as np

from keras_internimage.training.augmentations import Seed, entropy_of

# The short side that the numbers of the recipes are for.
SHORT_SIDE = 800


@dataclasses.dataclass(frozen=True)
class BoxPlacement:
    """Where an image goes: resized, cropped, resized once more, mirrored.

    Attributes:
        size: width and height of the image in the file.
        first: width and height that it is resized to before the crop.
        box: left, top, right and bottom of the crop in the image of size `first`.
        last: width and height that the crop is resized to.
        mirrored: whether the result is mirrored, left to right.
    """

    size: tuple[int, int]
    first: tuple[int, int]
    box: tuple[int, int, int, int]
    last: tuple[int, int]
    mirrored: bool = False

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes `(M, 4)` (left, top, right, bottom) of the file's image in the result.

        Returns:
            `(boxes, kept)`: float32 `(K, 4)`, clipped to the result, and the indices `(K,)` of
            those of which something is in it.
        """
        boxes = np.asarray(boxes, "float64").reshape(-1, 4)
        left, top, right, bottom = self.box
        crop = np.array([right - left, bottom - top])
        moved = boxes * np.tile(np.divide(self.first, self.size), 2) - [left, top, left, top]
        moved = np.clip(moved, 0, np.tile(crop, 2))
        kept = np.flatnonzero((moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1]))
        moved = moved[kept] * np.tile(np.divide(self.last, crop), 2)
        if self.mirrored:
            moved[:, [0, 2]] = self.last[0] - moved[:, [2, 0]]
        return moved.astype("float32"), kept

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Bitmaps `(..., H, W)` of the file's image in the result: the nearest pixel's value."""
        columns, rows = (self._sources(axis) for axis in (0, 1))
        columns = columns[::-1] if self.mirrored else columns
        return np.ascontiguousarray(np.take(np.take(masks, rows, axis=-2), columns, axis=-1))

    def _sources(self, axis):
        """The pixel of the file's image that the middle of each of the result's lies in."""
        low, high = self.box[axis], self.box[axis + 2]
        places = (np.arange(self.last[axis]) + 0.5) * ((high - low) / self.last[axis]) + low
        places *= self.size[axis] / self.first[axis]
        return np.clip(places.astype("int64"), 0, self.size[axis] - 1)


@dataclasses.dataclass(frozen=True)
class BoxAugmentation:
    """Random size, crop and mirroring of images with boxes and masks.

    In this order:

    1. With probability `crop_probability`, the image is resized, keeping its ratio, to a short side
       drawn from `crop_short_sides`, and a random crop is taken whose height and width are drawn
       from `crop_sides`, the first to the last in pixels, and are less where the image is.
    2. It is resized, keeping its ratio, to a short side drawn from `short_sides`, or to a long side
       of `long_side` where that is less.
    3. It is mirrored, left to right, with probability `flip`.

    Images are resized bilinear without antialiasing, as in validation. Boxes are clipped to what is
    left of the image; objects that the crop leaves out are dropped, a crop without any is kept.

    The defaults are those of the official 1x recipe. That of 3x has short sides of 480, 512 and so
    on up to 800, and a crop with probability 1/2: `of_recipe`.

    Attributes:
        short_sides, long_side, crop_short_sides, crop_sides: in pixels.
        crop_probability, flip: probabilities.

    Raises:
        ValueError: sides are no positive ints, or probabilities not in [0, 1].

    Source: the configurations of https://github.com/OpenGVLab/InternImage, `detection/configs`.
    """

    short_sides: tuple[int, ...] = (SHORT_SIDE,)
    long_side: int = 1333
    crop_probability: float = 0.0
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)
    flip: float = 0.5

    def __post_init__(self):
        sides = {"long_side": (self.long_side,)}
        sides |= {n: getattr(self, n) for n in ("short_sides", "crop_short_sides", "crop_sides")}
        for name, value in sides.items():
            if not value or any(type(side) is not int or side < 1 for side in value):
                raise ValueError(
                    f"`{name}` must be positive ints. Received: {name}={getattr(self, name)!r}"
                )
        if len(self.crop_sides) != 2 or self.crop_sides[0] > self.crop_sides[1]:
            raise ValueError(
                "`crop_sides` must be the least and the greatest side. "
                f"Received: crop_sides={self.crop_sides}"
            )
        for name in ("crop_probability", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1]. Received: {name}={getattr(self, name)!r}"
                )

    @classmethod
    def of_recipe(cls, row) -> "BoxAugmentation":
        """That of a `Recipe` of detection, for a short side of `row.resolution` pixels.

        The numbers of the recipes are for 800 pixels; all of them are scaled alike.
        """

        def scaled(side):
            return max(1, int(side * row.resolution / SHORT_SIDE + 0.5))

        return cls(
            short_sides=tuple(map(scaled, row.short_sides or (SHORT_SIDE,))),
            long_side=scaled(row.long_side),
            crop_probability=row.crop_probability,
            crop_short_sides=tuple(map(scaled, cls.crop_short_sides)),
            crop_sides=tuple(map(scaled, cls.crop_sides)),
            flip=row.flip,
        )

    def __call__(self, height: int, width: int, seed: Seed | np.random.Generator) -> BoxPlacement:
        """Draws where an image of so many pixels goes.

        Args:
            height, width: of the image.
            seed: int or tuple of ints, at least 0, or a generator, from which all randomness
                follows.
        """
        random = seed
        if not isinstance(random, np.random.Generator):
            random = np.random.default_rng(entropy_of(seed))
        first, box = (width, height), (0, 0, width, height)
        if random.random() < self.crop_probability:
            short = int(random.choice(self.crop_short_sides))
            first = fit(width, height, short, math.inf)
            low, high = self.crop_sides
            # Each side is drawn from what there is of the image.
            wide, tall = (
                int(random.integers(min(low, side), min(high, side) + 1)) for side in first
            )
            left, top = (
                int(random.integers(side - crop + 1))
                for side, crop in zip(first, (wide, tall), strict=True)
            )
            box = (left, top, left + wide, top + tall)
        short = int(random.choice(self.short_sides))
        last = fit(box[2] - box[0], box[3] - box[1], short, self.long_side)
        return BoxPlacement((width, height), first, box, last, bool(random.random() < self.flip))


def fit(width: int, height: int, short: float, long: float) -> tuple[int, int]:
    """Width and height of an image as large as fits into a short and a long side.

    ```
    r = min(long / max(width, height), short / min(width, height)),    floor(r side + 1/2)
    ```
    """
    long, short = max(long, short), min(long, short)
    factor = min(long / max(width, height), short / min(width, height))
    width, height = (max(1, int(side * factor + 0.5)) for side in (width, height))
    return width, height
