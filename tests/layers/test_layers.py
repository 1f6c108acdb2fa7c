"""What the layers compute and how they refuse, beyond Keras' layer contract."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_internimage import layers


def random_image(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def as_array(x):
    return ops.convert_to_numpy(x)


def test_a_fresh_dcnv3_is_a_mean_filter():
    layer = layers.DCNv3(groups=2)
    x = random_image(1, 5, 6, 4)
    layer.build(x.shape)
    eye, zeros = np.eye(4, dtype="float32"), np.zeros(4, dtype="float32")
    for projection in (layer.input_proj, layer.output_proj):
        projection.set_weights([eye, zeros])
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    mean = sum(padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(as_array(layer(x)), mean, atol=1e-6)


def test_strided_dcnv3_samples_where_its_offsets_are_predicted():
    """With stride 2 the output is every second pixel of the same layer with stride 1."""
    x = random_image(2, 7, 9, 8)
    dense, strided = layers.DCNv3(groups=2), layers.DCNv3(groups=2, strides=2)
    dense.build(x.shape)
    strided.build(x.shape)
    generator = np.random.default_rng(1)
    weights = [generator.normal(0, 0.4, w.shape) for w in dense.weights]
    dense.set_weights(weights)
    strided.set_weights(weights)
    np.testing.assert_allclose(as_array(strided(x)), as_array(dense(x))[:, ::2, ::2], atol=1e-5)


def test_center_feature_scale_starts_halfway():
    x = random_image(1, 4, 4, 8)
    plain = layers.DCNv3(groups=2)
    blended = layers.DCNv3(groups=2, center_feature_scale=True)
    plain.build(x.shape)
    blended.build(x.shape)
    for name in ("input_proj", "output_proj", "dw_conv"):
        getattr(blended, name).set_weights(getattr(plain, name).get_weights())
    value = as_array(plain.output_proj(plain.input_proj(x)))
    np.testing.assert_allclose(as_array(blended(x)), (as_array(plain(x)) + value) / 2, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"post_norm": True, "layer_scale": 0.1}])
def test_drop_path_drops_whole_samples_of_a_block(options):
    block = layers.InternImageBlock(groups=2, drop_path_rate=0.5, **options)
    x = random_image(64, 2, 2, 8)
    at_inference = as_array(block(x, training=False))
    in_training = as_array(block(x, training=True))
    assert np.abs(at_inference - x).reshape(64, -1).max(1).min() > 0
    # Both branches dropped, a quarter of the samples: the output is the input.
    untouched = np.abs(in_training - x).reshape(64, -1).max(1) == 0
    assert 4 <= untouched.sum() <= 32


def test_drop_path_keeps_the_mean():
    x = np.ones((4000, 1, 1, 2), "float32")
    y = as_array(layers.DropPath(0.25, seed=3)(x, training=True))
    assert set(np.unique(y.round(5))) == {0, np.float32(1.33333)}
    assert (y[..., 0] == y[..., 1]).all()
    assert abs(y.mean() - 1) < 0.05
    np.testing.assert_array_equal(as_array(layers.DropPath(0.25)(x, training=False)), x)


def test_stem_and_downsampling_pad_all_sides():
    """Against windows cut by hand from an image padded by one pixel on every side."""
    layer = layers.InternImageDownsample(5)
    x = random_image(1, 8, 8, 3)
    layer.build(x.shape)
    kernel = as_array(layer.conv.kernel)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [padded[:, i : i + 7 : 2, j : j + 7 : 2] for i in range(3) for j in range(3)]
    direct = np.einsum("pnhwc,pco->nhwo", np.stack(windows), kernel.reshape(9, 3, 5))
    direct -= direct.mean(-1, keepdims=True)
    direct /= np.sqrt((direct**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(as_array(layer(x)), direct, atol=1e-4)


def test_batch_normalisation_of_two_values_that_differ_little():
    """As where UperNet pools to one pixel: a variance must not be the difference of two squares."""
    x = np.full((2, 1, 1, 64), 1, "float32") * np.linspace(1, 50, 64, dtype="float32")
    x[1] *= 1 + 1e-6
    made = ops.convert_to_numpy(layers.norms.BatchNormalization(epsilon=1e-5)(x, training=True))
    exact = x.astype("float64")
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(made, expected, atol=1e-2)


def test_pixel_shuffle_order():
    fine = np.zeros((1, 4, 4, 3), "float32")
    coarse = random_image(1, 2, 2, 12)
    y = as_array(layers.PixelShuffleAdd()([coarse, fine]))
    for di in range(2):
        for dj in range(2):
            start = (2 * di + dj) * 3
            np.testing.assert_array_equal(y[:, di::2, dj::2], coarse[..., start : start + 3])


def test_attention_pooling_is_multi_head_attention():
    """Against Keras' MultiHeadAttention given the same weights."""
    x = random_image(2, 3, 5, 8)
    layer = layers.AttentionPooling(num_heads=2, output_dim=6)
    layer.build(x.shape)
    generator = np.random.default_rng(1)
    layer.set_weights([generator.normal(0, 0.5, w.shape) for w in layer.weights])
    attention = keras.layers.MultiHeadAttention(2, 4, output_shape=6)
    tokens = ops.reshape(x, (2, 15, 8))
    query = layer.norm_q(ops.mean(tokens, axis=1, keepdims=True))
    key, value = layer.norm_k(tokens), layer.norm_v(tokens)
    attention.build(query.shape, value.shape, key.shape)
    weights = []
    for dense in (layer.query, layer.key, layer.value):
        weights += [as_array(dense.kernel).reshape(8, 2, 4), as_array(dense.bias).reshape(2, 4)]
    weights += [as_array(layer.proj.kernel).reshape(2, 4, 6), as_array(layer.proj.bias)]
    attention.set_weights(weights)
    expected = as_array(attention(query, value, key))[:, 0]
    np.testing.assert_allclose(as_array(layer(x)), expected, atol=2e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_images_smaller_than_the_window(size):
    shape = (1, size, size, 4)
    for layer in (layers.InternImageDownsample(4), layers.DCNv3(groups=2, strides=2)):
        assert tuple(layer(random_image(*shape)).shape) == (1, 1, 1, 4)
        assert layer.compute_output_shape(shape) == (1, 1, 1, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.DCNv3(groups=2, mask_activation="relu"), "mask_activation='relu'"),
        (lambda: layers.DCNv3(groups=2, kernel_size=4), "kernel_size=4"),
        (lambda: layers.DCNv3(groups=2, dw_kernel_size=2), "dw_kernel_size=2"),
        (lambda: layers.DCNv3(groups=0), "groups"),
        (
            lambda: layers.DCNv3(groups=2, strides=2, center_feature_scale=True),
            r"strides=\(2, 2\)",
        ),
        (lambda: layers.DCNv3(groups=3).build((1, 4, 4, 8)), "input channels=8"),
        (lambda: layers.DCNv3(groups=2).build((1, 4, 8)), r"shape=\(1, 4, 8\)"),
        (lambda: layers.DropPath(1.0), "rate=1.0"),
        (lambda: layers.DropPath(-0.1), "rate=-0.1"),
        (
            lambda: layers.InternImageBlock(groups=2, res_post_norm=True, layer_scale=1.0),
            "layer_scale=1.0",
        ),
        (
            lambda: layers.AttentionPooling(3, 5).build((1, 4, 4, 8)),
            "num_heads=3, input channels=8",
        ),
        (
            lambda: layers.PixelShuffleAdd()([np.zeros((1, 2, 2, 4)), np.zeros((1, 3, 4, 1))]),
            "multiples of 32",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
