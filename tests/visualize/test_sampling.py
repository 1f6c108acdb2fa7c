"""Sampling points are those that the operator uses, and lie where they are said to in the image."""

import keras
import numpy as np
import pytest

from keras_internimage.layers import DCNv3
from keras_internimage.visualize import network as networks
from keras_internimage.visualize import sampling_points
from keras_internimage.visualize.gradients import evaluated
from keras_internimage.visualize.sampling import _positions


def bilinear(features, x, y):
    """`features (H, W, C)` at one position, with zeros outside."""
    total = np.zeros(features.shape[-1])
    for column in (int(np.floor(x)), int(np.floor(x)) + 1):
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            if 0 <= row < features.shape[0] and 0 <= column < features.shape[1]:
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                total += share * features[row, column]
    return total


def recomputed(layer, inputs, positions, weights):
    """A DCNv3 layer's output at Q pixels from their points, `(Q, G, P, 2)` in its input's pixels.

    `weights` are the operator's, `(Q, G, P)`.
    """
    projection = layer.input_proj if isinstance(layer, DCNv3) else layer.value_proj
    dense = [
        (np.array(keras.ops.convert_to_numpy(part.kernel), "float64"),
         0 if part.bias is None else np.array(keras.ops.convert_to_numpy(part.bias), "float64"))
        for part in (projection, layer.output_proj)
    ]  # fmt: skip
    value = inputs @ dense[0][0] + dense[0][1]
    depth = value.shape[-1] // layer.groups
    outputs = np.zeros((len(positions), value.shape[-1]))
    for pixel in range(len(positions)):
        for group in range(layer.groups):
            own = slice(group * depth, (group + 1) * depth)
            for (x, y), weight in zip(positions[pixel, group], weights[pixel, group], strict=True):
                outputs[pixel, own] += weight * bilinear(value[..., own], x, y)
    return outputs @ dense[1][0] + dense[1][1]


def dcn_in_and_out(model, block, x):
    network = networks.find(model)
    observers = [(block.dcn, lambda _, inputs, outputs: (inputs, outputs))]
    found = evaluated(lambda x: networks.observe(model, network, x, observers)[1], model, x)
    return [np.float64(array[0]) for array in found[0]]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("plain", marks=pytest.mark.any_backend),
        "large",
        "huge",
        pytest.param("flash", marks=pytest.mark.any_backend),
        "flash_with_all",
    ],
)
def test_the_operator_is_recomputed_from_the_points(tiny, normalized, options):
    model = tiny(options)
    block = networks.find(model).blocks[3][0]
    inputs, outputs = dcn_in_and_out(model, block, normalized)
    pixels = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), axis=-1).reshape(-1, 2)
    points = sampling_points(model, normalized, stage=3, block=0, pixels=pixels)
    assert points.stride == 16 and points.blocks == ("stage3_block1",) and points.groups == 4
    shape = (16, points.groups, -1)
    positions = points.positions.reshape(*shape, 2) / points.stride
    weights = points.weights.reshape(shape) * points.groups
    if isinstance(block.dcn, DCNv3):  # nothing bounds DCNv4's
        np.testing.assert_allclose(points.weights.sum(axis=1), 1, atol=1e-6)
    found = recomputed(block.dcn, inputs, positions, weights)
    expected = outputs.reshape(16, -1)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.any_backend
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_any_geometry(activation):
    layer = DCNv3(
        2, (3, 5), strides=2, dilation_rate=(2, 1), offset_scale=1.5, mask_activation=activation
    )
    layer.build((1, 9, 12, 8))
    rng = np.random.default_rng(0)
    layer.offset_mask.kernel.assign(rng.normal(0, 0.4, layer.offset_mask.kernel.shape))
    x = rng.normal(size=(1, 9, 12, 8)).astype("float32")
    expected = np.array(keras.ops.convert_to_numpy(layer(x)))[0].reshape(-1, 8)
    predictions = [
        None if t is None else np.array(keras.ops.convert_to_numpy(t))[0]
        for t in layer.predict_points(keras.ops.convert_to_tensor(x))
    ]
    positions, weights = _positions(layer, *predictions)
    positions, weights = positions.reshape(-1, 2, 15, 2), weights.reshape(-1, 2, 15)
    found = recomputed(layer, np.float64(x[0]), positions, weights)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def through(field, positions, weights):
    """A map of one channel after one layer: its mean over the groups, at all pixels."""
    height, width, groups = weights.shape[:3]
    result = np.zeros((height, width, 1))
    for index in np.ndindex(*weights.shape):
        result[index[:2]] += weights[index] / groups * bilinear(field, *positions[index])
    return result


@pytest.mark.any_backend
def test_points_of_points(classifier, normalized):
    """Reading a map at the composed points is reading it through one layer after the other."""
    every = [(row, column) for row in range(4) for column in range(4)]
    field = np.random.default_rng(0).normal(size=(4, 4, 1))
    result = field
    for block in (0, 1):
        one = sampling_points(classifier, normalized, 3, pixels=every, block=block)
        positions = one.positions.reshape(4, 4, 4, 9, 2) / 16
        result = through(result, positions, one.weights.reshape(4, 4, 4, 9) * 4)
    both = sampling_points(classifier, normalized, 3, pixels=every, blocks=2)
    assert both.blocks == ("stage3_block2", "stage3_block1")
    assert both.positions.shape[1] > 36 and (both.weights >= 0).all()
    found = [
        sum(w * bilinear(field, *p)[0] for p, w in zip(own / 16, weights, strict=True))
        for own, weights in zip(both.positions, both.weights, strict=True)
    ]
    np.testing.assert_allclose(found, result.ravel(), atol=1e-9)


def test_nested_models_have_the_points_of_their_backbone(nested, photo):
    model, backbone = nested
    inner = np.float32(photo / 64 - 2.0)
    expected = sampling_points(backbone, inner, 3, at=(20, 40))
    found = sampling_points(model, photo, 3, at=(20, 40), normalize=False)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-3)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)


@pytest.mark.any_backend
def test_chosen_pixels_and_groups(classifier, normalized):
    points = sampling_points(classifier, normalized, 2, at=[(20, 33), (63, 0)])
    assert points.pixels.tolist() == [[4, 3], [0, 7]]  # half a pixel up, then the last one
    assert points.queries.tolist() == [[24, 32], [56, 0]]
    assert sampling_points(classifier, normalized, 2).pixels.tolist() == [[4, 4]]
    one = sampling_points(classifier, normalized, 2, at=[(20, 33), (63, 0)], group=1)
    assert one.groups == 1
    np.testing.assert_array_equal(one.positions, points.positions[:, 9:])
    np.testing.assert_allclose(one.weights, points.weights[:, 9:] * 2)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "options, message",
    [
        ({"stage": 5}, "`stage` must be"),
        ({"stage": True}, "`stage` must be"),
        ({"block": 2}, "`block` must be"),
        ({"blocks": 3}, "`blocks` must be"),
        ({"blocks": 2, "block": 0}, "`blocks` must be"),
        ({"group": 4}, "`group` must be"),
        ({"at": (64, 1)}, "`at` must lie in the image"),
        ({"at": (1, 2, 3)}, "`at` must be"),
        ({"pixels": (4, 0)}, "`pixels` must lie in the map"),
        ({"pixels": (0.5, 0)}, "`pixels` must be"),
        ({"pixels": (0, 0), "at": (1, 1)}, "Only one of"),
    ],
)
def test_bad_arguments(classifier, normalized, options, message):
    with pytest.raises(ValueError, match=message):
        sampling_points(classifier, normalized, **options)


@pytest.mark.any_backend
def test_models_without_one_internimage(classifier, normalized):
    inputs = keras.Input((64, 64, 3))
    with pytest.raises(ValueError, match="exactly one InternImage.* with 0"):
        sampling_points(keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs)), normalized)
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        sampling_points("model", normalized)
    enlarged = keras.layers.UpSampling2D(2, data_format="channels_last")
    small = keras.Input((32, 32, 3))
    with pytest.raises(ValueError, match="images of the size it is given"):
        sampling_points(keras.Model(small, classifier(enlarged(small))), normalized[:, ::2, ::2])
