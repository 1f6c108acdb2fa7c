"""Bitmaps in boxes: RoIAlign by its definition, and at borders as where the image was padded."""

import detection_oracle
import keras
import numpy as np
import pytest
from keras import ops
from models import reference

from keras_internimage.ops.bitmaps import crop_bitmaps

BOXES = np.array(
    [
        [[2.3, 1.7, 20.1, 9.9], [0, 0, 23, 17], [15, 10, 23, 17], [-4, -3, 30, 40], [5, 5, 5, 9]],
        [[8, 3.5, 8.7, 12], [1, 1, 22.5, 3], [20, 15, 21, 16], [3, 4, 19, 15], [0, 0, 0, 0]],
    ]
)


@pytest.mark.parametrize("kind", ["uint8", "bool"])
def test_crop_bitmaps(kind):
    """The first image goes on with zeros, the second ends where its bitmaps do."""
    rng = np.random.default_rng(0)
    bitmaps = rng.integers(0, 2, (2, 3, 17, 23)).astype(kind)
    index = rng.integers(0, 3, BOXES.shape[:2]).astype("int32")
    sizes = np.array([[32, 32], [17, 23]])
    arrays = bitmaps, index, BOXES.astype("float32"), sizes

    def crop(*arrays):
        return crop_bitmaps(*arrays, 4)

    if keras.config.backend() == "jax":
        import jax

        crop = jax.jit(crop)
    found = reference.as_array(crop(*map(ops.convert_to_tensor, arrays)))
    for n, r in np.ndindex(*index.shape):
        height, width = sizes[n]
        image = np.zeros((height, width))
        image[:17, :23] = bitmaps[n, index[n, r]]
        box = np.clip(BOXES[n, r], 0, [width, height, width, height])
        matrix = detection_oracle.roi_align_matrix((height, width), box, 1, 4)
        expected = np.einsum("ijyx,yx->ij", matrix, image)
        np.testing.assert_allclose(found[n, r], expected, rtol=0, atol=1e-6)
    assert found[0, :4].any((1, 2)).all() and not found[:, 4].any()
