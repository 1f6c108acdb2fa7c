"""Gradients, and derivatives of gradients, through whole blocks while they train.

That is by the sub-layers' fast paths and rematerialised, against the plain way at inference.
"""

import keras
import numpy as np
import pytest
from gradients import penalty_grads, relative_error, value_and_grads

from keras_internimage import layers

BACKEND = keras.backend.backend()
SHAPE = (2, 5, 6, 8)
OPTIONS = [{}, {"post_norm": True, "layer_scale": 0.7, "center_feature_scale": True}]


def make(dtype="float32", **options):
    block = layers.InternImageBlock(groups=2, dtype=dtype, **options)
    block.build(SHAPE)
    rng = np.random.default_rng(3)
    for variable in block.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape) + ("gamma" in variable.path))
    return block


def images(dtype="float32"):
    return np.random.default_rng(0).normal(size=SHAPE).astype(dtype)


def called(block, training):
    return lambda x: block(x, training=training)


@pytest.mark.parametrize(("options", "remat"), [(OPTIONS[0], None), (OPTIONS[1], "full")])
def test_a_gradient_penalty_while_training(options, remat):
    with keras.RematScope(mode=remat):
        block = make(**options)
    mode = "graph" if BACKEND == "jax" else "eager"
    (found,) = penalty_grads(called(block, True), [images()], mode)
    (expected,) = penalty_grads(called(make(**options), False), [images()], mode)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="no float64 in JAX here, nor in some of Keras' layers in PyTorch",
)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_gradient_penalty_by_differences(options):
    """In float64, from gradients that are not differentiated."""
    step = 1e-6
    block = make("float64", **options)

    def penalty(x):
        outputs = keras.ops.convert_to_numpy(keras.ops.stop_gradient(block(x)))
        _, (grad,) = value_and_grads(block, [x], 2 * outputs)
        return (grad**2).sum()

    x = images("float64")
    (found,) = penalty_grads(called(block, True), [x])
    direction = np.random.default_rng(1).normal(size=SHAPE)
    expected = (penalty(x + step * direction) - penalty(x - step * direction)) / (2 * step)
    assert abs((found * direction).sum() - expected) < 1e-5 * np.linalg.norm(found)


def test_values_of_a_stateless_call_while_training():
    """Gradients by the values given, not by those of the variables, as meta-learning asks for."""
    block = make(layer_scale=1.0)
    values = [1.1 * keras.ops.convert_to_numpy(v.value) for v in block.trainable_variables]

    def stateless(training):
        return lambda x, *values: block.stateless_call(values, [], x, training=training)[0]

    given = [images(), *values]
    _, found = value_and_grads(stateless(True), given, images())
    _, expected = value_and_grads(stateless(False), given, images())
    for of_training, of_inference in zip(found, expected, strict=True):
        assert relative_error(of_training, of_inference) < 1e-5
