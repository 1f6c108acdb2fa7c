"""Parts of detectors alone: nearest resizing, the pyramid, and regions from their level."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_internimage.layers.detection import FeaturePyramid, RegionAlign
from keras_internimage.layers.detection.pyramid import nearest
from keras_internimage.layers.detection.regions import region_levels
from keras_internimage.ops.roi_align import roi_align

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def as_array(x):
    return ops.convert_to_numpy(x)


def features(*size, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *size)).astype("float32")


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("size", [(10, 14), (9, 13), (5, 7), (7, 20)])
def test_nearest(size):
    x = features(5, 7, 3)
    expected = functional.interpolate(nchw(x), size, mode="nearest").numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(as_array(nearest(ops.convert_to_tensor(x), size)), expected)


def test_pyramid():
    """Three maps of sizes that are no halves of each other."""
    maps = [features(9, 13, 4), features(5, 7, 6), features(2, 3, 8)]
    layer = FeaturePyramid(5)
    found = [as_array(x) for x in layer([ops.convert_to_tensor(x) for x in maps])]
    weights = [as_array(v) for v in layer.weights]

    def convolution(x, name):
        kernel, bias = (
            torch.from_numpy(np.ascontiguousarray(as_array(v)))
            for v in getattr(layer, name[0])[name[1]].weights
        )
        return functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding="same")

    x = [convolution(nchw(x), ("laterals", k)) for k, x in enumerate(maps)]
    for k in (1, 0):
        x[k] = x[k] + functional.interpolate(x[k + 1], x[k].shape[-2:], mode="nearest")
    x = [convolution(x, ("outputs_of_levels", k)) for k, x in enumerate(x)]
    x.append(functional.max_pool2d(x[-1], 1, stride=2))
    assert len(found) == 4 and len(weights) == 12
    shapes = layer.compute_output_shape([x.shape for x in maps])
    for found_map, expected, shape in zip(found, x, shapes, strict=True):
        assert found_map.shape == shape
        np.testing.assert_allclose(
            found_map, expected.numpy().transpose(0, 2, 3, 1), rtol=0, atol=5e-6
        )


@pytest.mark.any_backend
def test_levels():
    """56 pixels and 111.9 belong to the finest, 112 to the next, and so on; at most the last."""
    sides = np.array([0, 20, 56, 111.9, 112, 223.9, 224, 447.9, 448, 2000], "float32")
    boxes = np.stack([sides * 0, sides * 0, sides / 2, sides * 2], -1)
    found = as_array(region_levels(ops.convert_to_tensor(boxes), 4))
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_regions_come_from_their_level():
    """As each alone from its map, without a bound on the pixels it covers."""
    sizes = [(80, 96), (40, 48), (20, 24), (10, 12)]
    maps = [ops.convert_to_tensor(features(*size, 2, seed=k)) for k, size in enumerate(sizes)]
    boxes = np.array(
        [[0, 0, 384, 320], [3, 5, 380, 12], [90, 2, 96, 318], [10, 20, 230, 240], [5, 5, 130, 99]]
    )
    boxes = ops.convert_to_tensor(np.stack([boxes, boxes[::-1] + 1]).astype("float32"))
    layer = RegionAlign(7)
    found = as_array(layer(maps, boxes))
    levels = as_array(region_levels(boxes, 4))
    assert sorted(set(levels.ravel())) == [0, 1, 2]
    for k, stride in enumerate(layer.strides):
        alone = as_array(roi_align([maps[k]], boxes, [stride]))
        np.testing.assert_allclose(found[levels == k], alone[levels == k], rtol=0, atol=3e-6)
    assert keras.layers.deserialize(keras.layers.serialize(layer)).strides == layer.strides
