"""The table against the published facts, and how a row is chosen from it."""

import dataclasses
import importlib
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_internimage import training
from keras_internimage.models import VARIANTS
from keras_internimage.training import schedules

pytestmark = pytest.mark.any_backend

# Recipe, variant: epochs, warm-up epochs, rate per 512 images, first and last rate, drop path,
# label smoothing, mixup, cutmix, erasing, moving average.
CLASSIFICATION = {
    ("in1k-224", "T"): (300, 20, 5e-4, 5e-7, 5e-6, 0.1, 0.1, 0.8, 1.0, 0.25, 0.9999),
    ("in1k-224", "S"): (300, 20, 5e-4, 5e-7, 5e-6, 0.4, 0.1, 0.8, 1.0, 0.25, 0.9999),
    ("in1k-224", "B"): (300, 20, 5e-4, 5e-7, 5e-6, 0.5, 0.1, 0.8, 1.0, 0.25, 0.9999),
    ("22kto1k-384", "L"): (20, 2, 2e-5, 0, 0, 0.1, 0.3, 0, 0, 0, 0.9999),
    ("22kto1k-384", "XL"): (20, 2, 2e-5, 0, 0, 0.2, 0.3, 0, 0, 0, 0.9999),
    ("in1k-224", "FlashS"): (300, 20, 5e-4, 5e-7, 5e-6, 0.4, 0.1, 0.8, 1.0, 0.25, 0.9999),
    ("in1k-224", "FlashB"): (300, 20, 5e-4, 5e-7, 5e-6, 0.5, 0.1, 0.8, 1.0, 0.25, 0.9999),
    ("22kto1k-384", "FlashL"): (20, 2, 2e-5, 0, 0, 0.1, 0.3, 0, 0, 0, 0.9999),
    ("22kto1k-640", "H"): (20, 2, 2e-5, 0, 0, 0.2, 0.3, 0, 0, 0, 0.9999),
    ("22kto1k-512", "G"): (20, 2, 2e-5, 0, 0, 0.4, 0.3, 0, 0, 0, 0.9999),
    ("inat18-384", "H"): (100, 0, 2e-5, 0, 0, 0.6, 0.3, 0, 0, 0, None),
}
COLUMNS = (
    "epochs",
    "warmup_epochs",
    "learning_rate",
    "warmup_learning_rate",
    "minimum_learning_rate",
    "drop_path_rate",
    "label_smoothing",
    "mixup",
    "cutmix",
    "random_erasing",
    "ema",
)
# Rate, weight decay, layer decay, drop path, images in a step, epochs or iterations, clipping.
DENSE = {
    ("mask-rcnn-1x", "T"): (1e-4, 0.05, 1.0, 0.2, 16, 12, None),
    ("mask-rcnn-1x", "S"): (1e-4, 0.05, 1.0, 0.3, 16, 12, None),
    ("mask-rcnn-3x", "B"): (1e-4, 0.05, 1.0, 0.4, 16, 36, None),
    ("cascade-1x", "L"): (1e-4, 0.05, 0.94, 0.4, 16, 12, None),
    ("cascade-3x", "L"): (2e-4, 0.05, 0.90, 0.4, 64, 36, None),
    ("cascade-3x", "XL"): (2e-4, 0.05, 0.90, 0.6, 64, 36, None),
    ("dino-1x", "T"): (1e-4, 1e-4, 0.9, 0.2, 16, 12, 0.1),
    ("dino-1x", "L"): (1e-4, 1e-4, 0.9, 0.4, 16, 12, 0.1),
    ("dino-objects365", "H"): (1e-4, 1e-4, 0.94, 0.5, None, None, 0.1),
    ("upernet-512", "T"): (6e-5, 0.05, 1.0, 0.2, 16, 160_000, None),
    # B has a lower drop path than InternImage-B.
    ("upernet-512", "FlashB"): (6e-5, 0.05, 1.0, 0.3, 16, 160_000, None),
    ("upernet-640", "FlashL"): (2e-5, 0.05, 0.94, 0.4, 16, 160_000, 0.1),
    ("mask-rcnn-3x", "FlashB"): (1e-4, 0.05, 1.0, 0.3, 16, 36, None),
    ("cascade-3x", "FlashL"): (2e-4, 0.05, 0.90, 0.4, 64, 36, None),
    ("upernet-640", "XL"): (2e-5, 0.05, 0.94, 0.4, 16, 160_000, 0.1),
    ("upernet-896", "G"): (2e-5, 0.05, 0.95, 0.5, 16, 160_000, 0.1),
    ("mask2former-896", "H"): (1e-5, 0.05, 0.95, 0.5, 16, 80_000, 0.1),
}


@pytest.mark.parametrize("key", CLASSIFICATION, ids="-".join)
def test_classification_rows_are_the_published_ones(key):
    row = training.recipe(*key)
    assert tuple(getattr(row, column) for column in COLUMNS) == CLASSIFICATION[key]
    assert row.official and row.variants and row.reference_batch_size == 512
    assert (row.weight_decay, row.clip_norm) == (0.05, 5.0)
    assert (row.beta_1, row.beta_2, row.epsilon, row.schedule) == (0.9, 0.999, 1e-8, "cosine")
    assert row.rand_augment == training.RandAugment(2, 9, 0.5, 0.5) and row.color_jitter == 0.4
    assert (row.mix_probability, row.switch_probability) == (1.0, 0.5)
    assert row.batch_size == (4096 if key[0] == "in1k-224" else 512)
    assert row.resolution == int(key[0].rsplit("-", 1)[1])
    # The published weights were trained without layer-wise decay; the other files have 0.9.
    assert row.layer_decay == 1.0
    assert row.optional_layer_decay == (0.9 if "22kto1k" in key[0] else None)


@pytest.mark.parametrize("key", DENSE, ids="-".join)
def test_dense_rows_are_the_published_ones(key):
    row = training.recipe(*key)
    length = row.epochs or row.iterations
    assert DENSE[key] == (
        row.learning_rate,
        row.weight_decay,
        row.layer_decay,
        row.drop_path_rate,
        row.batch_size,
        length,
        row.clip_norm,
    )
    assert row.layer_decay_scheme == "dense"
    if row.iterations:
        assert (row.schedule, row.warmup_iterations) == ("poly", 1500)
        assert row.warmup_learning_rate == pytest.approx(1e-6 * row.learning_rate)
    else:
        assert (row.schedule, row.warmup_iterations) == ("step", 500)
        milestones = {36: (27, 33), 12: (11,) if "dino" in row.name else (8, 11), None: ()}
        assert row.milestones == milestones[row.epochs]
    assert (row.ema is not None) == (row.name in ("cascade-3x", "dino-objects365"))
    assert row.ema_ramp == (2000 if row.name == "cascade-3x" else None)


def test_every_row_is_complete_and_six_are_ours():
    tested = {name for name, _ in (*CLASSIFICATION, *DENSE)}
    ours = [name for name, row in training.RECIPES.items() if not row.official]
    kinds = ("", "-upernet", "-detection")
    assert ours == [f"{name}{kind}" for kind in kinds for name in ("finetune", "scratch")]
    assert set(training.RECIPES) == tested | set(ours)
    for name, row in training.RECIPES.items():
        for variant in row.variants:
            assert schedules.schedule(training.recipe(name, variant), 1000).steps == 1000
    own = training.RECIPES["finetune"]
    assert own.resolution == {name: VARIANTS[name].resolution for name in VARIANTS}
    assert own.layer_decay == 0.9 and own.label_smoothing == 0.1 and own.ema is None


def test_random_weights_have_a_recipe_of_their_own():
    """Nothing was learnt before: all blocks learn alike, faster and for longer."""
    for variant in VARIANTS:
        scratch, finetune = (training.recipe(name, variant) for name in ("scratch", "finetune"))
        assert scratch.layer_decay == 1.0 > finetune.layer_decay
        assert scratch.epochs >= 10 * finetune.epochs
        assert scratch.learning_rate > finetune.learning_rate
        assert scratch.resolution == finetune.resolution
        assert scratch.ema is None and scratch.layer_decay_scheme == "classification"


def test_segmentation_has_namesakes_of_both():
    """Crops as in the official recipes of UperNet, their schedule, and their batch of reference."""
    for name, official in (("T", "upernet-512"), ("XL", "upernet-640"), ("H", "upernet-896")):
        finetune, scratch, row = (
            training.recipe(key, name) for key in ("finetune-upernet", "scratch-upernet", official)
        )
        for own in (finetune, scratch):
            same = ("resolution", "schedule", "reference_batch_size", "layer_decay_scheme")
            assert [getattr(own, key) for key in same] == [getattr(row, key) for key in same]
        assert scratch.layer_decay == 1.0 > finetune.layer_decay
        assert scratch.epochs > finetune.epochs and scratch.learning_rate > finetune.learning_rate


RECIPES_ALONE = """
import importlib.util, pathlib, sys, types
parent = types.ModuleType("keras_internimage")   # its own __init__ is not what is tested
parent.__path__ = [str(pathlib.Path(sys.argv[1]))]
sys.modules["keras_internimage"] = parent
from keras_internimage import training
from keras_internimage.training import recipes
assert training.recipe("scratch", "T").epochs == 100 and list(training.RECIPES)
assert dir(training) == sorted(training.__all__)
assert not {"keras", "numpy", "PIL"} & set(sys.modules), "recipes are plain data"
"""


def test_reading_recipes_imports_no_keras():
    package = pathlib.Path(training.__file__).parents[1]
    subprocess.run([sys.executable, "-c", RECIPES_ALONE, str(package)], check=True, timeout=60)


def test_public_names_are_what_they_say():
    # Also after every module was imported: a module of a public name would take its place.
    for file in pathlib.Path(training.__file__).parent.glob("[a-z]*.py"):
        assert file.stem not in training.__all__
    assert dir(training) == sorted(training.__all__) == sorted(training._MODULE_OF)
    for name in training.__all__:
        value = training.__getattr__(name)
        assert value is getattr(training, name)
        module = importlib.import_module(f"{training.__name__}.{training._MODULE_OF[name]}")
        assert value is getattr(module, name)
        assert getattr(value, "__module__", module.__name__) == module.__name__
    with pytest.raises(AttributeError, match="has no attribute 'augment'"):
        _ = training.augment


def test_what_cannot_be_chosen():
    with pytest.raises(ValueError, match="`name` must be one of finetune.*Received: name='none'"):
        training.recipe("none")
    with pytest.raises(ValueError, match="`variant` must be one of T, S, B.*variant='L'"):
        training.recipe("in1k-224", "L")
    with pytest.raises(ValueError, match="drop_path_rate differ.*variant=None"):
        training.recipe("in1k-224")
    assert training.recipe("22kto1k-640").drop_path_rate == 0.2
    assert training.recipe("finetune", "T", epochs=3).epochs == 3
    with pytest.raises(TypeError, match="epoch"):
        training.recipe("finetune", "T", epoch=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        training.recipe("finetune", "T").epochs = 3
    for function in (training.loss, training.augmentation):
        with pytest.raises(ValueError, match="must be for one variant"):
            function(training.RECIPES["finetune"])
        with pytest.raises(ValueError, match="must be a Recipe"):
            function("finetune")


def rates(schedule, steps):
    return np.array([float(keras.ops.convert_to_numpy(schedule(t))) for t in steps])


def test_cosine_is_the_official_one():
    """timm's: linear to the rate; then the cosine of the whole run, which started at step 0."""
    row = training.recipe("in1k-224", "T")
    schedule = schedules.schedule(row, 3000, scale=4096 / 512)
    assert schedule.warmup_steps == 200
    t = np.array([0, 1, 100, 199, 200, 1500, 2999, 3000, 4000])
    first, highest, last = 8 * 5e-7, 8 * 5e-4, 8 * 5e-6
    expected = np.where(
        t < 200,
        first + (highest - first) * t / 200,
        last + (highest - last) * (1 + np.cos(np.pi * np.minimum(t, 3000) / 3000)) / 2,
    )
    np.testing.assert_allclose(rates(schedule, t), expected, rtol=1e-5)


def test_steps_and_polynomial_are_those_of_the_dense_recipes():
    row = training.recipe("mask-rcnn-1x", "T")
    schedule = schedules.schedule(row, 12_000)
    t = np.array([0, 250, 500, 7999, 8000, 10_999, 11_000])
    expected = 1e-4 * np.array([1e-3, 0.001 + 0.999 / 2, 1, 1, 0.1, 0.1, 0.01])
    np.testing.assert_allclose(rates(schedule, t), expected, rtol=1e-5)
    schedule = schedules.schedule(training.recipe("upernet-512", "T"), 160_000)
    t = np.array([750, 1500, 80_000, 160_000])
    expected = 6e-5 * np.array([(1 - 750 / 160_000) * (1e-6 + (1 - 1e-6) / 2), 1 - 1500 / 160_000])
    np.testing.assert_allclose(rates(schedule, t), [*expected, 3e-5, 0], rtol=1e-5)
    # Short trainings do not spend themselves warming up.
    assert schedules.schedule(training.recipe("upernet-512", "T"), 1000).warmup_steps == 100


@pytest.mark.parametrize("minimum", [0.0, 3e-6])
@pytest.mark.parametrize("kind", ["cosine", "poly"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 49, 77, 1000, 12_345, 1_000_003])
def test_the_end_is_exactly_the_lowest_rate(kind, steps, minimum):
    """Without a rounding error such as 3.8e-18 instead of 0, on the way down all the same."""
    arguments = {"kind": kind, "minimum_learning_rate": minimum, "warmup_steps": steps // 3}
    schedule = training.WarmupSchedule(2e-3, steps, **arguments)
    before, *end = rates(schedule, (steps - 1, steps, steps + 1, 2 * steps))
    assert end == [np.float32(minimum)] * 3
    assert minimum < before <= np.float32(2e-3)
    shared = training.WarmupSchedule(2e-3, steps, accumulation=4, **arguments)
    assert rates(shared, (4 * steps - 1, 4 * steps)).tolist() == [before, np.float32(minimum)]


def test_a_schedule_counts_updates_and_comes_back_from_its_config():
    schedule = schedules.schedule(training.recipe("finetune", "T"), 50, accumulation=4)
    every = rates(schedule, range(200))
    np.testing.assert_array_equal(every.reshape(50, 4), every[::4, None].repeat(4, 1))
    same = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    np.testing.assert_array_equal(rates(same, range(0, 200, 9)), every[::9])
    for arguments, message in (
        ({"kind": "linear"}, "`kind` must be one of"),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"warmup_steps": 11}, "warmup_steps=11"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"accumulation": 0}, "`accumulation` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            training.WarmupSchedule(**{"learning_rate": 1.0, "steps": 10, **arguments})


@pytest.mark.parametrize("from_logits", [False, True])
def test_the_loss_smooths_the_labels(from_logits):
    row = training.recipe("22kto1k-384", "L")
    labels = np.array([[1, 0, 0], [0.25, 0.75, 0]], "float32")
    logits = np.array([[2.0, 0.5, -1.0], [0.0, 0.3, 0.1]], "float32")
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -((0.7 * labels + 0.3 / 3) * np.log(p)).sum(1).mean()
    value = training.loss(row, from_logits)(labels, logits if from_logits else p)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(value), expected, rtol=1e-5)
