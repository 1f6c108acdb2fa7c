"""Small models for the tests of training."""

import keras
import numpy as np

import keras_internimage

SIZE = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}


def classifier(**arguments):
    """An InternImage of five blocks for images of 32 pixels and two classes."""
    return keras_internimage.InternImage(
        **{**SIZE, "input_shape": (32, 32, 3), "classes": 2, **arguments}
    )


def nested(**arguments):
    """A user's model around a backbone, with layers of their own called as the backbone's."""
    backbone = keras_internimage.InternImageBackbone(
        **{**SIZE, "image_shape": (32, 32, 3), **arguments}
    )
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
