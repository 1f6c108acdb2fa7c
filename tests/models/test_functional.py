"""What the models' own class adds to Keras' Functional models."""

import keras
import numpy as np
import pytest
from small_models import TINY, classifier, upernet

from keras_internimage.models.functional import FunctionalModel

IMAGES = np.zeros((2, 32, 32, 3), "float32")


@pytest.mark.parametrize(
    ("made", "labels"),
    [
        (lambda: classifier(TINY, classes=3, classifier_activation=None), np.zeros(2)),
        (lambda: upernet(image_shape=(32, 32, 3)), np.zeros((2, 32, 32))),
    ],
    ids=["classifier", "segmenter"],
)
def test_a_step_is_traced_once(made, labels, monkeypatch):
    """TensorFlow traces it twice where variables of optimizer or metrics are made meanwhile."""
    model = made()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    tested = counted(model, "test_step", monkeypatch)
    trained = counted(model, "train_step", monkeypatch)
    found = model.train_on_batch(IMAGES, labels, return_dict=True)
    assert found.keys() == {"loss", "accuracy"} and 0 <= found["accuracy"] <= 1
    model.compile("adam", loss, metrics=["accuracy"])
    assert model.test_on_batch(IMAGES, labels, return_dict=True).keys() == found.keys()
    assert (len(trained), len(tested)) == (1, 1)


def counted(model, name, monkeypatch):
    """A list that grows with each call of the method."""
    calls, own = [], getattr(model, name)
    monkeypatch.setattr(model, name, lambda *args: (calls.append(name), own(*args))[1])
    return calls


def test_frozen_weights_have_no_optimizer_variables():
    model = classifier(TINY, classes=3, classifier_activation=None)
    for layer in model.layers[:-1]:
        layer.trainable = False
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(IMAGES, np.zeros(2))
    momenta = [v for v in model.optimizer.variables if "momentum" in v.path]
    assert len(momenta) == len(model.layers[-1].trainable_variables) > 0


def test_the_class_is_kept(tmp_path):
    model = classifier(TINY)
    model.save(tmp_path / "m.keras")
    assert type(keras.models.load_model(tmp_path / "m.keras")) is FunctionalModel
    assert type(keras.models.clone_model(model)) is FunctionalModel
