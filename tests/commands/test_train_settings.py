"""What the command chooses where nothing is given."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from keras_internimage.commands.train import cli, device, settings, tasks
from keras_internimage.commands.train.device import Device
from keras_internimage.variants import VARIANTS

pytestmark = pytest.mark.any_backend
GIB = 1 << 30


def choose(arguments, found, images=100_000):
    options = cli.parser().parse_args(["data", *arguments.split()])
    return settings.choose(options, "jax", images, found)


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        (Device("cpu", "CPU"), "float32"),
        (Device("mps", "Apple GPU"), "float32"),
        (Device("gpu", "new", 80 * GIB, True), "mixed_bfloat16"),
        (Device("gpu", "old", 16 * GIB, False), "mixed_float16"),
        (Device("tpu", "TPU", None, True), "mixed_bfloat16"),
    ],
)
def test_precision(found, precision):
    assert choose("", found)[0].precision == precision
    assert choose("--precision float32", found)[0].precision == "float32"


def test_batch_size_follows_memory_network_and_resolution():
    def of(arguments, gib=16, images=100_000):
        return choose(arguments, Device("gpu", "new", gib * GIB, True), images)[0].batch_size

    assert of("") == device.LARGEST_BATCH
    assert of("--variant B --resolution 512", 24) < of("--variant B", 24)
    assert of("--variant L", 24) < of("--variant L", 80)
    assert of("--variant G", 24) == 1  # what does not fit is tried one by one
    assert of("--variant T --precision float32", 8) < of("--variant T", 8)
    assert of("", images=11) == 8 and of("", images=1) == 1
    assert of("--batch-size 24", images=3) == 24
    for variant in VARIANTS:
        size = of(f"--variant {variant}", 40)
        assert size & (size - 1) == 0
    assert choose("", Device("cpu", "CPU"))[0].batch_size == device.CPU_BATCH
    unknown, why = choose("", Device("gpu", "new", None, True))
    assert unknown.batch_size <= of("", 8) and "which is a guess" in why["batch_size"]


@pytest.mark.parametrize(("variant", "millions"), [("T", 30), ("B", 97), ("XL", 335), ("G", 3076)])
def test_number_of_parameters_is_estimated(variant, millions):
    config = VARIANTS[variant].config()
    estimate = device.parameters(config["channels"], config["depths"], config["groups"])
    assert 0.8 < estimate / (millions * 1e6) < 1.1


@pytest.mark.parametrize(("variant", "millions"), [("T", 49), ("B", 115), ("L", 277), ("XL", 387)])
def test_number_of_a_detectors_parameters_is_estimated(variant, millions):
    config = VARIANTS[variant].config()
    sizes = (config["channels"], config["depths"], config["groups"])
    heads = tasks.DETECTION.box_heads(variant)
    estimate = device.parameters(*sizes, decoder=256, box_heads=heads)
    assert 0.85 < estimate / (millions * 1e6) < 1.1


@pytest.mark.parametrize(
    ("task", "variant", "name"),
    [
        (tasks.CLASSIFICATION, "FlashT", "FlashInternImage-T"),
        (tasks.SEGMENTATION, settings.CUSTOM, "UperNet on InternImage"),
        (tasks.DETECTION, "FlashL", "Cascade Mask R-CNN on FlashInternImage-L"),
        (tasks.DETECTION, settings.CUSTOM, "Mask R-CNN on InternImage"),
    ],
)
def test_what_a_network_is_called(task, variant, name):
    assert task.network(variant) == name


def test_learning_rate_is_the_one_that_is_reached():
    chosen, why = choose("--batch-size 16 --accumulation 4", Device("cpu", "CPU"))
    row = settings.recipe_of("finetune", "T")
    assert chosen.learning_rate == pytest.approx(row.learning_rate * 64 / 512)
    assert "learning_rate" in why
    given, why = choose("--learning-rate 1e-4 --batch-size 16", Device("cpu", "CPU"))
    changed = given.recipe_row()
    assert changed.learning_rate * 16 / changed.reference_batch_size == pytest.approx(1e-4)
    assert "learning_rate" not in why


@pytest.mark.parametrize("variant", VARIANTS)
def test_defaults_of_each_variant(variant):
    chosen, _ = choose(f"--variant {variant}", Device("cpu", "CPU"))
    row = settings.recipe_of("finetune", variant)
    assert (chosen.weights, chosen.resolution) == ("imagenet", VARIANTS[variant].resolution)
    assert (chosen.epochs, chosen.drop_path) == (row.epochs, row.drop_path_rate)
    assert chosen.network() == VARIANTS[variant].config()
    again = settings.from_json(json.loads(json.dumps(vars(chosen))))
    assert again == chosen


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        ("", "finetune"),
        ("--weights none", "scratch"),
        ("--weights none --recipe finetune", "finetune"),
        ("--channels 16 --depths 1 1 2 1 --groups 1 2 4 8", "scratch"),
        ("--channels 16 --depths 1 1 2 1 --groups 1 2 4 8 --weights some.keras", "finetune"),
    ],
)
def test_random_weights_have_a_recipe_of_their_own(arguments, recipe):
    chosen, why = choose(arguments, Device("cpu", "CPU"))
    assert chosen.recipe == recipe
    assert chosen.epochs == settings.recipe_of(recipe, "T").epochs
    if "--recipe" not in arguments:
        assert ("random weights" in why["recipe"]) == (recipe == "scratch")


def test_own_network():
    chosen, why = choose(
        "--channels 16 --depths 1 1 2 1 --groups 1 2 4 8 --ema 0.9", Device("cpu", "CPU")
    )
    assert chosen.network() == {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}
    assert chosen.weights == "none" and chosen.recipe_row().ema == 0.9
    assert "weights" in why and "variant" not in why


@pytest.mark.parametrize("said", [None, "tensorflow"], ids=["nothing said", "keras.json"])
def test_an_installed_backend_is_taken_where_keras_own_is_not(tmp_path, said):
    """As for who installed `keras-internimage[torch]`, and nothing else."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    if said:
        (tmp_path / "keras.json").write_text(json.dumps({"backend": said}))
    program = (
        "import sys; sys.modules.update(tensorflow=None, jax=None)\n"
        "import keras_internimage, keras\n"
        "print(keras.config.backend())"
    )
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["torch"]
