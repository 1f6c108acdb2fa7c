"""RandAugment by Pillow: the official recipes' fifteen operations on one 8-bit RGB image.

`keras.layers.RandAugment` is not used: it changes all images of a batch alike, has other operations
and strengths, and must wait for its turn where several threads augment.

Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search
space", 2020; operations, ranges and fill are those of timm's `rand-m9-mstd0.5-inc1`, which the
official configuration files name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from keras_internimage.preprocessing import MEAN
from keras_internimage.training.recipe_types import RandAugment

# The highest magnitude.
HIGHEST = 10.0
# The mean colour of ImageNet, for what a moved image leaves empty.
FILL = tuple(round(255 * mean) for mean in MEAN)
# Of moved images, as of the crops: the official DATA.INTERPOLATION.
BICUBIC = Image.Resampling.BICUBIC

# (image, level, sign): the level is the magnitude over 10, in [0, 1]; the sign, -1 or 1, is drawn
# for each image and counts where an operation has two directions.
Operation = Callable[[Image.Image, float, int], Image.Image]


def rand_augment(
    image: Image.Image, recipe: RandAugment, random: np.random.Generator
) -> Image.Image:
    """Applies some of `OPERATIONS`, each drawn anew.

    For each of `recipe.operations`, one of the fifteen is drawn (the same one may come twice) and
    applied with `recipe.probability`. Its magnitude is normal, of the mean `recipe.magnitude` and
    the standard deviation `recipe.deviation`, clipped to [0, 10].

    Args:
        image: of mode RGB.
        recipe: how many, how likely, how strong.
        random: what all of it is drawn from.

    Returns:
        An image of the same mode and size.
    """
    operations = list(OPERATIONS.values())
    for _ in range(recipe.operations):
        operation = operations[random.integers(len(operations))]
        if random.random() >= recipe.probability:
            continue
        magnitude = min(max(random.normal(recipe.magnitude, recipe.deviation), 0.0), HIGHEST)
        image = operation(image, magnitude / HIGHEST, 1 if random.random() < 0.5 else -1)
    return image


def auto_contrast(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Each channel stretched to the whole of 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Each channel's histogram made flat."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, level: float, sign: int) -> Image.Image:
    """255 - x."""
    return ImageOps.invert(image)


def rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    """About the centre, by up to 30 degrees; a positive sign is counter-clockwise."""
    return image.rotate(sign * 30 * level, BICUBIC, fillcolor=FILL)


def posterize(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Only the highest 4 to 0 bits are kept; with 0, at the highest level, the image is black."""
    dropped = 4 + int(4 * level)  # ImageOps.posterize wants to keep one bit at least
    return image.point(3 * [x >> dropped << dropped for x in range(256)])


def solarize(image: Image.Image, level: float, sign: int) -> Image.Image:
    """255 - x where x is at least a threshold, of 256 (nothing changes) to 0."""
    return ImageOps.solarize(image, 256 - int(256 * level))


def solarize_add(image: Image.Image, level: float, sign: int) -> Image.Image:
    """x plus up to 110, where x is below 128."""
    added = int(110 * level)
    table = [min(255, x + added) if x < 128 else x for x in range(256)]
    return image.point(3 * table)


def color(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Towards grey, or away from it."""
    return ImageEnhance.Color(image).enhance(_factor(level, sign))


def contrast(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Towards the mean grey of the image, or away from it."""
    return ImageEnhance.Contrast(image).enhance(_factor(level, sign))


def brightness(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Multiplied: towards black, or away from it."""
    return ImageEnhance.Brightness(image).enhance(_factor(level, sign))


def sharpness(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Towards a smoothed image, or away from it."""
    return ImageEnhance.Sharpness(image).enhance(_factor(level, sign))


def shear_x(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Rows moved by up to 0.3 of their distance from the top."""
    return _affine(image, 1, sign * 0.3 * level, 0, 0, 1, 0)


def shear_y(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Columns moved by up to 0.3 of their distance from the left."""
    return _affine(image, 1, 0, 0, sign * 0.3 * level, 1, 0)


def translate_x(image: Image.Image, level: float, sign: int) -> Image.Image:
    """By up to 0.45 of the width; a positive sign moves to the left."""
    return _affine(image, 1, 0, sign * 0.45 * level * image.width, 0, 1, 0)


def translate_y(image: Image.Image, level: float, sign: int) -> Image.Image:
    """By up to 0.45 of the height; a positive sign moves up."""
    return _affine(image, 1, 0, 0, 0, 1, sign * 0.45 * level * image.height)


def _factor(level: float, sign: int) -> float:
    """0.1 to 1.9, 1 for no change."""
    return 1 + sign * 0.9 * level


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=BICUBIC, fillcolor=FILL
    )


# By timm's names.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "PosterizeIncreasing": posterize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": color,
    "ContrastIncreasing": contrast,
    "BrightnessIncreasing": brightness,
    "SharpnessIncreasing": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
}
