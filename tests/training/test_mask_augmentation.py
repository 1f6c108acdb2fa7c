"""Scale, crop, mirroring and colours of images with masks, as mmsegmentation's recipe has them."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from keras_internimage.training import MaskAugmentation

pytestmark = pytest.mark.any_backend

STILL = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}


def checkerboard(rows=60, columns=90, side=10):
    """An image of squares, and their numbers: 0 to 53; the image's red and green tell them."""
    numbers = np.arange(rows // side)[:, None] * (columns // side) + np.arange(columns // side)
    numbers = numbers.repeat(side, 0).repeat(side, 1)
    image = np.zeros((rows, columns, 3), "uint8")
    image[..., 0], image[..., 1] = numbers // 8 * 30, numbers % 8 * 30
    return image, numbers.astype("int32")


@pytest.mark.parametrize("flip", [0, 1])
def test_image_and_mask_stay_together(flip):
    image, mask = checkerboard()
    for seed in range(5):
        augment = MaskAugmentation((40, 50), (90, 60), (1.5, 1.5), flip=flip, **STILL)
        pixels, numbers = augment(image, mask, seed)
        assert pixels.shape == (40, 50, 3) and numbers.shape == (40, 50)
        told = np.round(pixels[..., 0] / 30) * 8 + np.round(pixels[..., 1] / 30)
        assert (told == numbers).mean() > 0.75  # but for the squares' blurred borders
        # Rows of squares are numbered from left to right.
        assert (numbers[0, 0] < numbers[0, -1]) != bool(flip)


def test_the_first_crop_is_what_the_placement_says():
    image, mask = checkerboard()
    augment = MaskAugmentation((40, 50), (90, 60), (1, 1), 1, 0, **STILL)
    placement, numbers = augment.place(mask, np.random.default_rng(3))
    left, top, right, bottom = placement.box
    assert placement.size == (90, 60)
    np.testing.assert_array_equal(numbers, mask[top:bottom, left:right])
    pixels = augment.change(Image.fromarray(image), placement, np.random.default_rng(0))
    np.testing.assert_array_equal(pixels, image[top:bottom, left:right])
    # Of an image that was decoded at half its size the same part is taken.
    half = Image.fromarray(image).reduce(2)
    smaller = augment.change(half, placement, np.random.default_rng(0))
    assert np.abs(smaller.astype(int) - pixels).mean() < 8


def test_scale():
    _, mask = checkerboard(60, 90)
    widths = []
    augment = MaskAugmentation((512, 512), **STILL)
    for seed in range(200):
        placement, numbers = augment.place(mask, np.random.default_rng(seed))
        widths.append(placement.size[0])
        assert abs(placement.size[1] / placement.size[0] - 60 / 90) < 0.002
        assert numbers.shape == (min(512, placement.size[1]), min(512, placement.size[0]))
    # The short side becomes 256 to 1024, uniformly.
    assert 384 <= min(widths) < 400 and 1520 < max(widths) <= 1536
    assert abs(np.mean(widths) - 960) < 80
    # A long image is as long as fits: 2048 at factor 1.
    wide = MaskAugmentation((512, 512), scale_range=(1, 1))
    placement, _ = wide.place(np.zeros((10, 100), int), np.random.default_rng(0))
    assert placement.size == (2048, 205)


def test_no_class_fills_a_crop():
    """A tenth of the mask is another class: crops are drawn anew until they show it."""
    mask = np.zeros((100, 100), "int32")
    mask[40:60, 40:60] = 1
    mask[:, :10] = 255
    shares = {}
    for most in (0.75, 1):
        augment = MaskAugmentation((30, 30), (100, 100), (1, 1), most)
        drawn = [augment.place(mask, np.random.default_rng(seed))[1] for seed in range(100)]
        largest = [
            np.bincount(m[m != 255].ravel(), minlength=1).max() / max((m != 255).sum(), 1)
            for m in drawn
        ]
        shares[most] = np.mean(np.array(largest) < 0.75)
    assert shares[1] < 0.3 and shares[0.75] > 0.7
    same = MaskAugmentation((30, 30), (100, 100), (1, 1), 0.75)
    same.place(np.zeros((100, 100), int), np.random.default_rng(0))  # there is no such crop
    same.place(np.full((100, 100), 255), np.random.default_rng(0))


def colour(rgb, seeds, **changes):
    """What becomes of an image of one colour, for each seed."""
    image, mask = np.full((4, 4, 3), rgb, "uint8"), np.zeros((4, 4), int)
    augment = MaskAugmentation((4, 4), (4, 4), (1, 1), **{**STILL, **changes})
    return np.array([augment(image, mask, seed)[0][0, 0] for seed in range(seeds)], int)


def test_colours():
    rgb = (150, 100, 50)
    assert (colour(rgb, 5) == rgb).all()
    brighter = colour(rgb, 100, brightness=32) - rgb
    assert (brighter == brighter[:, :1]).all() and np.abs(brighter).max() <= 32
    assert brighter.min() < -20 and brighter.max() > 20
    assert 0.3 < (brighter == 0).all(1).mean() < 0.7  # each change is made half of the time
    contrast = colour(rgb, 100, contrast=(0.5, 1.5)) / rgb
    assert contrast.min() < 0.6 and contrast.max() > 1.4
    assert (np.ptp(contrast, axis=1) < 0.02).all()
    for h, s, v in [colorsys.rgb_to_hsv(*c / 255) for c in colour(rgb, 50, saturation=(0.5, 1.5))]:
        assert abs(h - 1 / 12) < 0.02 and abs(v - 150 / 255) < 0.01 and 0.3 < s <= 1
    hues = []
    for c in colour(rgb, 100, hue=36):
        h, s, v = colorsys.rgb_to_hsv(*c / 255)
        hues.append(h * 360)
        assert abs(s - 2 / 3) < 0.03 and abs(v - 150 / 255) < 0.01
    hues = (np.array(hues) - 30 + 180) % 360 - 180
    assert 30 < np.abs(hues).max() < 38 and hues.min() < -25 and hues.max() > 25


def test_is_a_function_of_the_seed():
    image, mask = checkerboard()
    before = image.copy(), mask.copy()
    augment = MaskAugmentation((40, 50))
    for a, b in zip(augment(image, mask, (1, 2)), augment(image, mask, (1, 2)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(augment(image, mask, 1)[0], augment(image, mask, 2)[0])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 5)}, "`crop` must be height and width. Received: crop="),
        ({"largest_class_share": 0}, "`largest_class_share` must be in"),
        ({"scale_range": (2, 1)}, "`scale_range` must be two factors .* Received: scale_range="),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskAugmentation(**arguments)


def test_shapes():
    image, mask = checkerboard()
    with pytest.raises(ValueError, match="`image` must be uint8 .* Received: image.dtype=float"):
        MaskAugmentation()(image.astype("float32"), mask, 0)
    with pytest.raises(ValueError, match=r"mask.shape=\(30, 90\)"):
        MaskAugmentation()(image, mask[:30], 0)
