"""RoIAlign is what its definition says: values and gradients, on one map and on several."""

import detection_oracle
import keras
import numpy as np
import pytest
from gradients import relative_error, value_and_grads
from keras import ops

from keras_internimage.ops import roi_align as module
from keras_internimage.ops.roi_align import covered_pixels, roi_align

CHANNELS = 3
STRIDES = (8, 16, 32)
SIZES = ((10, 14), (5, 7), (3, 4))
# In an image of 80 x 108 pixels: whole, outside on all sides, beyond, flat, high, without extent.
SPECIAL = np.array(
    [
        [0, 0, 108, 80],
        [-30, -25, 140, 100],
        [-50, -50, -20, -10],
        [120, 90, 150, 100],
        [100, 70, 130, 110],
        [3.3, 20, 104.2, 23.1],
        [50, 1.7, 52.9, 79],
        [33, 44, 33, 44],
        [33, 44, 60, 44],
        [60, 60, 50, 50],
    ]
)


def some_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform((-10, -10), (100, 70), (count, 2))
    return np.concatenate([corner, corner + rng.exponential(30, (count, 2))], 1)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 5)


@pytest.fixture(scope="module")
def case():
    """Two images, more boxes than are pooled at once, each on one of three maps."""
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(2, *size, CHANNELS)).astype("float32") for size in SIZES]
    boxes = np.stack([np.concatenate([SPECIAL, some_boxes(3, n)]) for n in (1, 2)])
    levels = rng.integers(0, 3, boxes.shape[:2]).astype("int32")
    weight = rng.normal(size=(*levels.shape, 3, 3, CHANNELS)).astype("float32")
    values, gradients = np.zeros(weight.shape), [np.zeros(x.shape) for x in maps]
    for n, r in np.ndindex(*levels.shape):
        level = levels[n, r]
        matrix = detection_oracle.roi_align_matrix(SIZES[level], boxes[n, r], STRIDES[level], 3)
        values[n, r] = np.einsum("ijyx,yxc->ijc", matrix, maps[level][n])
        gradients[level][n] += np.einsum("ijyx,ijc->yxc", matrix, weight[n, r])
    return maps, boxes.astype("float32"), levels, weight, values, gradients


GRAPH = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}[keras.config.backend()]


def check(case, mode="eager"):
    maps, boxes, levels, weight, values, gradients = case

    boxes, levels = ops.convert_to_tensor(boxes), ops.convert_to_tensor(levels)

    def align(*maps):
        return roi_align(list(maps), boxes, STRIDES, levels, 3)

    found, found_gradients = value_and_grads(align, maps, weight, mode)
    assert relative_error(found, values) < 2e-6
    for a, b in zip(found_gradients, gradients, strict=True):
        assert relative_error(a, b) < 5e-6
    # Boxes without extent or beyond the image.
    assert not found[:, [2, 3, 7, 8, 9]].any() and found[:, [0, 1, 4, 5, 6]].any((2, 3, 4)).all()


def test_definition(case, implementation):
    check(case)


def test_compiled(case, implementation):
    if keras.config.backend() == "torch" and implementation == "portable":
        pytest.skip("takes long there: the next test")
    check(case, "jit")


def test_graph(case, implementation):
    check(case, GRAPH)


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch's compiler")
def test_compiled_by_pytorch(case, implementation, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 14)  # its loops are unrolled
    check(case, "jit")


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="others know sizes when traced")
def test_unknown_sizes(case, implementation):
    import tensorflow as tf

    maps, boxes, levels, _, values, _ = case
    signature = [tf.TensorSpec((None, None, None, CHANNELS))] * 3
    signature += [tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, None), "int32")]

    @tf.function(input_signature=signature)
    def align(x, y, z, boxes, levels):
        return roi_align([x, y, z], boxes, STRIDES, levels, 3)

    assert relative_error(align(*maps, boxes, levels), values) < 2e-6
    assert align(*maps, boxes[:, :0], levels[:, :0]).shape == (2, 0, 3, 3, CHANNELS)


@pytest.mark.any_backend
def test_a_bound_on_the_pixels_is_exact_up_to_it():
    """Long boxes of a limited area, all over a map that is much larger than what they cover."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 40, 60, 1)).astype("float32")
    area = 50.0
    height = np.exp(rng.uniform(np.log(area / 60), np.log(40), 60))
    sides = 4 * np.stack([area / height, height], 1) * 0.999
    corner = rng.uniform(0, 1, (60, 2)) * (np.array([240, 160]) - sides)
    boxes = np.concatenate([corner, corner + sides], 1).astype("float32")[None]
    x, boxes = ops.convert_to_tensor(x), ops.convert_to_tensor(boxes)
    bound = covered_pixels(40, 60, area)
    assert bound < 300 and covered_pixels(5, 6, area) == 30
    exact, found, short = (
        ops.convert_to_numpy(roi_align([x], boxes, [4], max_pixels=n, implementation="portable"))
        for n in (None, bound, 30)
    )
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6)
    assert abs(short - exact).max() > 0.1  # the bound is needed


def test_hostile_boxes(implementation):
    """Nothing is read outside of the map, in a time that does not depend on the box."""
    huge, inf, nan = 3e38, np.inf, np.nan
    boxes = np.array(
        [
            [[nan, 0, 5, 5], [0, nan, 5, 5], [0, 0, inf, 5], [-inf, 0, 5, inf], [0, 0, 5, nan]],
            [
                [-huge, -huge, huge, huge],
                [1e30, 1e30, 2e30, 2e30],
                [0, 0, 1e9, 5],
                [8, 8, 8.00001, 8.00001],
                [-4e7, -4e7, 5e7, 5e7],
            ],
        ],
        "float32",
    )
    x = ops.ones((2, 6, 5, 20))
    found = ops.convert_to_numpy(roi_align([x], ops.convert_to_tensor(boxes), [4]))
    assert not found[0].any() and not found[1, :3].any()
    # A tiny box is one pixel; one of 2^24 pixels hardly touches the map.
    np.testing.assert_allclose(found[1, 3], 1, atol=1e-6)
    assert np.isfinite(found[1, 4]).all() and abs(found[1, 4]).max() < 1e-3


def test_infinite_pixels_stay_where_they_are(implementation):
    """In the kernels: the portable implementation multiplies all pixels of a box by weights."""
    if implementation == "portable":
        pytest.skip("a product with zero there")
    x = np.ones((1, 12, 12, 3), "float32")
    x[0, 9, 9] = np.inf
    boxes = ops.convert_to_tensor([[[0.0, 0.0, 48.0, 48.0]]])
    found = ops.convert_to_numpy(roi_align([ops.convert_to_tensor(x)], boxes, [4], None, 4))
    expected = np.ones((4, 4))
    expected[3, 3] = np.inf
    np.testing.assert_allclose(found[0, 0, ..., 0], expected, rtol=1e-6)


def test_no_boxes_and_half_types(implementation):
    x = ops.full((2, 6, 8, 2), 3.0, "bfloat16")
    nothing = roi_align([x], ops.zeros((2, 0, 4)), [4])
    assert tuple(nothing.shape) == (2, 0, 7, 7, 2)
    found = roi_align([x], ops.convert_to_tensor([[[2.0, 2.0, 26.0, 20.0]]] * 2), [4])
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    assert (ops.convert_to_numpy(ops.cast(found, "float32")) == 3).all()


@pytest.mark.any_backend
def test_refusals():
    x = ops.zeros((1, 4, 4, 1))
    for arguments in (([x, x], [4]), ([x, x], [4, 8])):
        with pytest.raises(ValueError, match="a stride for each map, and `levels`"):
            roi_align(arguments[0], ops.zeros((1, 1, 4)), arguments[1])
    with pytest.raises(ValueError, match="must be None, 'native' or 'portable'"):
        roi_align([x], ops.zeros((1, 1, 4)), [4], implementation="fast")
