"""Images of drawn objects with boxes, labels and masks, to learn by heart.

On a background of noise in blocks of several sizes lie one to three shapes, each of a class and a
colour of its own, none over more than a little of another. Masks are the pixels that were drawn;
boxes are the smallest around them. Nothing is taken from anywhere.
"""

import numpy as np

CLASSES = ("rectangle", "ellipse", "triangle")
COLOURS = np.array([(220, 60, 50), (60, 190, 80), (70, 90, 230)])
# Places for objects in an image.
PLACES = 3


def image(index, side=96):
    """An image, uint8 `(side, side, 3)`, boxes `(3, 4)`, labels `(3,)`, masks `(3, side, side)`."""
    random = np.random.default_rng(index)
    pixels = np.full((side, side, 3), 128.0)
    for block in (32, 8, 1):
        cells = -(-side // block)
        noise = random.normal(0, 16, (cells, cells, 3)).repeat(block, 0).repeat(block, 1)
        pixels += noise[:side, :side]
    boxes, labels = np.zeros((PLACES, 4), "float32"), np.full(PLACES, -1, "int32")
    masks = np.zeros((PLACES, side, side), "uint8")
    count = 0
    for _ in range(random.integers(1, PLACES + 1)):
        label = random.integers(len(CLASSES))
        mask = drawn(CLASSES[label], random, side)
        if (masks.any(0) & mask).sum() > mask.sum() / 10:
            continue
        masks[:count] &= ~mask  # it lies above the others
        masks[count], labels[count] = mask, label
        pixels[mask] = COLOURS[label] + random.normal(0, 8, (mask.sum(), 3))
        count += 1
    for place in range(count):
        boxes[place] = around(masks[place])
    return np.clip(pixels, 0, 255).astype("uint8"), boxes, labels, masks


def drawn(kind, random, side):
    """The pixels of a shape somewhere, a quarter to a half as long as the image."""
    height, width = random.uniform(side / 4, side / 2, 2)
    top, left = random.uniform(0, side - height), random.uniform(0, side - width)
    y, x = np.mgrid[:side, :side] + 0.5
    v, u = (y - top) / height, (x - left) / width
    inside = (0 <= u) & (u < 1) & (0 <= v) & (v < 1)
    if kind == "ellipse":
        return (2 * u - 1) ** 2 + (2 * v - 1) ** 2 < 1
    return inside & (abs(2 * u - 1) < v) if kind == "triangle" else inside


def around(mask):
    """The smallest box around the pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def batch(count, side=96):
    """`(x, y)` as `MaskRCNN.fit` takes them; the images are normalised."""
    from keras_internimage.preprocessing import preprocess_input

    images, boxes, labels, masks = (
        np.stack(part) for part in zip(*(image(n, side) for n in range(count)), strict=True)
    )
    x = np.asarray(preprocess_input(images.astype("float32")))
    return x, {"boxes": boxes, "labels": labels, "masks": masks}


def average_precision(found, y, threshold=0.5):
    """The mean over classes of the area under precision over recall, at an overlap of 0.5.

    Args:
        found: what a detector's `predict` gives, boxes as "xyxy".
        y: of `batch`.
    """
    precisions = []
    for label in range(len(CLASSES)):
        rows, wanted = [], 0
        for n, own in enumerate(y["labels"]):
            objects = y["boxes"][n][own == label]
            wanted += len(objects)
            taken = np.zeros(len(objects), bool)
            for place in np.flatnonzero(found["labels"][n] == label):  # the best first
                overlaps = [_overlap(found["boxes"][n, place], box) for box in objects]
                best = int(np.argmax(overlaps)) if overlaps else 0
                hit = bool(overlaps) and overlaps[best] >= threshold and not taken[best]
                if hit:
                    taken[best] = True
                rows.append((-found["scores"][n, place], hit))
        hits = np.cumsum([hit for _, hit in sorted(rows)])
        precision = hits / np.arange(1, len(rows) + 1)
        # Of each object the best precision at its recall or a higher one.
        best = [
            precision[hits >= k].max() if (hits >= k).any() else 0 for k in range(1, wanted + 1)
        ]
        precisions.append(np.mean(best))
    return float(np.mean(precisions))


def _overlap(box, other):
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = np.maximum(sides, 0).prod()
    return shared / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - shared)
