"""UperNet: the official numbers, any size of image, any backbone, and what is refused."""

import keras
import numpy as np
import pytest
import small_models
from models import reference

import keras_internimage
from keras_internimage import UperNet
from keras_internimage.checkpoints.names.upernet import TABLE

TOLERANCE = 5e-5
# Parameters with the auxiliary head; by these the sizes of all published files are explained.
PARAMETERS = {
    "T": 59_077_148,
    "S": 79_866_956,
    "B": 128_387_852,
    "L": 255_600_606,
    "XL": 367_733_000,
    "H": 1_120_338_396,
}


def shapes(model):
    return {key: tuple(output.shape) for key, output in model.output.items()}


def test_full_size():
    name = "upernet_internimage_t"
    stored, x = reference.numbers(name), reference.images(name)
    model = keras_internimage.UperNetT(
        input_shape=x.shape[1:], auxiliary=True, output_size="quarter", drop_rate=0
    )
    found = reference.fill(model, name, TABLE).predict(x, verbose=0)
    assert sorted(found) == ["auxiliary", "logits"]
    for key, official in (("logits", "logits"), ("auxiliary", "aux_logits")):
        expected = stored[official].transpose(0, 2, 3, 1)
        largest = max(1, abs(expected).max())
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=TOLERANCE * largest)


@pytest.mark.any_backend
@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_size_has_the_official_parameters(variant):
    with reference.without_values():
        model = getattr(keras_internimage, f"UperNet{variant}")(auxiliary=True)
        count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert count == PARAMETERS[variant]
    assert model.name == f"upernet_{variant.lower()}"
    assert model.input_shape == (None, None, None, 3)
    assert shapes(model)["logits"] == (None, None, None, 150)


def test_any_size_of_image():
    """Sizes that are no multiples of 32, known or not, and what is saved of them."""
    fixed = small_models.with_offsets(small_models.upernet(image_shape=(45, 70, 3)))
    free = small_models.upernet(image_shape=(None, None, 3))
    free.set_weights(fixed.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 45, 70, 3)).astype("float32")
    expected = fixed.predict(x, verbose=0)
    assert expected.shape == (2, 45, 70, 5) == (2, *fixed.output_shape[1:])
    np.testing.assert_allclose(free.predict(x, verbose=0), expected, rtol=0, atol=1e-5)
    again = free.__class__.from_config(free.get_config())
    assert again.output_shape == (None, None, None, 5)


@pytest.mark.any_backend
def test_saved_and_loaded(tmp_path):
    """Both heads, in mixed precision, from a file that knows no function of ours."""
    model = small_models.upernet(
        {**small_models.TINY, "layer_scale": 1.0, "drop_path_rate": 0.1, "dtype": "mixed_bfloat16"},
        auxiliary=True,
        output_size="quarter",
        dtype="mixed_bfloat16",
    )
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    expected = model.predict(x, verbose=0)
    assert {key: value.shape for key, value in expected.items()} == {
        "logits": (1, 16, 16, 5),
        "auxiliary": (1, 4, 4, 5),
    }
    assert all(value.dtype == "float32" for value in expected.values())
    assert model.get_layer("decoder").compute_dtype == "bfloat16"
    assert model.get_layer("decode_predictions").compute_dtype == "float32"
    model.save(tmp_path / "x.keras")
    found = keras.saving.load_model(tmp_path / "x.keras").predict(x, verbose=0)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.any_backend
def test_sizes_of_the_outputs():
    model = small_models.upernet(auxiliary=True)
    assert shapes(model) == {"logits": (None, 64, 64, 5), "auxiliary": (None, 64, 64, 5)}
    assert small_models.upernet(output_size="quarter").output_shape == (None, 16, 16, 5)
    # Without dropout and stochastic depth there is nothing random to save.
    assert len(model.non_trainable_variables) > len(model.non_trainable_weights)
    plain = small_models.upernet(drop_rate=0)
    assert len(plain.non_trainable_variables) == len(plain.non_trainable_weights)


@pytest.mark.any_backend
def test_half_precision_has_float32_logits():
    for size in ("input", "quarter"):
        sizes = {**small_models.TINY, "dtype": "float16"}
        model = small_models.upernet(sizes, dtype="float16", output_size=size)
        assert model.get_layer("decode_predictions").compute_dtype == "float16"
        assert model.output.dtype == "float32"


class Convolutions(keras.Model):
    """A backbone of another kind, with five levels."""

    def __init__(self, data_format="channels_last", levels=5):
        x = inputs = keras.Input((64, 64, 3))
        self.maps = {}
        for level in range(1, levels + 1):
            x = keras.layers.Conv2D(4 * level, 3, 2, "same", data_format=data_format)(x)
            self.maps[f"P{level}"] = x
        super().__init__(inputs, x)

    @property
    def pyramid_outputs(self):
        return self.maps


def test_another_backbone():
    backbone = Convolutions()
    model = UperNet(backbone, classes=3, channels=8, auxiliary=True, output_size="quarter")
    assert shapes(model) == {"logits": (None, 16, 16, 3), "auxiliary": (None, 4, 4, 3)}
    # The decoder is one layer: those between would be kept until the model's last one has run.
    assert model.get_layer("decoder").input[0] is backbone.maps["P2"]
    # The same weights: training the one trains the other.
    shared = {id(v) for v in model.trainable_variables} & {
        id(v) for v in backbone.trainable_variables
    }
    assert len(shared) == len(backbone.trainable_variables)
    y = model.predict(np.ones((1, 64, 64, 3), "float32"), verbose=0)
    assert np.isfinite(y["logits"]).all()


@pytest.mark.any_backend
def test_refusals(tmp_path):
    backbone = small_models.backbone(small_models.TINY)

    def refused(message, backbone=backbone, **arguments):
        with pytest.raises(ValueError, match=message):
            UperNet(backbone, **{"channels": 8, **arguments})

    for classes in (0, 2.5, True):
        refused(f"`classes` must be a positive int. Received: classes={classes}", classes=classes)
    refused("`channels` must be a positive int. Received: channels=-1", channels=-1)
    refused("'input' or 'quarter'. Received: output_size='half'", output_size="half")
    refused("less than 1. Received: drop_rate=1", drop_rate=1)
    refused("`backbone` must be a Keras model with `pyramid_outputs`", keras.Sequential())
    refused(r"at least 4 feature maps.*\['P1', 'P2', 'P3'\]", Convolutions(levels=3))
    refused("channels last, each no larger", Convolutions("channels_first", 4))
    refused("'ade20k' or 'cityscapes', the name of .*weights='imagenet'", weights="imagenet")
    refused("of no published size needs the name or path.*'ade20k'", weights="ade20k")
    with pytest.raises(ValueError, match="for 'H': upernet_.*weights='cityscapes'"):
        with reference.without_values():
            keras_internimage.UperNetH(weights="cityscapes")
    with pytest.raises(ValueError, match="must be None. Received: weights='ade20k'"):
        keras_internimage.UperNetT(weights="ade20k", backbone_weights="imagenet")
    with pytest.raises(ValueError, match="`imagenet22k`.*Received: weights='ade20k'"):
        keras_internimage.UperNetT(backbone_weights="ade20k")
