"""Synthetic images with masks, easy on purpose: sky above ground, and a square somewhere.

Edges lie on multiples of four pixels, as do those of the cells in which UperNet decides.
"""

import numpy as np
from PIL import Image

CLASSES = ("ground", "sky", "square")
COLOURS = np.array([(60, 130, 60), (90, 120, 220), (220, 200, 80)])


def pair(index, side=64):
    """An image, uint8 `(side, side, 3)`, and its mask; the first row is ignored (255)."""
    random = np.random.default_rng(index)
    cells = side // 4
    mask = np.zeros((cells, cells), "uint8")
    mask[: random.integers(cells // 4, 3 * cells // 4)] = 1
    width = random.integers(cells // 3, cells // 2 + 1)
    top, left = random.integers(0, cells - width, 2)
    mask[top : top + width, left : left + width] = 2
    mask = mask.repeat(4, 0).repeat(4, 1)
    image = COLOURS[mask] + random.integers(-30, 31, (side, side, 3))
    mask[0] = 255
    return image.astype("uint8"), mask


def folder(root, images=20, validation=8, side=64):
    """`images/` and `masks/`, each with `train/` and `val/`, and `classes.txt`."""
    for part, first, number in (("train", 0, images), ("val", 1000, validation)):
        for kind in ("images", "masks"):
            (root / kind / part).mkdir(parents=True)
        for index in range(first, first + number):
            for kind, pixels in zip(("images", "masks"), pair(index, side), strict=True):
                Image.fromarray(pixels).save(root / kind / part / f"{index:04}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
