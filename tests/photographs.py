"""Folders of small photographs by class: pieces of scikit-learn's two sample photographs."""

import functools
import pathlib

import numpy as np
from PIL import Image


@functools.cache
def photograph(name):
    import sklearn.datasets

    path = pathlib.Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg"
    with Image.open(path) as image:
        return image.convert("RGB")


def piece(name, index, side=64):
    """A square piece of `china` or `flower`; each index is another one."""
    image = photograph(name)
    random = np.random.default_rng(index)
    left = int(random.integers(image.width - side))
    top = int(random.integers(image.height - side))
    return image.crop((left, top, left + side, top + side))


def folder(root, images=8, classes=("china", "flower"), side=64):
    """Writes `images` JPEG files for each class; returns the folder."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(images):
            piece(name, index, side).save(root / name / f"{index:03}.jpg", quality=90)
    return root
