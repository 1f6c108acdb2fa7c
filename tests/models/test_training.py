"""Real `fit` steps: compiled and not, in every precision, offsets included."""

import keras
import numpy as np
import pytest
from models.reference import as_array
from small_models import TINY

from keras_internimage import InternImage, InternImageBackbone, layers

BACKEND = keras.config.backend()
OPTIONS = {**TINY, "classes": 3}


def data(samples=8, side=32):
    """Images whose class is the stripe that is bright."""
    generator = np.random.default_rng(0)
    y = np.arange(samples) % 3
    x = generator.normal(0, 0.1, (samples, side, side, 3)).astype("float32")
    for i, label in enumerate(y):
        x[i, :, label * side // 3 : (label + 1) * side // 3] += 1
    return x, y


def compiled(model, **kwargs):
    model.compile(
        keras.optimizers.AdamW(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **kwargs,
    )
    return model


def check_fit(model, **kwargs):
    """Two epochs change every trainable weight and leave all numbers finite."""
    x, y = data()
    before = {w.path: as_array(w).copy() for w in model.trainable_weights}
    history = compiled(model, **kwargs).fit(x, y, batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = {path: np.abs(as_array(w) - before[path]).max() for path, w in paths(model)}
    assert np.isfinite(list(moved.values())).all()
    # The gradient of the keys' bias is zero by the symmetry of softmax.
    still = [p for p, change in moved.items() if change == 0 and "norm_k/beta" not in p]
    assert not still
    return history


def paths(model):
    return [(w.path, w) for w in model.trainable_weights]


def make(**kwargs):
    return InternImage(
        **{**OPTIONS, "layer_scale": 0.1, "post_norm": True, "drop_path_rate": 0.2, **kwargs},
        input_shape=(32, 32, 3),
    )


def test_fit_learns():
    x, y = data(24)
    model = compiled(InternImage(**OPTIONS, input_shape=(32, 32, 3)))
    model.fit(x, y, batch_size=8, epochs=12, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] >= 0.9


def make_one_block(dtype=None):
    """For what takes long to compile: stem, block and classifier only."""
    image = keras.Input((32, 32, 3))
    x = layers.InternImageStem(8, dtype=dtype)(image)
    x = layers.InternImageBlock(
        2,
        layer_scale=0.1,
        post_norm=True,
        center_feature_scale=True,
        drop_path_rate=0.2,
        dtype=dtype,
    )(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(image, keras.layers.Dense(3, "softmax", dtype=dtype)(x))


def test_fit_uncompiled():
    # JAX then compiles every operation singly.
    check_fit(make_one_block() if BACKEND == "jax" else make(), jit_compile=False)


@pytest.mark.skipif(BACKEND == "torch", reason="takes minutes: see the next test")
def test_fit_compiled():
    check_fit(make_one_block() if BACKEND == "tensorflow" else make(), jit_compile=True)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="the others: see the test above")
def test_fit_compiled_by_torch():
    check_fit(make_one_block(), jit_compile=True)


BLOCKS = [f"stage{stage}_block1" for stage in (1, 2, 3, 4)]


def make_whole(dtype):
    return make(dtype=dtype, drop_path_rate=0.5, layer_scale=1.0)


def make_two_blocks(dtype):
    image = keras.Input((32, 32, 3))
    x = layers.InternImageStem(8, dtype=dtype)(image)
    for name in BLOCKS[:2]:
        x = layers.InternImageBlock(
            1, post_norm=True, drop_path_rate=0.5, dtype=dtype, name=name, layer_scale=1.0
        )(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(image, keras.layers.Dense(3, "softmax", dtype=dtype)(x))


@pytest.mark.parametrize(
    "policy, tolerance, mode, names, make",
    [
        ("float32", 1e-5, "full", BLOCKS, make_whole),
        ("mixed_bfloat16", 1e-2, "list_of_layers", BLOCKS[1:2], make_two_blocks),
    ],
)
def test_blocks_are_computed_anew_in_a_remat_scope(
    policy, tolerance, mode, names, make, monkeypatch
):
    """The same training, stochastic depth included, while blocks run again for their gradients."""
    runs, wholes = [], []
    branches, whole = layers.InternImageBlock._branches, layers.sublayers.rematerialize

    def spy(block, *arguments):
        runs.append(block.name)
        return branches(block, *arguments)

    def spy_whole(block, *arguments):
        wholes.append(block.name)
        return whole(block, *arguments)

    def train(mode, **options):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode, **options):
            model = make(policy)
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        runs.clear()
        losses = [float(model.train_on_batch(*data())) for _ in range(2)]
        return losses, [runs.count(name) for name in BLOCKS]

    monkeypatch.setattr(layers.InternImageBlock, "_branches", spy)
    monkeypatch.setattr(
        layers.sublayers,
        "rematerialize",
        lambda block, *rest: wholes.append(block.name) or whole(block, *rest),
    )
    expected, before = train(None)
    losses, after = train(mode, layer_names=names)
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    assert set(wholes) == set(names)
    if BACKEND != "jax":  # which traces a function once, and differentiates what came of it
        more = [name for name, a, b in zip(BLOCKS, after, before, strict=True) if a > b]
        assert more == names


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fit_in_mixed_precision(policy):
    model = make_one_block(policy)
    assert model.layers[-1].compute_dtype == policy.removeprefix("mixed_")
    x, y = data()
    # float16 starts with a loss scale that overflows and skips steps until it has come down.
    compiled(model).fit(x, y, batch_size=4, epochs=2 if "bf" in policy else 8, verbose=0)
    assert all(np.isfinite(as_array(w)).all() for w in model.weights)
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {"float32"}
    offsets = [as_array(w) for path, w in paths(model) if "offset_mask/kernel" in path]
    assert all(np.abs(w).max() > 0 for w in offsets)


def test_fit_the_large_variants_parts():
    """Attention pooling, both norms, centre feature scale, norms between blocks, 5x5 windows."""
    model = InternImage(
        **OPTIONS,
        input_shape=(32, 32, 3),
        res_post_norm=True,
        dw_kernel_size=5,
        center_feature_scale=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=(0,),
        use_clip_projector=True,
    )
    check_fit(model)


def test_half_precision_predicts_nearly_the_same():
    x, _ = data(4)
    model = make_one_block()
    reference = model.predict(x, verbose=0)
    for policy, tolerance in (("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2)):
        half = make_one_block(policy)
        half.set_weights(model.get_weights())
        difference = np.abs(half.predict(x, verbose=0).astype("float32") - reference).max()
        assert 0 < difference < tolerance


def test_fine_tuning_on_a_frozen_backbone():
    config = {k: v for k, v in TINY.items() if k != "classes"}
    backbone = InternImageBackbone(**config, image_shape=(32, 32, 3))
    backbone.trainable = False
    features = keras.layers.GlobalAveragePooling2D()(backbone.output)
    model = keras.Model(backbone.input, keras.layers.Dense(3, "softmax")(features))
    before = [as_array(w).copy() for w in backbone.weights]
    x, y = data()
    compiled(model).fit(x, y, batch_size=4, epochs=1, verbose=0)
    assert len(model.trainable_weights) == 2
    for old, new in zip(before, backbone.weights, strict=True):
        np.testing.assert_array_equal(old, as_array(new))
