"""Which anchors and regions a step of training looks at, and what it wants of them."""

import dataclasses
import sys
from typing import Any

import keras
from keras import ops

from keras_internimage.models.detection.inputs import padded_sizes
from keras_internimage.ops import boxes as box_ops
from keras_internimage.ops.matching import (
    IGNORED,
    match,
    match_in_turn,
    sample,
)

SAMPLINGS = ("random", "first_n", "keep_all")


@dataclasses.dataclass(frozen=True)
class Matching:
    """Thresholds of the overlap with an object, and how many samples an image has.

    `low_quality` is the overlap from which on an object gets the boxes that overlap it most,
    whatever `positive` says; None for never.
    """

    positive: float
    negative: float
    low_quality: float | None
    samples: int
    positives: int


@dataclasses.dataclass(frozen=True)
class Samples:
    """Sampled boxes of a batch, objects' boxes first; tensors `(N, S)`, boxes `(N, S, 4)`."""

    # The places in the list that was sampled from.
    index: Any
    boxes: Any
    # The object of each, 0 for background, and its box.
    matched: Any
    wanted: Any
    positive: Any
    valid: Any


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the boxes are chosen of which there are more than wanted.

    `mode` is "random", "first_n" or "keep_all" (all, however many are wanted). `seed` is a
    `keras.random.SeedGenerator`, or an int for the same choice each time.
    """

    mode: str
    seed: Any

    def __call__(self, matched, rule):
        """As `sample`, for the numbers of a `Matching`."""
        count, positives = rule.samples, rule.positives
        if self.mode == "keep_all":
            count = positives = ops.shape(matched)[1]
        return sample(matched, count, positives, self._priorities(matched))

    def limit(self, positives: int) -> int:
        """How many samples of an image may be objects' boxes, if a `Matching` says so many."""
        return sys.maxsize if self.mode == "keep_all" else positives

    def _priorities(self, matched):
        if self.mode == "random":
            return keras.random.uniform(ops.shape(matched), seed=self.seed)
        place = ops.arange(ops.shape(matched)[1], dtype="float32")
        return place[None] + ops.zeros_like(matched, dtype="float32")


def sample_anchors(anchors, cells, targets, sizes, rule, sampler, border=None):
    """Samples of all anchors, for the losses of the region proposal network.

    Args:
        anchors: list of `(h w A, 4)`, one for each map.
        cells: for each map `(height, width, stride)`.
        targets: `Targets`.
        sizes: `(N, 2)`, heights and widths of the images.
        border: how far anchors may reach beyond the image; None for any that lie around a pixel
            of the image, once that is padded to multiples of 32.
    """
    inside = ops.concatenate(
        [
            _around_pixels(*cell, padded_sizes(sizes), base)
            for cell, base in zip(cells, anchors, strict=True)
        ],
        axis=1,
    )
    anchors = ops.concatenate(anchors, axis=0)
    if border is not None:
        high = ops.take(ops.cast(sizes, "float32"), ops.convert_to_tensor([1, 0], "int32"), axis=1)
        fits = (anchors[None, :, :2] >= -border) & (anchors[None, :, 2:] < high[:, None] + border)
        inside = inside & ops.all(fits, axis=-1)
    matched = match_in_turn(
        anchors,
        targets.boxes,
        targets.valid,
        inside,
        rule.positive,
        rule.negative,
        rule.low_quality,
    )
    chosen = sampler(matched, rule)
    return _samples(ops.take(anchors, chosen[0], axis=0), matched, targets, chosen)


def _around_pixels(height, width, stride, sizes, anchors):
    """Of each anchor whether the cell that it lies around is one of the image's, `(N, h w A)`."""
    limits = (sizes + stride - 1) // stride
    rows = ops.arange(height, dtype="int32")[None] < limits[:, :1]
    columns = ops.arange(width, dtype="int32")[None] < limits[:, 1:]
    cells = rows[:, :, None] & columns[:, None]
    kinds = ops.shape(anchors)[0] // (height * width)
    cells = ops.repeat(cells[..., None], kinds, axis=-1)
    return ops.reshape(cells, (-1, height * width * kinds))


def sample_regions(regions, valid, targets, rule, sampler):
    """Samples of objects and regions, for the losses of the heads.

    The objects themselves come first, each matched with itself, so that there is something to
    learn from when no region is near.

    Args:
        regions: `(N, R, 4)`.
        valid: `(N, R)`, which there are.
        targets: `Targets`, M objects in an image; samples below M are objects.
    """
    overlaps = box_ops.iou(regions, targets.boxes)
    overlaps = ops.where(valid[..., None], overlaps, 0)
    matched = match(overlaps, targets.valid, rule.positive, rule.negative, rule.low_quality)
    matched = ops.where(valid, matched, IGNORED)
    number = ops.arange(ops.shape(targets.labels)[1], dtype="int32")[None]
    matched = ops.concatenate([ops.where(targets.valid, number, IGNORED), matched], axis=1)
    chosen = sampler(matched, rule)
    boxes = ops.concatenate([targets.boxes, regions], axis=1)
    boxes = ops.take_along_axis(boxes, chosen[0][..., None], axis=1)
    return _samples(boxes, matched, targets, chosen)


def _samples(boxes, matched, targets, chosen):
    index, positive, valid = chosen
    matched = ops.take_along_axis(matched, index, axis=1)
    matched = ops.where(positive, matched, 0)
    wanted = ops.take_along_axis(targets.boxes, matched[..., None], axis=1)
    return Samples(index, ops.stop_gradient(boxes), matched, wanted, positive, valid)
