"""What variables start as, how it is made, and that nothing is drawn for what weights replace."""

import keras
import numpy as np
import pytest
import small_models
from keras import initializers, ops
from small_models import SMALL, TINY

from keras_internimage import InternImage, InternImageBackbone, layers
from keras_internimage.layers import initial_values
from keras_internimage.layers.initial_values import InitialValues, by_numpy, skip_initialization

OPTIONS = {
    **TINY,
    "input_shape": (64, 64, 3),
    "use_clip_projector": True,
    "center_feature_scale": True,
}


def as_array(x):
    return ops.convert_to_numpy(x)


def test_convolutions_start_within_their_bounds():
    stem = layers.InternImageStem(64)
    stem.build((1, 32, 32, 3))
    for weight, fan_in in (
        (stem.conv1.kernel, 27),
        (stem.conv1.bias, 27),
        (stem.conv2.kernel, 288),
    ):
        bound = fan_in**-0.5
        largest = np.abs(as_array(weight)).max()
        assert 0.8 * bound < largest <= bound
    dcn = layers.DCNv3(groups=4)
    dcn.build((1, 8, 8, 64))
    assert not as_array(dcn.offset_mask.kernel).any()
    assert 0.3 < np.abs(as_array(dcn.dw_conv.kernel)).max() <= 1 / 3


def test_no_two_projections_of_the_attention_start_alike():
    layer = layers.AttentionPooling(num_heads=2, output_dim=8)
    layer.build((1, 4, 4, 8))
    kernels = [as_array(part.kernel) for part in (layer.query, layer.key, layer.value, layer.proj)]
    for index, kernel in enumerate(kernels):
        assert 0.01 < kernel.std() < 0.03
        assert all(np.abs(kernel - other).max() > 0.01 for other in kernels[:index])


@pytest.fixture
def drawn(monkeypatch):
    """The shapes of all random initial values, Keras' and NumPy's."""
    shapes = []

    def record_numpy(initializer, shape, original=by_numpy):
        if hasattr(initializer, "seed"):
            shapes.append(tuple(shape))
        return original(initializer, shape)

    monkeypatch.setattr(initial_values, "by_numpy", record_numpy)
    for name in ("RandomUniform", "TruncatedNormal", "GlorotUniform"):
        kind = getattr(keras.initializers, name)

        def record(self, shape, dtype=None, kind=kind, original=kind.__call__):
            shapes.append(tuple(shape))
            return original(self, shape, dtype)

        monkeypatch.setattr(kind, "__call__", record)
    return shapes


def test_nothing_large_is_drawn_for_weights_that_follow(drawn, tmp_path):
    path = str(tmp_path / "x.weights.h5")
    model = InternImage(**OPTIONS, classes=3)
    assert (64, 256) in drawn and (8, 8) in drawn  # of the last stage, and of the first
    model.save_weights(path)
    drawn.clear()
    loaded = InternImage(**OPTIONS, classes=3, weights=path)
    # The depthwise windows, and three layers of the head.
    assert {np.prod(shape) for shape in drawn if len(shape) > 1} <= {
        *(9 * 8 * 2**stage for stage in range(4)), 64 * 4096, 32 * 1024, 768 * 3,
    }  # fmt: skip
    for weight, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(as_array(weight), as_array(expected), err_msg=weight.path)

    fresh = InternImage(**OPTIONS, classes=5, weights=path)
    assert 0.01 < as_array(fresh.get_layer("predictions").kernel).std() < 0.03

    # Neither a clone nor the next model starts as zeros, not even after weights that do not fit.
    with pytest.raises(ValueError, match="must fit the model"):
        InternImageBackbone(**SMALL, weights=path)
    for model in (
        keras.models.clone_model(loaded),
        InternImageBackbone(**TINY),
    ):
        for part in ("mlp_fc1", "mlp_fc2", "dcn"):
            layer = getattr(model.get_layer("stage4_block1"), part)
            kernel = layer.kernel if part != "dcn" else layer.output_proj.kernel
            assert as_array(kernel).std() > 0.01


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
