"""Every kind of model gives the numbers of the official implementation."""

import functools

import keras
import numpy as np
import pytest
from deterministic import uniform
from models import reference

from keras_internimage import InternImageBackbone
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.layers import InternImageBlock
from keras_internimage.variants import model_name

TINY_TOLERANCE = 2e-5
FULL_TOLERANCE = 5e-5
GRADIENT_TOLERANCE = 1e-4
# Those with nothing that the others lack but a scale or a bias are differentiated on one backend.
GRADIENTS_OF_FLASH = tuple(
    pytest.param(name, marks=pytest.mark.any_backend)
    if name in ("tiny_flash_dense_t", "tiny_flash_l")
    else name
    for name in reference.TINY_FLASH
)
# Softmax does not see a constant added to all keys: these gradients are zero but for rounding.
VANISHING = ("clip_projector.norm1_k.0.bias", "clip_projector.cross_dcn.k_bias")


def assert_close(actual, expected, tolerance):
    """Largest difference at most `tolerance` of the largest expected entry, or of 1 if less."""
    np.testing.assert_allclose(
        reference.as_array(actual), expected, rtol=0, atol=tolerance * max(1, abs(expected).max())
    )


def stages_and_logits(model, x):
    outputs = [*reference.pyramid(model).outputs, model.output]
    return keras.Model(model.input, outputs).predict(x, verbose=0)


@pytest.mark.parametrize("name", reference.TINY + reference.TINY_FLASH)
def test_tiny_stages_and_logits(name):
    stored = reference.numbers(name)
    *stages, logits = stages_and_logits(reference.classifier(name), reference.images(name))
    for stage, features in enumerate(stages, start=1):
        assert_close(features, stored[f"stage{stage}"], TINY_TOLERANCE)
    assert_close(logits, stored["logits"], TINY_TOLERANCE)


def test_the_same_without_compiling():
    stored, x = reference.numbers("tiny_prenorm"), reference.images("tiny_prenorm")
    assert_close(reference.classifier("tiny_prenorm")(x), stored["logits"], TINY_TOLERANCE)


@pytest.mark.parametrize("name", reference.TINY + GRADIENTS_OF_FLASH)
def test_tiny_gradients(name):
    stored, x = reference.numbers(name), reference.images(name)
    seed = int(stored["seed"])
    model = reference.classifier(name)
    weight = uniform("loss_weight", stored["logits"].shape, seed)
    official = {}
    for path, gradient in reference.gradients(model, x, weight).items():
        if path == "image":
            official[path] = gradient.transpose(0, 3, 1, 2)
        else:
            official.update(TABLE.to_official(path, gradient))
    expected = reference.official_gradients(name)
    assert set(official) == set(expected)
    for key, (norm, probe) in expected.items():
        gradient = official[key].astype("float64")
        if key in VANISHING:
            assert np.linalg.norm(gradient) < 1e-5 and norm < 1e-5, key
            continue
        direction = uniform(f"{key}.probe", gradient.shape, seed).astype("float64")
        assert abs(np.linalg.norm(gradient) - norm) <= GRADIENT_TOLERANCE * norm, key
        along = GRADIENT_TOLERANCE * norm * np.linalg.norm(direction)
        assert abs((gradient * direction).sum() - probe) <= along, key


def features_of_h():
    """All layers before the head, which has batch statistics."""
    whole = reference.classifier("tiny_h", drop_path_rate=0.0)
    model = keras.Model(whole.input, reference.pyramid(whole).output[-1])
    return model, reference.images("tiny_h")


def one_block(**options):
    model = keras.Sequential([keras.Input((6, 7, 32)), InternImageBlock(groups=2, **options)])
    for variable in model.trainable_variables:
        change = uniform(variable.path.partition("/")[2], variable.shape, 1)
        variable.assign(reference.as_array(variable) + 0.2 * change)
    return model, uniform("image", (2, 6, 7, 32), 1)


@pytest.mark.parametrize(
    "make",
    [
        features_of_h,
        functools.partial(one_block),
        functools.partial(one_block, post_norm=True, layer_scale=1e-5, offset_scale=2.0),
    ],
    ids=["tiny_h", "prenorm", "postnorm"],
)
def test_gradients_of_training_are_the_same(make):
    """Then most activations are recomputed."""
    model, x = make()
    weight = uniform("loss_weight", model(x).shape, 0)
    expected = reference.gradients(model, x, weight)
    found = reference.gradients(model, x, weight, training=True)
    for key, gradient in expected.items():
        assert_close(found[key], gradient, GRADIENT_TOLERANCE)


@pytest.mark.skipif(keras.config.backend() == "jax", reason="JAX traces a function once")
def test_training_recomputes_activations(monkeypatch):
    """Otherwise it keeps twice as much."""
    calls = []
    owner, name = keras.activations, "gelu"
    if keras.config.backend() == "tensorflow":  # where GELU is made of the error function
        owner, name = pytest.importorskip("tensorflow").math, "erf"
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda x: calls.append(x) or function(x))
    x = np.ones((1, 4, 4, 8), "float32")
    model = keras.Sequential([keras.Input(x.shape[1:]), InternImageBlock(groups=2)])
    counts = []
    for training in (False, True):
        calls.clear()
        reference.gradients(model, x, x, training=training)
        counts.append(len(calls))
    assert counts[0] == 2
    assert counts[1] >= 4


@pytest.mark.skipif(keras.config.backend() != "jax", reason="what JAX traced shows it there")
def test_training_recomputes_activations_in_jax():
    import jax

    block = InternImageBlock(groups=2)
    x = np.ones((1, 4, 4, 8), "float32")
    block.build(x.shape)
    values = [v.value for v in block.variables]

    def count(training):
        def loss(values):
            return block.stateless_call(values, [], x, training=training)[0].sum()

        return str(jax.make_jaxpr(jax.grad(loss))(values)).count(" erf ")

    assert count(False) == 2
    assert count(True) == 4


def check_full_size(name):
    stored, x = reference.numbers(name), reference.images(name)
    *stages, logits = stages_and_logits(reference.classifier(name), x)
    for stage, features in enumerate(stages, start=1):
        corner = stored[f"stage{stage}_corner"]
        assert features.shape == tuple(stored[f"stage{stage}_shape"])
        height, width, channels = corner.shape[1:]
        assert_close(features[:, :height, :width, :channels], corner, FULL_TOLERANCE)
        mean = features.mean((1, 2), dtype="float64")
        assert_close(mean, stored[f"stage{stage}_channel_mean"], FULL_TOLERANCE)
    assert_close(logits, stored["logits"], FULL_TOLERANCE)


@pytest.mark.parametrize("variant", ["T", "S", "FlashT", "FlashS"])
def test_full_size(variant):
    check_full_size(model_name(variant))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b", "l", "xl", "h", "g"])
def test_full_size_of_large_variants(variant):
    check_full_size(f"internimage_{variant}")


@pytest.mark.parametrize("name", reference.TINY)
def test_backbone_has_the_classifiers_features(name):
    config = reference.config(name)
    config.pop("classes")
    config.pop("use_clip_projector", None)
    backbone = InternImageBackbone(**config)
    classifier = reference.classifier(name)
    values = {variable.path: variable for variable in classifier.variables}
    for variable in backbone.variables:
        variable.assign(values[variable.path])
    x, stored = reference.images(name), reference.numbers(name)
    maps = keras.Model(backbone.input, backbone.pyramid_outputs).predict(x, verbose=0)
    assert list(maps) == ["P2", "P3", "P4", "P5"]
    for stage, features in enumerate(maps.values(), start=1):
        assert_close(features, stored[f"stage{stage}"], TINY_TOLERANCE)
    assert backbone.output is backbone.pyramid_outputs["P5"]
