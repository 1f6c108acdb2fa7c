"""`Segmenter` with models that end in a softmax: the same as without it."""

import keras
import numpy as np
import photographs
import pytest
from keras import ops
from test_segmenter import LABELS, compare, tiny

from keras_internimage.segmenter import Resizing, Segmenter


class Twice(keras.Model):
    """Probabilities of a model that is not Functional, at twice the size."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.resize = keras.layers.UpSampling2D(2, data_format="channels_last")
        self.build((None, None, None, 3))
        self.input_shape = (None, None, None, 3)
        self.output_shape = model.output_shape

    def call(self, x):
        return self.resize(ops.softmax(self.model(x)))


def with_softmax(model):
    return keras.Model(model.input, keras.layers.Softmax()(model.output))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop": (16, 24), "stride": 8},
        {"resizing": Resizing(32), "scales": (0.5, 1.5), "flip": True},
    ],
)
def test_probabilities_are_taken_as_such(options):
    photograph = photographs.piece("china", 3, 64).crop((0, 0, 53, 39))
    model = tiny(classes=4)
    expected = Segmenter(model, LABELS, **options)
    segmenter = Segmenter(with_softmax(model), LABELS, **options)
    # Of four outputs three have labels: what is left out had its share of the sum.
    compare(segmenter, photograph, expected.probabilities(photograph))


@pytest.mark.any_backend
def test_of_any_model():
    photograph = photographs.piece("china", 3, 64).crop((0, 0, 52, 40))
    model = tiny()
    logits = keras.layers.UpSampling2D(2, data_format="channels_last")(model.output)
    expected = Segmenter(keras.Model(model.input, logits), LABELS).probabilities(photograph)
    compare(Segmenter(Twice(model), LABELS), photograph, expected)


@pytest.mark.any_backend
def test_logits_are_no_probabilities():
    """Also where each of them is from 0 to 1."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)])
    model.set_weights([np.zeros((1, 1, 3, 2)), np.array([0.9, 0.3])])
    found = Segmenter(model, LABELS[:2]).probabilities(photographs.piece("china", 3, 8))
    assert found[0, 0, 0] == pytest.approx(1 / (1 + np.exp(-0.6)))
