"""Each of RandAugment's fifteen operations against its definition, and how they are drawn."""

import collections

import numpy as np
import photographs
import pytest
from PIL import Image

from keras_internimage import training
from keras_internimage.training import rand_augment

pytestmark = pytest.mark.any_backend

HEIGHT, WIDTH = 60, 80
LEVEL = 0.9  # the official magnitude
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


@pytest.fixture(scope="module")
def image():
    """A photograph without pure black and white."""
    small = photographs.photograph("china").resize((WIDTH, HEIGHT))
    return Image.fromarray((np.asarray(small) * 0.7 + 30).astype("uint8"))


def apply(name, image, level=LEVEL, sign=1):
    changed = rand_augment.OPERATIONS[name](image, level, sign)
    assert changed.mode == "RGB" and changed.size == image.size
    return np.asarray(changed).astype("int64")


def luma(pixels):
    """Grey of ITU-R BT.601, rounded."""
    return np.round(pixels @ [0.299, 0.587, 0.114])[..., None]


def smooth(pixels):
    """A kernel of ones with a five in the middle; the outermost pixels stay."""
    total = 4.0 * pixels
    for rows in (-1, 0, 1):
        for columns in (-1, 0, 1):
            total += np.roll(pixels, (rows, columns), (0, 1))
    inner = np.round(total / 13)
    inner[[0, -1]], inner[:, [0, -1]] = pixels[[0, -1]], pixels[:, [0, -1]]
    return inner


def blend(grey, pixels, factor):
    return np.clip(grey + factor * (pixels - grey), 0, 255)


def equalized(channel):
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    before = np.cumsum(counts) - counts
    return np.minimum(255, (before + step // 2) // step)[channel]


# Name: (pixels, level, sign) -> pixels, by NumPy from the definition.
DEFINITIONS = {
    "AutoContrast": lambda x, level, sign: (
        (x - x.min((0, 1))) * 255.0 / (x.max((0, 1)) - x.min((0, 1)))
    ),
    "Equalize": lambda x, level, sign: np.stack([equalized(c) for c in np.moveaxis(x, 2, 0)], 2),
    "Invert": lambda x, level, sign: 255 - x,
    "PosterizeIncreasing": lambda x, level, sign: (
        x // 2 ** (8 - (4 - int(level * 4))) * 2 ** (8 - (4 - int(level * 4)))
    ),
    "SolarizeIncreasing": lambda x, level, sign: np.where(x >= 256 - int(level * 256), 255 - x, x),
    "SolarizeAdd": lambda x, level, sign: np.where(
        x < 128, np.minimum(x + int(level * 110), 255), x
    ),
    "ColorIncreasing": lambda x, level, sign: blend(luma(x), x, 1 + sign * 0.9 * level),
    "ContrastIncreasing": lambda x, level, sign: blend(
        np.round(luma(x).mean()), x, 1 + sign * 0.9 * level
    ),
    "BrightnessIncreasing": lambda x, level, sign: blend(0.0, x, 1 + sign * 0.9 * level),
    "SharpnessIncreasing": lambda x, level, sign: blend(smooth(x), x, 1 + sign * 0.9 * level),
}
# The others end in whole numbers that Pillow does not round as NumPy does.
EXACT = ("Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")


def test_the_official_fifteen():
    assert list(rand_augment.OPERATIONS) == [
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "PosterizeIncreasing",
        "SolarizeIncreasing",
        "SolarizeAdd",
        "ColorIncreasing",
        "ContrastIncreasing",
        "BrightnessIncreasing",
        "SharpnessIncreasing",
        "ShearX",
        "ShearY",
        "TranslateXRel",
        "TranslateYRel",
    ]
    assert set(rand_augment.OPERATIONS) == {*DEFINITIONS, *GEOMETRIC}
    assert rand_augment.FILL == (124, 116, 104)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_colours_are_those_of_the_definition(image, name):
    before = np.asarray(image).astype("int64")
    for level in (0.0, 0.37, LEVEL, 1.0):
        for sign in (-1, 1):
            changed = apply(name, image, level, sign)
            error = np.abs(changed - DEFINITIONS[name](before, level, sign))
            assert error.max() <= (0 if name in EXACT else 2), (level, sign, error.max())
            assert error.mean() < 0.7
            if level == LEVEL:
                assert np.abs(changed - before).mean() > (1 if "Sharp" in name else 5)
    np.testing.assert_array_equal(np.asarray(image), before)  # not changed in place


def waves(x, y):
    """A smooth image as a function, so that its value between pixels is known."""
    return np.stack([128 + 60 * np.sin(x / 9), 128 + 60 * np.cos(y / 8), 100 + x - 0.5 * y], -1)


def source(name, x, y, level, sign):
    """Where the pixel whose centre is (x, y) comes from."""
    amount = sign * level
    if name == "ShearX":
        return x + 0.3 * amount * y, y
    if name == "ShearY":
        return x, y + 0.3 * amount * x
    if name == "TranslateXRel":
        return x + 0.45 * amount * WIDTH, y
    if name == "TranslateYRel":
        return x, y + 0.45 * amount * HEIGHT
    angle = np.deg2rad(30 * amount)  # counter-clockwise, y pointing down
    dx, dy = x - WIDTH / 2, y - HEIGHT / 2
    sine, cosine = np.sin(angle), np.cos(angle)
    return WIDTH / 2 + cosine * dx - sine * dy, HEIGHT / 2 + sine * dx + cosine * dy


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_pixels_come_from_where_they_should(name, sign):
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    image = Image.fromarray(np.round(waves(x, y)).astype("uint8"))
    for level in (0.4, LEVEL, 1.0):
        changed = apply(name, image, level, sign)
        u, v = source(name, x, y, level, sign)
        inside = (u > 2) & (u < WIDTH - 2) & (v > 2) & (v < HEIGHT - 2)
        outside = (u < -1) | (u > WIDTH + 1) | (v < -1) | (v > HEIGHT + 1)
        assert inside.mean() > 0.4 and outside.mean() > 0.02
        error = np.abs(changed - waves(u, v))[inside]
        assert error.max() < 3 and error.mean() < 0.7  # half a pixel would be 3.3 and 2.1
        assert (changed[outside] == rand_augment.FILL).all()
    np.testing.assert_array_equal(apply(name, image, 0.0, sign), np.asarray(image))


def test_how_operations_are_drawn(image, monkeypatch):
    calls = []

    def recorder(name):
        return lambda image, level, sign: calls[-1].append((name, level, sign)) or image

    operations = {name: recorder(name) for name in rand_augment.OPERATIONS}
    monkeypatch.setattr(rand_augment, "OPERATIONS", operations)
    random = np.random.default_rng(0)
    for _ in range(6000):
        calls.append([])
        assert rand_augment.rand_augment(image, training.RandAugment(), random) is image
    # Two, each with one half: none, one or two.
    counts = np.bincount([len(call) for call in calls], minlength=3) / len(calls)
    np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.02)
    names = collections.Counter(name for call in calls for name, _, _ in call)
    np.testing.assert_allclose([names[name] / 6000 for name in operations], 1 / 15, atol=0.012)
    twice = [call[0][0] == call[1][0] for call in calls if len(call) == 2]
    assert 0.04 < np.mean(twice) < 0.1  # drawn anew: 1 in 15
    levels = np.array([level for call in calls for _, level, _ in call])
    # Normal, of 9 and 0.5, cut off at 10: two deviations, beyond which are 2.3 %.
    assert levels.min() < 0.8 and levels.max() == 1.0
    assert abs(np.median(levels) - 0.9) < 0.003 and abs(levels.std() - 0.049) < 0.003
    assert abs(np.mean(levels == 1.0) - 0.0228) < 0.008
    assert abs(np.mean(np.abs(levels - 0.9) < 0.05) - 0.683) < 0.03
    signs = np.array([sign for call in calls for _, _, sign in call])
    assert set(signs) == {-1, 1} and abs(signs.mean()) < 0.05


def test_strength_and_number_are_the_recipes(image, monkeypatch):
    calls = []
    operations = {"one": lambda image, level, sign: calls.append(level) or image}
    monkeypatch.setattr(rand_augment, "OPERATIONS", operations)
    random = np.random.default_rng(0)
    rand_augment.rand_augment(image, training.RandAugment(3, 4.0, 0.0, 1.0), random)
    assert calls == [0.4] * 3
    for magnitude, level in ((-5.0, 0.0), (50.0, 1.0)):
        calls.clear()
        rand_augment.rand_augment(image, training.RandAugment(1, magnitude, 1.0, 1.0), random)
        assert calls == [level]
