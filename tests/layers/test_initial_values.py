"""The first values of variables: Keras' distributions, made without compiling."""

import keras
import numpy as np
import pytest
import small_models
from keras import initializers

from keras_internimage.layers.initial_values import InitialValues, by_numpy, skip_initialization

SHAPE = (3, 3, 40, 60)
LARGE = [(3, 3, 400, 600), (2000, 1080)]
KNOWN = [
    "zeros",
    "ones",
    initializers.Constant(0.25),
    initializers.RandomUniform(-0.5, 2.0),
    initializers.RandomNormal(1.0, 0.1),
    initializers.TruncatedNormal(stddev=0.02),
    "glorot_uniform",
    "he_normal",
    initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
    initializers.VarianceScaling(1.0, "fan_in", "uniform"),
]


def moments(values):
    values = keras.ops.convert_to_numpy(values).astype("float64")
    return np.array([values.mean(), values.std(), values.min(), values.max()])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone uses it")
@pytest.mark.parametrize("known", KNOWN, ids=range(len(KNOWN)))
@pytest.mark.parametrize("shape", LARGE)
def test_numpy_draws_what_keras_does(known, shape):
    initializer = initializers.get(known)
    expected, found = moments(initializer(shape)), moments(by_numpy(initializer, shape))
    spread = expected[1] if expected[1] else 1e-9
    np.testing.assert_allclose(found[:2], expected[:2], rtol=0, atol=0.01 * spread)
    # Where the distribution has ends they are the same; the normal one's are chance.
    normal = "untruncated" in str(initializer.get_config()) or known is KNOWN[4]
    np.testing.assert_allclose(
        found[2:], expected[2:], rtol=0, atol=(2 if normal else 0.02) * spread
    )


@pytest.mark.any_backend
def test_a_seed_decides():
    draws = [by_numpy(initializers.RandomNormal(seed=seed), SHAPE) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert draws[0].dtype == "float32"


@pytest.mark.any_backend
def test_left_to_keras():
    """What is not known, or has a state of its own."""
    generator = keras.random.SeedGenerator(1)
    for initializer in (
        initializers.RandomNormal(seed=generator),
        initializers.Orthogonal(),
        initializers.Constant(np.ones(SHAPE)),
        initializers.GlorotUniform(),
    ):
        shape = (5,) if isinstance(initializer, initializers.GlorotUniform) else SHAPE
        assert by_numpy(initializer, shape) is None
        assert InitialValues(initializer)(shape).shape == shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_types_and_what_is_skipped(dtype):
    for initializer in ("ones", initializers.RandomNormal(3.0, 0.1)):
        values = InitialValues(initializer)((4, 6), dtype=dtype)
        assert keras.backend.standardize_dtype(values.dtype) in (dtype, "float32")
        assert keras.ops.min(values) > 0.5
        with skip_initialization():
            assert not keras.ops.convert_to_numpy(InitialValues(initializer)((4, 6), dtype)).any()
            kept = InitialValues(initializer, skipped=False)
            assert keras.ops.min(kept((4, 6), dtype)) > 0.5
        config = keras.saving.serialize_keras_object(kept)
        again = keras.saving.deserialize_keras_object(config)
        assert again.get_config() == kept.get_config() and not again.skipped


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone uses NumPy's")
def test_what_is_compiled_holds_no_values():
    """As Keras compiles them for large variables of which each device makes a part."""
    import jax

    initializer = InitialValues(initializers.RandomNormal(seed=1))
    program = jax.make_jaxpr(lambda: initializer((64, 64)))()
    assert not any(np.size(value) > 64 for value in program.consts)
    found, expected = jax.jit(lambda: initializer((64, 64)))(), initializer.initializer((64, 64))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX compiles them")
def test_a_model_is_built_without_compiling():
    import jax

    events = []

    def listen(event, *_, **__):
        events.append(event)

    small_models.backbone(channels=16)  # what every model needs, once
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        small_models.backbone(channels=24, groups=(1, 2, 3, 4), layer_scale=1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len([event for event in events if "backend_compile" in event]) == 0
