"""Fast paths of sub-layers compute what the sub-layers do, in every precision."""

import math

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import CompositeLayer

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
