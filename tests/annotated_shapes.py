"""Small synthetic images with COCO's annotations: bright shapes on dark ground, drawn exactly.

The mask of a shape are the pixels of its colour; squares are class "square", triangles "triangle".
"""

import json

import numpy as np
from PIL import Image

from keras_internimage.data import draw_mask

CLASSES = ("square", "triangle")
# Ids with a gap, in another order than the names' alphabet.
IDS = (3, 17)
COLOURS = ((220, 60, 60), (60, 220, 60))


def shape(random, height, width):
    """Label and outline `(points, 2)` of a shape within an image."""
    side = int(random.integers(min(height, width) // 4, min(height, width) // 2))
    left, top = int(random.integers(width - side)), int(random.integers(height - side))
    label = int(random.integers(2))
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]] if label == 0 else [[0, 0], [1, 0], [0, 1]])
    return label, corners * side + [left, top]


def draw(index, height=48, width=64, count=None):
    """Pixels, uint8 `(height, width, 3)`, and `(label, outline)` of shapes that do not overlap."""
    random = np.random.default_rng(index)
    pixels = random.integers(0, 30, (height, width, 3)).astype("uint8")
    shapes, taken = [], np.zeros((height, width), bool)
    wanted = int(random.integers(1, 4)) if count is None else count
    for _ in range(50):
        if len(shapes) == wanted:
            break
        label, outline = shape(random, height, width)
        mask = draw_mask((outline,), height, width) > 0
        if not (mask & taken).any():
            taken |= mask
            pixels[mask] = COLOURS[label]
            shapes.append((label, outline))
    return pixels, shapes


def content(indices, name="{:03}.png", first=1, **options):
    """What an annotation file says of some images: a dict."""
    images, annotations = [], []
    for index in indices:
        pixels, shapes = draw(index, **options)
        height, width = pixels.shape[:2]
        images.append(
            {"id": 10 * index, "file_name": name.format(index), "width": width, "height": height}
        )
        for label, outline in shapes:
            low, high = outline.min(0), outline.max(0)
            annotations.append(
                {
                    "id": first + len(annotations),
                    "image_id": 10 * index,
                    "category_id": IDS[label],
                    "bbox": [*map(int, low), *map(int, high - low)],
                    "segmentation": [outline.ravel().tolist()],
                    "area": int(draw_mask((outline,), height, width).sum()),
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in zip(reversed(IDS), reversed(CLASSES), strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(annotations, images, indices, change=None, **options):
    """Writes images into a folder, and their annotation file; returns its path."""
    images.mkdir(parents=True, exist_ok=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    whole = content(indices, **options)
    for index, image in zip(indices, whole["images"], strict=True):
        Image.fromarray(draw(index, **options)[0]).save(images / image["file_name"])
    if change is not None:
        change(whole)
    annotations.write_text(json.dumps(whole))
    return annotations


def coco(root, train=4, validation=2, **options):
    """As COCO is downloaded."""
    for part, first, number in (("train", 0, train), ("val", 100, validation)):
        write(
            root / "annotations" / f"instances_{part}2017.json",
            root / f"{part}2017",
            range(first, first + number),
            **options,
        )
    return root


def roboflow(root, train=4, validation=2, **options):
    """As Roboflow exports it."""
    for part, first, number in (("train", 0, train), ("valid", 100, validation), ("test", 200, 1)):
        write(
            root / part / "_annotations.coco.json",
            root / part,
            range(first, first + number),
            **options,
        )
    return root


def single(root, images=6, **options):
    """One annotation file beside a folder of images."""
    write(root / "annotations.json", root / "images", range(images), **options)
    return root
