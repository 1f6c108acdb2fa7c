"""Boxes and masks go where the pixels go: shapes are drawn, moved, and compared."""

import annotated_shapes
import numpy as np
import pytest

from keras_internimage import training
from keras_internimage.data import draw_mask
from keras_internimage.data.detection_loader import changed
from keras_internimage.training import BoxAugmentation, BoxPlacement
from keras_internimage.training.box_augmentations import fit

pytestmark = pytest.mark.any_backend

SMALL = BoxAugmentation(
    short_sides=(60, 80, 100),
    long_side=130,
    crop_probability=0.7,
    crop_short_sides=(50, 70),
    crop_sides=(30, 60),
    flip=0.5,
)


def along_border(mask, reach):
    """Whether a pixel of the other value is within so many rows and columns."""
    wide = np.pad(mask, reach, "edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (2 * reach + 1, 2 * reach + 1))
    return windows.max((2, 3)) != windows.min((2, 3))


def compare(placement, pixels, shapes):
    """The moved masks and boxes against what is seen in the moved pixels; the number of objects."""
    height, width = pixels.shape[:2]
    moved = changed(pixels, placement).astype(int)
    assert moved.shape[:2] == placement.last[::-1]
    masks = [draw_mask((outline,), height, width) for _, outline in shapes]
    corners = [[*outline.min(0), *outline.max(0)] for _, outline in shapes]
    boxes, kept = placement.boxes(corners)
    assert boxes.dtype == np.float32 and len(boxes) == len(kept)
    scale = max(a / b for a, b in zip(placement.last, placement.size, strict=True))
    for index, (label, _) in enumerate(shapes):
        mask = placement.masks(masks[index])
        assert mask.shape == moved.shape[:2] and mask.dtype == np.uint8
        # The pixels of this shape: alone, on black ground.
        alone = np.where(masks[index][..., None], 255, 0).astype("uint8").repeat(3, -1)
        seen = changed(alone, placement)[..., 0] > 127
        # Within a pixel of the border the blend of pixels and the nearest of them may differ.
        border = along_border(seen, 1 + int(scale))
        box = boxes[list(kept).index(index)] if index in kept else None
        if box is not None and min(box[2:] - box[:2]) < scale:
            continue  # less than a pixel is left within the crop
        assert not ((mask > 0) != seen)[~border].any()
        assert abs(int(mask.sum()) - int(seen.sum())) <= border.sum() / 2
        if box is None:
            assert not mask.any() and not seen.any()
            continue
        if not seen.any():  # of a triangle, cut to its empty corner
            continue
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # A triangle cut by the crop has less than the cut of its box.
        cut = label == 1 and placement.box != (0, 0, *placement.first)
        if not cut:
            np.testing.assert_allclose(box, around, atol=scale + 1)
        assert (box[:2] <= np.array(around[:2]) + scale + 1).all()
        assert (box[2:] >= np.array(around[2:]) - scale - 1).all()
    return len(kept)


class TestMoving:
    def test_as_drawn(self):
        found = [0, 0]
        for index in range(60):
            pixels, shapes = annotated_shapes.draw(index, 50 + index % 7, 71 - index % 5)
            placement = SMALL(*pixels.shape[:2], (3, index))
            found[0] += compare(placement, pixels, shapes)
            found[1] += len(shapes)
        # Some objects are kept, some left out by the crop.
        assert 0.5 * found[1] < found[0] < found[1]

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_exactly_at_twice_the_size(self, mirrored):
        pixels, shapes = annotated_shapes.draw(5, count=2)
        placement = BoxPlacement((64, 48), (64, 48), (8, 4, 40, 36), (64, 64), mirrored)
        (_, outline), *_ = shapes
        mask = draw_mask((outline,), 48, 64)
        expected = mask[4:36, 8:40].repeat(2, 0).repeat(2, 1)
        expected = expected[:, ::-1] if mirrored else expected
        np.testing.assert_array_equal(placement.masks(mask), expected)
        boxes, kept = placement.boxes([[10, 6, 20, 16], [0, 0, 8, 48], [0, 0, 64, 48]])
        left, right = (4, 24) if not mirrored else (40, 60)
        np.testing.assert_array_equal(boxes, [[left, 4, right, 24], [0, 0, 64, 64]])
        assert kept.tolist() == [0, 2]
        assert [len(x) for x in placement.boxes([])] == [0, 0]

    def test_without_a_change_nothing_moves(self):
        pixels, shapes = annotated_shapes.draw(1)
        placement = BoxPlacement((64, 48), (64, 48), (0, 0, 64, 48), (64, 48))
        np.testing.assert_array_equal(changed(pixels, placement), pixels)
        mask = draw_mask((shapes[0][1],), 48, 64)
        np.testing.assert_array_equal(placement.masks(mask), mask)


class TestDrawing:
    def test_a_function_of_the_seed(self):
        assert SMALL(48, 64, 3) == SMALL(48, 64, 3)
        assert len({SMALL(48, 64, seed) for seed in range(20)}) > 10

    def test_sizes_of_the_official_recipes(self):
        one, three = (
            BoxAugmentation.of_recipe(training.recipe(name, "T"))
            for name in ("mask-rcnn-1x", "mask-rcnn-3x")
        )
        assert one == BoxAugmentation() and one.short_sides == (800,)
        assert three.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
        assert (three.crop_probability, three.flip, three.long_side) == (0.5, 0.5, 1333)
        assert (three.crop_short_sides, three.crop_sides) == ((400, 500, 600), (384, 600))
        drawn = [three(480, 640, seed) for seed in range(400)]
        whole = [p for p in drawn if p.box == (0, 0, *p.first) and p.first == p.size]
        crops = [p for p in drawn if p not in whole]
        assert 150 < len(whole) < 250 and 150 < sum(p.mirrored for p in drawn) < 250
        assert {min(p.last) for p in whole} == set(three.short_sides)
        assert {p.first for p in crops} == {(533, 400), (667, 500), (800, 600)}
        sides = [(p.box[2] - p.box[0], p.box[3] - p.box[1]) for p in crops]
        assert min(map(min, sides)) >= 384 and max(map(max, sides)) <= 600
        assert max(max(p.last) for p in drawn) <= 1333
        drawn = {one(480, 640, seed) for seed in range(20)}
        assert {p.last for p in drawn} == {(1067, 800)} and len(drawn) == 2

    def test_of_a_smaller_resolution(self):
        row = training.recipe("mask-rcnn-3x", "T", resolution=80)
        found = BoxAugmentation.of_recipe(row)
        assert (found.short_sides[0], found.short_sides[-1], found.long_side) == (48, 80, 133)
        assert (found.crop_short_sides, found.crop_sides) == ((40, 50, 60), (38, 60))

    @pytest.mark.parametrize(
        ("size", "expected"),
        [((250, 180), (1111, 800)), ((2000, 500), (1333, 333)), ((3, 5000), (1, 1333))],
    )
    def test_fit(self, size, expected):
        assert fit(*size, 800, 1333) == expected

    @pytest.mark.parametrize(
        "arguments",
        [
            {"short_sides": ()},
            {"short_sides": (0,)},
            {"long_side": 1.5},
            {"crop_sides": (600, 384)},
            {"crop_sides": (600,)},
            {"crop_probability": 1.5},
            {"flip": -0.1},
        ],
    )
    def test_refused(self, arguments):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
            BoxAugmentation(**arguments)
