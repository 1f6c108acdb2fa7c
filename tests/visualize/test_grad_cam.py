"""Grad-CAM against its formula, on this package's heads and on a user's."""

import keras
import numpy as np
import pytest
from gradients import value_and_grads

from keras_internimage.visualize import grad_cam
from keras_internimage.visualize.grad_cam import _grad_cam, _to_image


def run(function, x):
    return np.array(keras.ops.convert_to_numpy(function(x, training=False)))


def heat_of(features, slopes):
    """The formula, for one image."""
    alpha = slopes[0].mean(axis=(0, 1))
    heat = np.maximum((features[0] * alpha).sum(axis=-1), 0)
    return heat / max(heat.max(), 1e-9)


def test_the_formula(classifier, normalized):
    heats, _ = _grad_cam(classifier, normalized, list(range(5)), (2, 4))
    assert np.std(heats) > 0.1
    for number, (stage, index) in enumerate(((2, 1), (4, 3))):
        last = classifier.get_layer(f"stage{stage}_norm")
        after = classifier.layers[classifier.layers.index(last) + 1 :]
        features = run(keras.Model(classifier.input, last.output), normalized)

        def logit(x, after=after):
            for layer in after[:-1]:
                x = layer(x)
            return keras.ops.matmul(x, after[-1].kernel) + after[-1].bias

        _, (slopes,) = value_and_grads(logit, [features], np.float32(np.arange(5) == index)[None])
        found = heats[index][number]
        assert found.shape == (64, 64) and found.dtype == np.float32
        stride = 2 ** (stage + 1)
        np.testing.assert_allclose(found[::stride, ::stride], heat_of(features, slopes), atol=1e-4)


def test_a_head_of_ones_own(nested, photo):
    """After average pooling and one dense layer, the map is its kernel's product with it."""
    model, backbone = nested
    kernel = keras.ops.convert_to_numpy(model.layers[-1].get_layer("scores").kernel)
    features = run(backbone, np.float32(photo / 64 - 2.0)[None])
    heats, _ = _grad_cam(model, photo[None].astype("float32"), [0, 1, 2], (4,))
    for index in range(3):
        heat = np.maximum(features[0] @ np.array(kernel)[:, index], 0)
        found = heats[index][0][::32, ::32]
        np.testing.assert_allclose(found, heat / max(heat.max(), 1e-9), atol=1e-4)


@pytest.mark.any_backend
def test_two_stages_of_the_head_of_h_and_g(tiny, normalized):
    model = tiny("huge")
    scores = run(model, normalized)
    heats, classes = _grad_cam(model, normalized, [None, *range(5)], (3, 4))
    assert classes == [scores.argmax(), *range(5)]
    heats = np.array(heats)
    assert heats.shape == (6, 2, 64, 64)
    np.testing.assert_array_equal(heats[0], heats[1 + scores.argmax()])
    # Of a class for which nothing speaks, the map is zero.
    assert heats.min() == 0 and set(heats.max(axis=(2, 3)).ravel()) <= {0.0, 1.0}
    assert (heats.max(axis=(0, 2, 3)) == 1).all() and (heats.std(axis=(0, 2, 3)) > 0.01).all()
    # Nothing of the model was changed.
    np.testing.assert_allclose(run(model, normalized), scores, atol=1e-6)
    assert model.layers[-1].activation is keras.activations.softmax
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


@pytest.mark.any_backend
def test_the_softmax_does_not_matter(tiny, classifier, normalized):
    logits = tiny(classifier_activation=None)
    logits.set_weights(classifier.get_weights())
    np.testing.assert_allclose(
        grad_cam(logits, normalized, 2), grad_cam(classifier, normalized, 2), atol=1e-6
    )


@pytest.mark.any_backend
def test_map_pixels_lie_on_image_pixels():
    heat = np.random.default_rng(0).random((3, 4))
    image = _to_image(heat, 8, (20, 31))
    np.testing.assert_allclose(image[::8, ::8], heat, rtol=1e-6)
    np.testing.assert_allclose(image[0, 2], 0.75 * heat[0, 0] + 0.25 * heat[0, 1], rtol=1e-6)
    np.testing.assert_allclose(image[19, 24:], heat[2, 3], rtol=1e-6)  # past the last: the edge


@pytest.mark.any_backend
def test_bad_arguments(tiny, classifier, normalized):
    for index in (5, -1, 1.5, True):
        with pytest.raises(ValueError, match="`class_index` must be"):
            grad_cam(classifier, normalized, index)
    with pytest.raises(ValueError, match="`stage` must be"):
        grad_cam(classifier, normalized, stage=0)
    with pytest.raises(ValueError, match="must be a classifier"):
        grad_cam(tiny(image_shape=(64, 64, 3)), normalized)
    blind = tiny()
    blind.layers[-1].kernel.assign(np.zeros((192, 5)))
    with pytest.raises(ValueError, match="must depend on the map"):
        grad_cam(blind, normalized, 0)
    assert not any("call" in vars(layer) for layer in blind._flatten_layers())
