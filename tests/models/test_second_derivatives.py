"""Derivatives of gradients through whole models, against differences of gradients."""

import keras
import numpy as np
import pytest
from gradients import penalty_grads, value_and_grads
from models import reference
from small_models import SMALL

from keras_internimage import InternImage

BACKEND = keras.backend.backend()
# TensorFlow computes whole models in float64, others some of Keras' layers in float32 only: there
# the weights are smoother. NOISE of 0.1 would not show a wrong layer norm at inference.
if BACKEND == "tensorflow":
    DTYPE, STEP, BOUND, NOISE = "float64", 1e-5, 1e-5, 0.3
else:
    DTYPE, STEP, BOUND, NOISE = "float32", 1e-2, 2e-2, 0.1
SIZE = 64
OPTIONS = {
    **SMALL,
    "level2_post_norm": True,
    "level2_post_norm_block_ids": (0,),
}


def make():
    images = keras.Input((SIZE, SIZE, 3), dtype=DTYPE)  # which would be cast to float32 otherwise
    model = InternImage(
        **OPTIONS, input_tensor=images, classes=3, classifier_activation=None, dtype=DTYPE
    )
    generator = np.random.default_rng(1)
    for weight in model.trainable_variables:
        value = reference.as_array(weight)
        weight.assign(value + generator.normal(0, NOISE, value.shape))
    return model


def called(model, training):
    if BACKEND != "jax":
        return lambda x: model(x, training=training)
    trainable = [v.value for v in model.trainable_variables]
    rest = [v.value for v in model.non_trainable_variables]
    return lambda x: model.stateless_call(trainable, rest, x, training=training)[0]


def check_by_differences(function):
    """Along one direction, from gradients that are not differentiated."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, SIZE, SIZE, 3)).astype(DTYPE)
    mode = "graph" if BACKEND == "jax" else "eager"

    def penalty(x):
        def total(x):
            return keras.ops.sum(function(x) ** 2)

        _, (grad,) = value_and_grads(total, [x], np.ones((), DTYPE), mode)
        return (grad.astype("float64") ** 2).sum()

    (found,) = penalty_grads(function, [x], mode)
    slope = np.linalg.norm(found)
    step = (STEP * found / slope).astype(DTYPE)
    expected = (penalty(x + step) - penalty(x - step)) / (2 * STEP)
    assert abs(slope - expected) < BOUND * slope


@pytest.mark.skipif(BACKEND == "jax", reason="compiling it took more than two minutes")
@pytest.mark.parametrize("training", [False, True])
def test_a_gradient_penalty(training):
    check_by_differences(called(make(), training))
