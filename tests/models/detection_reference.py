"""The official Mask R-CNN's numbers, and a model that holds its weights.

The numbers are those of the official code, on a CPU in float32. As in `reference`, weights are made
from their names. Some have a factor, so that random ones behave like a trained detector's: scores
spread, proposals move by a part of their anchor, and most of them are background.
"""

import csv
import gzip
import json

import numpy as np
from deterministic import model_shapes, official_weight, uniform
from models import reference

from keras_internimage.checkpoints.names.mask_rcnn import TABLE
from keras_internimage.checkpoints.read import official_name

NAME = "mask_rcnn_internimage_t"
# Heights and widths before and after the official resizing.
ORIGINAL, RESIZED = (144, 200), (180, 250)

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
_FACTORS = {
    "rpn_cls.weight": 1.5,
    "rpn_reg.weight": 0.25,
    "fc_cls.weight": 2.5,
    "fc_reg.weight": 1.5,
    "conv_logits.weight": 8.0,
}
_BACKGROUND = 12.0


def weight(name, shape):
    """A value for the official detector's tensor `name` (PyTorch's layout)."""
    value = official_weight(name, shape)
    factors = [factor for end, factor in _FACTORS.items() if name.endswith(end)]
    if factors:
        value = np.float32(factors[0]) * value
    if name.endswith("fc_cls.bias"):
        value[-1] += np.float32(_BACKGROUND)
    return value


def official_names():
    """The names in the official file, by those in our table."""
    return {official_name(key): key for key in model_shapes(NAME)}


def fill(model):
    """Give a model the reference's weights, checking that it holds exactly the official tensors."""
    stored = model_shapes(NAME)
    names = official_names()
    reference.check_places(model, {key: stored[name] for key, name in names.items()}, TABLE)
    for variable in model.weights:
        official = TABLE.entry(variable.path).official
        tensors = {key: weight(names[key], stored[names[key]]) for key in official}
        variable.assign(TABLE.to_keras(variable.path, tensors))
    return model


def numbers():
    return np.load(reference.DATA / f"{NAME}.npz")


def photograph(height, width):
    """A uint8 RGB image: noise in blocks of 64, 16, 4 and 1 pixels."""
    total = np.full((height, width, 3), 128.0)
    for block, amount in ((64, 48.0), (16, 40.0), (4, 24.0), (1, 8.0)):
        rows, columns = -(-height // block), -(-width // block)
        coarse = uniform(f"photo.{block}", (rows, columns, 3)).astype(np.float64)
        total += amount * coarse.repeat(block, 0).repeat(block, 1)[:height, :width]
    return np.clip(np.floor(total), 0, 255).astype(np.uint8)


def images():
    """The reference's input, a batch of one normalised image, not padded."""
    image = photograph(*RESIZED).astype(np.float32)
    return ((image - _MEAN) * (np.float32(1) / _DEVIATION))[None]


def regions():
    """Twelve boxes `(12, 4)`: of each level, at borders, outside, very flat, empty."""
    h, w = map(float, RESIZED)
    return np.array(
        [
            [10.3, 12.7, 60.1, 55.9],
            [0, 0, w, h],
            [5.5, 7.25, 130.75, 140.5],
            [100, 40, 103.5, 170],
            [20, 90, 220, 97],
            [w - 40, h - 30, w, h],
            [-20, -15, 30, 25],
            [w - 20, h - 20, w + 30, h + 12],
            [50, 50, 162, 162],
            [50, 50, 161.5, 161.5],
            [33, 44, 33, 44],
            [0.4, 0.6, 7.9, 8.2],
        ],
        np.float32,
    )


def objects():
    """The boxes `(3, 4)` that training's numbers are made with."""
    h, w = map(float, RESIZED)
    parts = [[0.10, 0.15, 0.45, 0.60], [0.40, 0.30, 0.95, 0.95], [0.62, 0.08, 0.80, 0.26]]
    return (np.array(parts) * [w, h, w, h]).round(2).astype(np.float32)


def targets():
    """The objects that training's numbers are made with, as `fit` takes them: a batch of one."""
    y, x = np.mgrid[0 : RESIZED[0], 0 : RESIZED[1]] + 0.5
    places = [
        ((x - left) / (right - left), (y - top) / (bottom - top))
        for left, top, right, bottom in objects().astype(np.float64)
    ]
    masks = np.zeros((3, *RESIZED), np.uint8)
    (u, v), (s, t), (p, q) = places
    masks[0] = (u > 0) & (u < 1) & (v > 0) & (v < 1)
    masks[1] = (2 * s - 1) ** 2 + (2 * t - 1) ** 2 < 1
    masks[2] = (p > 0) & (q < 1) & (p < q)
    labels = np.array([[0, 40, 79]], "int32")
    return {"boxes": objects()[None], "labels": labels, "masks": masks[None]}


def training(mode):
    """The official losses, samples, and by each tensor the gradient's (norm, dot product)."""
    stored = json.loads((reference.DATA / f"{NAME}.json").read_text())["training"][mode]
    with gzip.open(reference.DATA / f"{NAME}.{mode}.grads.tsv.gz", "rt") as file:
        rows = csv.reader(file, delimiter="\t")
        gradients = {name: (float(norm), float(product)) for name, norm, product in rows}
    return stored["losses"], stored["samples"], gradients


def probes(gradients):
    """(norm, dot product) of gradients by the variables' paths, by the official names."""
    found, names = {}, official_names()
    for path, gradient in gradients.items():
        for name, array in TABLE.to_official(path, gradient).items():
            array = array.astype(np.float64)
            name = names[name]
            probe = uniform(f"{name}.probe", array.shape)
            found[name] = np.linalg.norm(array), (array * probe).sum()
    return found
