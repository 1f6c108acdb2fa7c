"""Mask R-CNN T at full size, with random weights that find something, as a file of the user's."""

import numpy as np


def mask_rcnn_t():
    """MaskRCNNT whose scores, boxes and masks are spread like a trained model's."""
    from keras_internimage import MaskRCNNT

    model = MaskRCNNT()
    generator = np.random.default_rng(0)
    for variable in model.weights:
        # Freshly initialised offsets are zero.
        if "offset_mask" in variable.path:
            spread = 0.02 if variable.path.endswith("kernel") else 0.5
            variable.assign(generator.normal(scale=spread, size=variable.shape))
    spreads = {
        model.rpn.objectness: 0.05,
        model.rpn.deltas: 0.005,
        model.box_head.scores: 0.1,
        model.box_head.deltas: 0.03,
        model.mask_head.predictions: 0.5,
    }
    for layer, spread in spreads.items():
        layer.kernel.assign(generator.normal(scale=spread, size=layer.kernel.shape))
    return model


def image(height, width):
    """uint8 pixels of blocks of many sizes."""
    generator = np.random.default_rng(1)
    total = np.full((height, width, 3), 128.0, "float32")
    for block in (256, 64, 16, 4):
        coarse = generator.normal(scale=32, size=(-(-height // block), -(-width // block), 3))
        total += coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype("float32")
    return np.clip(total, 0, 255).astype("uint8")
