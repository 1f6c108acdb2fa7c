"""Which factor each variable gets, which has no weight decay, and what is frozen."""

import numpy as np
import pytest
from training import trained_models as models

from keras_internimage import training
from keras_internimage.models import VARIANTS
from keras_internimage.training import layerwise


def factors(model, decay=0.5, scheme="classification"):
    """The factor of each layer, by its name; all its variables have the same."""
    table = training.learning_rate_multipliers(model, decay, scheme)
    assert set(table) == {variable.path for variable in model.trainable_variables}
    found = {}
    for path, factor in table.items():
        assert found.setdefault(path.split("/")[0], factor) == factor, path
    return found


# Blocks: one, one, two, one; the last has the factor 1, or 0.5 in the dense scheme.
@pytest.mark.any_backend
@pytest.mark.parametrize("scheme, shift, stem", [("classification", 0, 4), ("dense", 1, 6)])
def test_factors_of_each_layer(scheme, shift, stem):
    found = factors(models.classifier(), 0.5, scheme)
    distances = {
        "stem": stem,
        "stage1_block1": 4 + shift,
        "stage1_norm": 3 + shift,
        "stage1_downsample": 3 + shift,
        "stage2_block1": 3 + shift,
        "stage2_norm": 2 + shift,
        "stage2_downsample": 2 + shift,
        "stage3_block1": 2 + shift,
        "stage3_block2": 1 + shift,
        "stage3_norm": 0 + shift,
        "stage3_downsample": 0 + shift,
        "stage4_block1": 0 + shift,
    }
    last = dict.fromkeys(("stage4_norm", "head_conv", "head_norm", "predictions"), 1.0)
    assert found == {**{name: 0.5**n for name, n in distances.items()}, **last}


@pytest.mark.any_backend
def test_norms_after_blocks_of_the_third_stage():
    arguments = {"level2_post_norm": True, "level2_post_norm_block_ids": (1,)}
    model = models.classifier(**arguments)
    assert factors(model)["stage3_post_norm1"] == 1.0
    # The dense program takes the first such norm for the first block of the stage.
    dense = factors(model, scheme="dense")
    assert dense["stage3_post_norm1"] == dense["stage3_block1"] == 0.5**3


@pytest.mark.any_backend
def test_exponents_of_the_published_depths():
    """num_layers of the dense configuration files is the number of blocks, T 30 to H 50."""
    blocks = {"T": 30, "S": 33, "B": 33, "L": 37, "XL": 39, "H": 50}
    assert {name: sum(VARIANTS[name].config()["depths"]) for name in blocks} == blocks


@pytest.mark.any_backend
def test_everything_outside_the_backbone_has_factor_one():
    model = models.nested()
    inner = set(map(id, model.layers[1].trainable_variables))
    table = training.learning_rate_multipliers(model, 0.5)
    outer = [v.path for v in model.trainable_variables if id(v) not in inner]
    # Layers of the user's own that are called as some of the backbone's.
    assert sorted(outer) == ["stage1_norm/beta", "stage1_norm/gamma", "stem/bias", "stem/kernel"]
    assert table["stem/kernel"] == 1.0 and table["stem/conv1/kernel"] == 0.5**4
    assert table["stage1_norm/gamma"] == 0.5**3 and table["stage1_norm/gamma#2"] == 1.0
    assert len(table) == len(model.trainable_variables)


@pytest.mark.any_backend
def test_paths_with_a_prefix():
    import keras

    class Late(keras.Model):
        def build(self, shape):
            self.inner = models.nested()
            self.built = True

        def call(self, x):
            return self.inner(x)

    model = Late(name="late")
    model(np.zeros((1, 32, 32, 3), "float32"))
    table = training.learning_rate_multipliers(model, 0.5)
    assert table["late/stem/conv1/kernel"] == 0.5**4
    assert table["late/stem/kernel"] == 1.0
    assert table["late/stage4_block1/mlp_fc1/kernel"] == 1.0


@pytest.mark.any_backend
def test_weight_decay_leaves_out_vectors_and_biases():
    model = models.classifier(layer_scale=1e-5, center_feature_scale=True)
    excluded = set(training.without_weight_decay(model))
    for variable in model.trainable_variables:
        assert (variable.path in excluded) == (len(variable.shape) == 1), variable.path
    kinds = {path.rsplit("/", 1)[1] for path in excluded}
    assert {"bias", "beta", "gamma", "gamma1", "gamma2"} <= kinds
    import keras

    layer = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")
    user = keras.Sequential([keras.Input((4, 5)), layer])
    assert training.without_weight_decay(user) == [layer.bias.path]


@pytest.mark.any_backend
def test_what_has_no_factors():
    import keras

    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="needs an InternImage.*decay=0.9"):
        training.learning_rate_multipliers(plain, 0.9)
    assert set(training.learning_rate_multipliers(plain, 1.0).values()) == {1.0}
    with pytest.raises(ValueError, match="`decay` must be above 0.*decay=0"):
        training.learning_rate_multipliers(models.classifier(), 0)
    with pytest.raises(ValueError, match="`scheme` must be one of.*scheme='x'"):
        training.learning_rate_multipliers(models.classifier(), 0.5, "x")
    with pytest.raises(ValueError, match="must be built"):
        training.learning_rate_multipliers(keras.Sequential([keras.layers.Dense(2)]), 1.0)


def trainable(model):
    return {variable.path.split("/")[0] for variable in model.trainable_variables}


@pytest.mark.any_backend
@pytest.mark.parametrize("build", [models.classifier, models.nested])
def test_freeze_takes_the_stem_and_whole_stages(build):
    model = build()
    everything = len(model.trainable_variables)
    network = layerwise.networks(model)[0]
    names = [layer.name for layer in network.layers if layer.weights]
    counts = []
    for stages in (0, 1, 2, 3, 4):
        assert training.freeze(model, stages) is model
        counts.append(len(model.trainable_variables))
        for name in names:
            layer = network.get_layer(name)
            frozen = stages > 0 if name == "stem" else False
            if name.startswith("stage"):
                frozen = int(name[5]) <= stages
            assert bool(layer.trainable_variables) != frozen, (stages, name)
    assert counts[0] == everything and sorted(set(counts), reverse=True) == counts
    heads = ["head_conv", "head_norm", "predictions"] if build is models.classifier else []
    assert counts[-1] == sum(
        len(network.get_layer(name).trainable_variables) for name in heads
    ) or (build is models.nested and counts[-1] == 4)
    training.freeze(model, 0)
    assert len(model.trainable_variables) == everything


@pytest.mark.any_backend
def test_what_cannot_be_frozen():
    import keras

    for stages in (-1, 5, 1.0, True, None):
        with pytest.raises(ValueError, match="`stages` must be an int from 0 to 4. Received"):
            training.freeze(models.classifier(), stages)
    with pytest.raises(ValueError, match="must be an InternImage, or contain one"):
        training.freeze(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), 1)


def test_a_frozen_stage_stands_still_while_the_rest_learns():
    import keras

    model = training.freeze(models.classifier(), 2)
    row = training.recipe("finetune", "T", learning_rate=0.05)
    model.compile(training.optimizer(model, row, steps=4, batch_size=8), training.loss(row))
    before = {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.variables}
    images, labels = models.colours(8)
    model.fit(images / 255.0 - 0.5, labels, batch_size=8, epochs=2, verbose=0)
    learnt = {
        v.path.split("/")[0]
        for v in model.trainable_variables
        if not np.array_equal(before[v.path], keras.ops.convert_to_numpy(v))
    }
    assert learnt == {
        "stage3_block1", "stage3_block2", "stage3_norm", "stage3_downsample",
        "stage4_block1", "stage4_norm", "head_conv", "head_norm", "predictions",
    }  # fmt: skip
    for layer in model.layers:
        if layer.name.startswith(("stem", "stage1", "stage2")):
            for v in layer.variables:
                np.testing.assert_array_equal(before[v.path], keras.ops.convert_to_numpy(v))
