"""Pooling and resizing in exported files, of unknown sizes where the format has them."""

import keras
import numpy as np
import pytest

import keras_internimage
from keras_internimage.exports import formats
from keras_internimage.layers import AdaptiveAveragePooling2D, FusionConvolution

BACKEND = keras.config.backend()


def model(sides):
    """Pyramid pooling of a map a quarter of the images' size, and all that is resized for it."""
    images = keras.Input((*sides, 3))
    x = keras.layers.Conv2D(4, 4, 4, data_format="channels_last")(images)
    pooled = [AdaptiveAveragePooling2D(size)(x) for size in (2, (1, 3))]
    return keras.Model(images, FusionConvolution(5)([x, *pooled]))


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format(name, tmp_path):
    target = formats.FORMATS[name]
    if target.backend != BACKEND:
        pytest.skip(f"{target.title} is written by {target.backend}")
    lacking = formats.missing(target, True, False)
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed")
    known = (44, 72)  # where small maps are projected before they are resized
    for number, sides in enumerate([known] if name == "litert" else [known, (None, None)]):
        path = tmp_path / f"x{number}{target.suffix}"
        made = model(sides)
        keras_internimage.export(made, path, verify=False, verbose=False)
        run = formats.runner(path)
        for height, width in [known] if sides == known else [known, (20, 36)]:
            x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")
            (found,) = run(x).values()
            expected = made.predict(x, verbose=0)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
