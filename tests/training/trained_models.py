"""Small models for the tests of training."""

import keras
import numpy as np
import small_models
from small_models import FIVE_BLOCKS


def classifier(**arguments):
    """An InternImage of five blocks for images of 32 pixels and two classes."""
    return small_models.classifier(FIVE_BLOCKS, **{"classes": 2, **arguments})


def nested(**arguments):
    """A user's model around a backbone, with layers of their own called as the backbone's."""
    backbone = small_models.backbone(FIVE_BLOCKS, **arguments)
    image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(image))
    x = keras.layers.LayerNormalization(name="stage1_norm")(x)
    return keras.Model(image, keras.layers.Dense(2, activation="softmax", name="stem")(x))


def colours(count=16, seed=0):
    """Red and blue noise of 32 pixels, uint8, and one-hot labels."""
    random = np.random.default_rng(seed)
    kinds = np.arange(count) % 2
    images = random.integers(0, 120, (count, 32, 32, 3))
    images[np.arange(count), :, :, np.where(kinds, 2, 0)] += 120
    return images.astype("uint8"), np.eye(2, dtype="float32")[kinds]
