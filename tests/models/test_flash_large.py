"""FlashInternImage B and L, of which no numbers are stored, beside a formulation of their own."""

import json

import pytest
from deterministic import MODELS, image, model_config, model_weights, official_weight
from models import reference
from models.test_parity import FULL_TOLERANCE, assert_close, stages_and_logits

import keras_internimage
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.variants import model_name

pytest.importorskip("torch")
from models.flash_formulation import Formulation  # noqa: E402


def official_config(name):
    return json.loads((MODELS / f"{name}.json").read_text())


@pytest.mark.any_backend
@pytest.mark.parametrize("name", reference.TINY_FLASH)
def test_the_formulation_gives_the_official_numbers(name):
    stored = reference.numbers(name)
    seed, shapes = int(stored["seed"]), reference.official_shapes(name)
    tensors = {
        key.removeprefix("backbone."): official_weight(key, shape, seed)
        for key, shape in shapes.items()
    }
    formulation = Formulation(tensors, official_config(name))
    *maps, logits = formulation(reference.images(name).transpose(0, 3, 1, 2).copy())
    for stage, features in enumerate(maps, start=1):
        assert_close(features.numpy(), stored[f"stage{stage}"], 1e-6)
    assert_close(logits.numpy(), stored["logits"], 1e-6)
    assert not formulation.unread


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["FlashT", "FlashB", "FlashL"])
def test_full_size_beside_the_formulation(variant):
    name = f"flash_{model_name(variant.removeprefix('Flash'))}"
    tensors = model_weights(name)
    x = image(224, 224, 1, 1)
    formulation = Formulation(tensors, official_config(name))
    *maps, logits = formulation(x)
    assert not formulation.unread
    options = {**model_config(name), "classes": 1000, "classifier_activation": None}
    options.pop("num_classes")
    model = keras_internimage.InternImage(**options, input_shape=(224, 224, 3))
    for variable in model.variables:
        names = TABLE.entry(variable.path).official
        values = {key: tensors[key] for key in names}
        variable.assign(TABLE.to_keras(variable.path, values))
    *found, scores = stages_and_logits(model, x.transpose(0, 2, 3, 1))
    for own, features in zip(found, maps, strict=True):
        assert_close(own, features.numpy(), FULL_TOLERANCE)
    assert_close(scores, logits.numpy(), FULL_TOLERANCE)
