"""Fast paths of sub-layers compute what the sub-layers do, in every precision."""

import contextlib
import math

import keras
import ml_dtypes
import numpy as np
import pytest
from gradients import value_and_grads

from keras_internimage.layers import NormalizedConvolution, TopDownConvolution, sublayers
from keras_internimage.layers.composite import CompositeLayer
from keras_internimage.ops import native

# Half a unit in the last place, relative; the sums are computed in float32.
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12}
NUMPY = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class Features(CompositeLayer):
    """Layer norm, a dense layer and GELU."""

    def build(self, shape):
        self.norm = self._layer_norm("norm")
        self.dense = self._dense(24, "dense")
        self.norm.build(shape)
        self.dense.build(shape)
        self.built = True

    def call(self, inputs):
        return sublayers.through(self, (self.dense, keras.activations.gelu), inputs)


def rounded(dtype, *shape):
    rng = np.random.default_rng(len(shape) + shape[-1])
    return rng.normal(size=shape).astype(NUMPY[dtype])


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def computed(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")), "float64")


@pytest.fixture(params=ROUNDING)
def features(request):
    layer = Features(dtype=request.param)
    layer.build((None, 5, 7, 16))
    layer.dense.bias.assign(rounded(request.param, 24))
    layer.norm.gamma.assign(rounded(request.param, 16))
    layer.norm.beta.assign(rounded(request.param, 16))
    return layer


def test_dense_layer_and_gelu(features):
    dtype = features.compute_dtype
    x = rounded(dtype, 2, 5, 7, 16)
    kernel, bias = (computed(v) for v in (features.dense.kernel, features.dense.bias))
    hidden = x.astype("float64") @ kernel + bias
    # The result of the dense layer may be rounded before GELU, whose slope is below 1.13.
    sums = np.abs(x).astype("float64") @ np.abs(kernel) + np.abs(bias)
    bound = 4 * ROUNDING[dtype] * (sums + 1)
    outputs = features(keras.ops.convert_to_tensor(x))
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    assert (np.abs(computed(outputs) - gelu(hidden)) <= bound).all()


def test_layer_norm(features):
    dtype = features.compute_dtype
    x = rounded(dtype, 2, 5, 7, 16)
    wide = x.astype("float64")
    centred = wide - wide.mean(-1, keepdims=True)
    normal = centred / np.sqrt(centred.var(-1, keepdims=True) + features.norm.epsilon)
    gamma, beta = computed(features.norm.gamma), computed(features.norm.beta)
    outputs = sublayers.run(features, features.norm, keras.ops.convert_to_tensor(x))
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    bound = 4 * ROUNDING[dtype] * (np.abs(normal * gamma) + np.abs(beta) + 1)
    assert (np.abs(computed(outputs) - (normal * gamma + beta)) <= bound).all()


def test_gelu(features):
    dtype = features.compute_dtype
    x = (4 * rounded(dtype, 2, 5, 7, 16)).astype(NUMPY[dtype])
    outputs = sublayers.gelu(keras.ops.convert_to_tensor(x))
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    expected = gelu(x.astype("float64"))
    # `x (1 + erf(x)) / 2`: of the sum near zero, an absolute error is multiplied by x.
    bound = 4 * ROUNDING[dtype] * (np.abs(x).astype("float64") + 1)
    assert (np.abs(computed(outputs) - expected) <= bound).all()


def normalized(shape, dtype="float32", filters=6, **arguments):
    layer = NormalizedConvolution(filters, dtype=dtype, **arguments)
    layer.build(shape)
    for k, variable in enumerate((layer.norm.gamma, layer.norm.beta, layer.norm.moving_mean)):
        variable.assign(np.linspace(-1, 1 + k, filters))
    layer.norm.moving_variance.assign(np.linspace(0.1, 2, filters))
    return layer


def reference_convolution(x, kernel):
    side = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(side)
        for j in range(side)
    )


def reference_norm(y, norm):
    mean, variance, gamma, beta = (
        computed(v) for v in (norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta)
    )
    return np.maximum((y - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta, 0)


@pytest.mark.parametrize("side", [1, 3])
def test_normalized_convolution_in_inference(side):
    x = rounded("float32", 2, 5, 7, 16)
    layer = normalized((None, None, None, 16), kernel_size=side)
    kernel = computed(layer.conv.kernel)
    expected = reference_norm(reference_convolution(x.astype("float64"), kernel), layer.norm)
    with without_gradient():
        outputs = computed(layer(keras.ops.convert_to_tensor(x), training=False))
    np.testing.assert_allclose(outputs, expected, atol=2e-5)
    # What keeps gradients, or traces the model, computes by other operations.
    outputs = computed(layer(keras.ops.convert_to_tensor(x), training=False))
    np.testing.assert_allclose(outputs, expected, atol=2e-5)


def test_normalized_fusion_in_inference():
    maps = [rounded("float32", 2, 6, 8, 16), rounded("float32", 2, 3, 4, 5)]
    layer = normalized([(None, 6, 8, 16), (None, 3, 4, 5)])
    large = keras.ops.image.resize(maps[1], (6, 8), antialias=False, data_format="channels_last")
    joined = np.concatenate([maps[0], computed(large)], axis=-1)
    expected = reference_convolution(joined, computed(layer.conv.kernel))
    with without_gradient():
        outputs = computed(layer([keras.ops.convert_to_tensor(x) for x in maps], training=False))
    np.testing.assert_allclose(outputs, reference_norm(expected, layer.norm), atol=2e-5)


@pytest.fixture
def by_kernels(monkeypatch):
    """Whether each convolution that the kernels computed has a ReLU; skips without them."""
    reason = native.Native().why_not()
    if reason is not None:
        pytest.skip(f"the kernels do not run here: {reason}")
    found, own = [], sublayers.native.convolution

    def spy(inputs, kernel, bias=None, relu=False):
        outputs = own(inputs, kernel, bias, relu)
        if outputs is not None:
            found.append(relu)
        return outputs

    monkeypatch.setattr(sublayers.native, "convolution", spy)
    return found


def test_large_normalized_convolution(by_kernels):
    """In inference the norm and ReLU are part of it, while training they are not."""
    x = rounded("float32", 1, 29, 30, 64)
    layer = normalized((None, None, None, 64), filters=70)
    convolved = reference_convolution(x.astype("float64"), computed(layer.conv.kernel))
    outputs = computed(layer(keras.ops.convert_to_tensor(x), training=False))
    np.testing.assert_allclose(outputs, reference_norm(convolved, layer.norm), atol=2e-5)
    mean, variance = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
    gamma, beta = computed(layer.norm.gamma), computed(layer.norm.beta)
    normal = (convolved - mean) / np.sqrt(variance + layer.norm.epsilon)
    outputs = computed(layer(keras.ops.convert_to_tensor(x), training=True))
    np.testing.assert_allclose(outputs, np.maximum(normal * gamma + beta, 0), atol=2e-5)
    assert by_kernels == [True, False]


def test_large_convolutions_of_sublayers(by_kernels):
    """Plain ones, with ReLU, of a fusion's first map; others are the backend's."""
    x = rounded("float32", 1, 29, 30, 64)
    tensor = keras.ops.convert_to_tensor(x)
    owner = Features()

    def convolution(**options):
        options = {"kernel_size": 3, "padding": "same", "filters": 70, **options}
        layer = keras.layers.Conv2D(**options, bias_initializer="normal")
        layer.build(x.shape)
        return layer

    layer = convolution()
    expected = reference_convolution(x, computed(layer.kernel)) + computed(layer.bias)
    np.testing.assert_allclose(computed(sublayers.run(owner, layer, tensor)), expected, atol=2e-5)
    outputs = computed(sublayers.convolution_and_relu(owner, layer, tensor))
    np.testing.assert_allclose(outputs, np.maximum(expected, 0), atol=2e-5)
    assert by_kernels == [False, True]
    fusion = normalized([(None, 29, 30, 64), (None, 15, 15, 4)], filters=70).conv
    fusion([tensor, keras.ops.zeros((1, 15, 15, 4))])
    assert by_kernels == [False, True, False]
    for options in (
        {"strides": 2},
        {"dilation_rate": 2},
        {"groups": 2},
        {"padding": "valid"},
        {"activation": "tanh"},
        {"kernel_size": 1},
    ):
        sublayers.convolution_and_relu(owner, convolution(**options), tensor)
        sublayers.run(owner, convolution(**options), tensor)
    assert len(by_kernels) == 3


@pytest.mark.parametrize("training", [True, False])
def test_inputs_are_not_overwritten(training):
    x, above = rounded("float32", 2, 6, 8, 16), rounded("float32", 2, 3, 4, 6)
    layer = TopDownConvolution(6)
    tensors = [keras.ops.convert_to_tensor(v.copy()) for v in (x, above)]
    with without_gradient():
        layer(tensors, training=training)
    for tensor, value in zip(tensors, (x, above), strict=True):
        np.testing.assert_array_equal(computed(tensor), value)


def without_gradient():
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6)])
def test_matmul_and_its_gradient(shape):
    a, b = rounded("float32", 5, 4), rounded("float32", *shape)
    upstream = rounded("float32", *(a @ b).shape)
    product, (to_a, to_b) = value_and_grads(sublayers.matmul, (a, b), upstream)
    of_each = upstream.reshape(-1, 5, 6), b.reshape(-1, 4, 6)
    expected = sum(u @ each.T for u, each in zip(*of_each, strict=True))
    np.testing.assert_allclose(product, a @ b, atol=1e-5)
    np.testing.assert_allclose(to_a, expected, atol=1e-5)
    np.testing.assert_allclose(to_b, a.T @ upstream, atol=1e-5)


@pytest.mark.parametrize("columns", [slice(None), slice(1, 5)])
def test_onednn_multiplies_by_whole_matrices(monkeypatch, columns):
    # Of columns of a wider matrix its matmul takes a thousand times longer.
    if keras.backend.backend() != "torch":
        pytest.skip("oneDNN's matmul is that of PyTorch's fast paths")
    import torch

    from keras_internimage.layers.sublayers import torch as fast

    whole = []

    def matmul(inputs, weight, bias, *_):
        whole.append(weight.is_contiguous() or weight.t().is_contiguous())
        return torch.nn.functional.linear(inputs, weight, bias)

    monkeypatch.setattr(fast, "_linear", matmul)
    a, b, upstream = (rounded("float32", *shape) for shape in ((5, 4), (4, 6), (5, 6)))
    value_and_grads(lambda a, b: sublayers.matmul(a, b[:, columns]), (a, b), upstream[:, columns])
    with torch.no_grad():
        sublayers.matmul(torch.from_numpy(a), torch.from_numpy(b)[:, columns])
    assert whole and all(whole)
