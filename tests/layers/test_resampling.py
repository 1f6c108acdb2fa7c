"""Pooling and resizing are PyTorch's, at any size."""

import hypothesis
import keras
import numpy as np
import pytest
from gradients import relative_error, value_and_grads
from hypothesis import strategies as st
from keras import ops

from keras_internimage.layers import (
    AdaptiveAveragePooling2D,
    BilinearResizing,
    FusionConvolution,
    fusion,
)
from keras_internimage.layers.resampling import (
    adaptive_average_pool,
    bilinear_matrix,
    resize_bilinear,
)

functional = pytest.importorskip("torch").nn.functional

SETTINGS = hypothesis.settings(
    # Every example is a new shape, which JAX compiles.
    max_examples=10 if keras.backend.backend() == "jax" else 40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
SIDES = st.tuples(st.integers(1, 23), st.integers(1, 23))
SMALL = st.tuples(st.integers(1, 7), st.integers(1, 7))


def features(size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")


def by_torch(function, x, *arguments, **options):
    import torch

    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    return function(nchw, *arguments, **options).numpy().transpose(0, 2, 3, 1)


def as_array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


@SETTINGS
@hypothesis.given(SIDES, SMALL)
def test_adaptive_average_pool(size, output_size):
    x = features(size)
    expected = by_torch(functional.adaptive_avg_pool2d, x, output_size)
    found = as_array(adaptive_average_pool(ops.convert_to_tensor(x), output_size))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@SETTINGS
@hypothesis.given(SIDES, SIDES)
def test_resize_bilinear(size, output_size):
    x = features(size)
    options = {"mode": "bilinear", "align_corners": False}
    expected = by_torch(functional.interpolate, x, output_size, **options)
    found = as_array(resize_bilinear(ops.convert_to_tensor(x), output_size))
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="others know sizes when traced")
def test_unknown_sizes():
    """One function for all sizes, traced before they are known."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3))] * 2)
    def both(x, like):
        return AdaptiveAveragePooling2D((3, 6))(x), BilinearResizing()([x, like])

    for size, other in (((5, 7), (9, 3)), ((2, 13), (2, 26))):
        x = features(size)
        pooled, resized = both(x, features(other))
        expected = by_torch(functional.adaptive_avg_pool2d, x, (3, 6))
        np.testing.assert_allclose(pooled, expected, rtol=0, atol=2e-6)
        expected = by_torch(functional.interpolate, x, other, mode="bilinear")
        np.testing.assert_allclose(resized, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype):
    """Sums are in float32, or 500 equal numbers would have another mean."""
    x = ops.full((1, 20, 25, 1), 3.0, dtype)
    pooled = AdaptiveAveragePooling2D(2, dtype=dtype)(x)
    resized = BilinearResizing(dtype=dtype)([x, ops.zeros((1, 31, 7, 2), dtype)])
    for y, shape in ((pooled, (1, 2, 2, 1)), (resized, (1, 31, 7, 1))):
        assert keras.backend.standardize_dtype(y.dtype) == dtype and tuple(y.shape) == shape
        assert (as_array(y) == 3).all()


@SETTINGS
@hypothesis.given(SIDES, SIDES)
def test_bilinear_matrix(size, output_size):
    x = features(size)
    rows, columns = (bilinear_matrix(n, s) for n, s in zip(size, output_size, strict=True))
    expected = by_torch(functional.interpolate, x, output_size, mode="bilinear")
    found = np.einsum("ai,bj,nijc->nabc", rows, columns, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)  # PyTorch's are float32


# Sizes of the maps, side of the kernel, and how many maps have fewer multiplications if projected
# before they are resized.
FUSIONS = {
    "halves": ([(8, 12), (4, 6), (2, 3), (1, 2)], 3, 3),
    "odd": ([(13, 9), (7, 5), (4, 3), (2, 2), (1, 1)], 3, 4),
    "not smaller": ([(6, 9), (6, 9), (11, 9), (7, 8)], 3, 0),
    "wide kernel": ([(9, 11), (2, 3), (1, 2)], 5, 2),
    "pointwise": ([(9, 11), (3, 2)], 1, 1),
}


def _plain(kernel, *maps):
    """The formula, in PyTorch's functions."""
    import torch

    nchw = [x.permute(0, 3, 1, 2) for x in maps]
    size = nchw[0].shape[-2:]
    resized = [functional.interpolate(x, size, mode="bilinear") for x in nchw]
    side = kernel.shape[0]
    y = functional.conv2d(torch.cat(resized, 1), kernel.permute(3, 2, 0, 1), padding=side // 2)
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("case", FUSIONS)
def test_fusion_convolution(case, monkeypatch):
    """Equal to the convolution of the concatenation, borders and gradients included."""
    import torch

    sizes, side, smaller = FUSIONS[case]
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, *size, 8 + k)).astype("float32") for k, size in enumerate(sizes)]
    layer = FusionConvolution(4, side)
    projected = []
    original = fusion._project_then_resize
    monkeypatch.setattr(
        fusion,
        "_project_then_resize",
        lambda x, *rest: projected.append(tuple(x.shape[1:3])) or original(x, *rest),
    )
    layer.build([x.shape for x in maps])
    weight = rng.normal(size=(2, *sizes[0], 4)).astype("float32")
    kernel = as_array(layer.kernel)
    assert kernel.shape == (side, side, sum(x.shape[-1] for x in maps), 4)

    def ours(kernel, *maps):
        values = [(layer.kernel, kernel)]
        with keras.StatelessScope(state_mapping=values):
            return layer(list(maps))

    found, gradients = value_and_grads(ours, [kernel, *maps], weight)
    assert set(projected) == set(sizes[1 : 1 + smaller])
    tensors = [torch.from_numpy(a).requires_grad_() for a in (kernel, *maps)]
    expected = _plain(*tensors)
    (expected * torch.from_numpy(weight)).sum().backward()
    assert relative_error(found, expected.detach()) < 2e-6
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert relative_error(gradient, tensor.grad) < 5e-6


@pytest.mark.any_backend
def test_refusals():
    for size in (0, (1, 2, 3), (2, True), "6"):
        with pytest.raises(ValueError, match="`output_size` must be a positive int or two"):
            AdaptiveAveragePooling2D(size)
    for size in (0, 2):
        with pytest.raises(ValueError, match=f"positive odd int. Received: kernel_size={size}"):
            FusionConvolution(4, size)
