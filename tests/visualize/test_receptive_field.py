"""Effective receptive fields: the gradient, where it lies, and the area that holds it."""

import keras
import numpy as np
import pytest
from gradients import value_and_grads
from small_models import SMALL

import keras_internimage
from keras_internimage.visualize import area_share, receptive_field


def test_the_gradient_of_one_pixel(classifier, normalized):
    field = receptive_field(classifier, normalized, stages=2, pixel=(3, 5), draws=1, seed=7)
    block = classifier.get_layer("stage2_block1")
    until = keras.Model(classifier.input, block.output)
    upstream = np.zeros((1, 8, 8, 32), "float32")
    upstream[0, 3, 5] = np.random.default_rng(7).choice(np.float32([-1, 1]), (1, 32))[0]
    _, (expected,) = value_and_grads(until, [normalized], upstream)
    expected = np.abs(expected[0]).sum(axis=-1)
    np.testing.assert_allclose(field[0], expected / expected.sum(), atol=1e-5 * field.max())


def test_a_pixel_lies_where_the_strides_say():
    """With fresh, zero offsets the field is as wide to all sides of the pixel's place."""
    model = keras_internimage.InternImageBackbone(**SMALL, image_shape=(112, 112, 3))
    image = np.random.default_rng(0).normal(size=(112, 112, 3)).astype("float32")
    # Rows and columns on each side: the stem 3; the depthwise convolution only turns to what
    # offsets do, the sampling points reach one pixel of the map, and so does a down-sampling.
    pixel = (3, 4)
    fields = receptive_field(model, image, stages=(1, 2, 3), pixel=pixel, draws=2)
    for stage, field, reach in zip((1, 2, 3), fields, (7, 19, 43), strict=True):
        centre = np.array(pixel) * 2 ** (stage + 1)
        rows, columns = np.nonzero(field)
        assert (rows.min(), columns.min()) == tuple(np.maximum(centre - reach, 0)), stage
        assert (rows.max(), columns.max()) == tuple(np.minimum(centre + reach, 111)), stage


@pytest.mark.any_backend
def test_stages_of_a_nested_model(nested, photo):
    model, _ = nested
    fields = receptive_field(model, photo, normalize=False, draws=1)
    assert fields.shape == (4, 64, 64) and (fields >= 0).all()
    np.testing.assert_allclose(fields.sum(axis=(1, 2)), 1)
    areas = [area_share(field, 0.95) for field in fields]
    assert areas[0] < areas[1] < min(areas[2:])


@pytest.mark.any_backend
def test_averaged_over_images(classifier, photo):
    images = [photo, np.ascontiguousarray(photo[::-1])]
    both = receptive_field(classifier, images, stages=2, draws=1)
    again = receptive_field(classifier, np.stack(images), stages=2, draws=1)
    np.testing.assert_allclose(again, both, atol=1e-6 * both.max())
    first = receptive_field(classifier, images[0], stages=2, draws=1)
    assert np.abs(first - both).max() > 0.05 * both.max()


@pytest.mark.any_backend
def test_area_share():
    field = np.array([[0.0, 8.0], [1.0, 1.0]])
    assert [area_share(field, share) for share in (0.5, 0.8, 0.81, 0.95, 1)] == [
        0.25, 0.25, 0.5, 0.75, 0.75
    ]  # fmt: skip
    assert area_share(np.ones((20, 50)), 0.95) == 0.95
    for bad, share in ((field - 1, 0.5), (np.zeros((2, 2)), 0.5), (field[0], 0.5), (field, 0)):
        with pytest.raises(ValueError, match="`field` must be|`share` must be"):
            area_share(bad, share)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "options, message",
    [
        ({"stages": (1, 0)}, "`stage` must be"),
        ({"stages": ()}, "`stages` must name"),
        ({"draws": 0}, "`draws` must be"),
        ({"stages": 4, "pixel": (2, 0)}, "`pixel` must lie"),
        ({"images": []}, "at least one image"),
    ],
)
def test_bad_arguments(classifier, normalized, options, message):
    with pytest.raises(ValueError, match=message):
        receptive_field(**{"model": classifier, "images": normalized, **options})


@pytest.mark.any_backend
def test_a_gradient_of_zero(tiny, normalized):
    model = tiny()
    model.get_layer("stem").norm2.gamma.assign(np.zeros(16))
    with pytest.raises(ValueError, match="not all zero"):
        receptive_field(model, normalized, stages=1, draws=1)
