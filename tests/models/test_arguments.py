"""The model functions keep the conventions of keras.applications, refusals included."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
from models.reference import call, without_values
from small_models import TINY

import keras_internimage
from keras_internimage import (
    FlashInternImageBackbone,
    FlashInternImageT,
    InternImage,
    InternImageBackbone,
    InternImageH,
    InternImageT,
    models,
)
from keras_internimage.models.config import InternImageConfig
from keras_internimage.variants import function_name, model_name, title
from keras_internimage.weights_convert.export import export

FUNCTIONS = [getattr(models, function_name(variant)) for variant in models.VARIANTS]


@pytest.fixture
def no_values():
    """Build models without giving their variables values."""
    with without_values():
        yield


# --- What keras.applications' own test-suite asks of every model function -------------------


@pytest.mark.usefixtures("no_values")
@pytest.mark.parametrize(
    ("function", "data_format"),
    [
        *(
            # The two kinds of head; the others differ in numbers only.
            (function, "channels_last")
            if function in (InternImageT, InternImageH, FlashInternImageT)
            else pytest.param(function, "channels_last", marks=pytest.mark.any_backend)
            for function in FUNCTIONS
        ),
        pytest.param(InternImageT, "channels_first", marks=pytest.mark.any_backend),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_application_contract(function, data_format):
    """Shapes of the features, for other channels and sizes and a tensor to start from.

    The global data format does not matter: images are channels last.
    """
    keras.config.set_image_data_format(data_format)
    width = models.VARIANTS[function.__name__.replace("InternImage", "")].c1 * 8
    model = function(weights=None, include_top=False, input_shape=(None, None, 1))
    assert model.output_shape == (None, None, None, width)
    model = function(weights=None, include_top=False, input_shape=(123, 123, 4))
    assert model.output_shape == (None, 4, 4, width)
    start = keras.layers.Conv2D(3, 2, strides=2, data_format="channels_last")(
        keras.Input((200, 200, 4), name="custom_input")
    )
    model = function(weights=None, include_top=False, input_tensor=start)
    assert model.output_shape[-1] == width
    assert model.input_shape == (None, 200, 200, 4)
    model = function(weights=None, include_top=False, pooling="max")
    assert model.output_shape == (None, width)
    model = function(weights=None, include_top=True, classifier_activation="softmax")
    assert model.layers[-1].activation.__name__ == "softmax"
    assert model.output_shape == (None, 1000)


def test_serialised_model_is_the_same():
    model = InternImage(**TINY, input_shape=(64, 64, 3), layer_scale=0.1, post_norm=True)
    config = keras.saving.serialize_keras_object(model)
    again = keras.saving.deserialize_keras_object(config)
    assert [w.path for w in model.weights] == [w.path for w in again.weights]
    assert [w.shape for w in model.weights] == [w.shape for w in again.weights]
    assert again.get_config() == model.get_config()


# --- Names, layers, state ----------------------------------------------------------------


def test_layers_are_few_and_named_by_their_place():
    with without_values():
        names = [layer.name for layer in InternImageT(weights=None).layers]
    blocks = [f"stage{s}_block{b + 1}" for s, d in enumerate((4, 4, 18, 4), 1) for b in range(d)]
    assert [n for n in names if "block" in n] == blocks
    assert names[-1] == "predictions"
    assert len(names) < 50


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_drop_path_grows_linearly_and_brings_random_state_only_with_a_rate(rate):
    model = InternImage(**{**TINY, "depths": (1, 1, 3, 1)}, drop_path_rate=rate)
    blocks = [layer for layer in model.layers if "block" in layer.name]
    rates = [block.drop_path_rate for block in blocks]
    np.testing.assert_allclose(rates, np.linspace(0, rate, 6), atol=1e-12)
    states = [v for v in model.variables if "seed" in v.path]
    assert len(states) == (5 if rate else 0)


def test_dropout_before_the_classifier():
    model = InternImage(**TINY, drop_rate=0.2)
    assert isinstance(model.layers[-2], keras.layers.Dropout)


def test_any_image_size():
    model = InternImage(**TINY, input_shape=(None, None, 3), classes=3)
    for height, width in ((32, 64), (75, 49)):
        y = call(model, np.ones((1, height, width, 3), "float32"))
        assert tuple(y.shape) == (1, 3)


def test_clip_head_refuses_sizes_it_cannot_join():
    model = InternImage(
        **TINY, input_shape=(None, None, 3), use_clip_projector=True, center_feature_scale=True
    )
    assert tuple(call(model, np.ones((1, 64, 32, 3), "float32")).shape) == (1, 1000)
    with pytest.raises(ValueError, match="multiples of 32"):
        call(model, np.ones((1, 72, 64, 3), "float32"))


def test_dtype_reaches_every_layer():
    model = InternImage(**TINY, dtype="mixed_bfloat16")
    policies = {layer.dtype_policy.name for layer in model.layers[1:]}
    assert policies == {"mixed_bfloat16"}
    assert keras.config.dtype_policy().name == "float32"


def test_losses_are_scaled_in_float16_only():
    for dtype, scaled in (("mixed_float16", True), ("mixed_bfloat16", False)):
        model = InternImage(**TINY, dtype=dtype)
        model.compile("sgd", "mse")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scaled


# --- Refusals ----------------------------------------------------------------------------

BAD = [
    ({"weights": "imagnet"}, "weights='imagnet'"),
    ({"weights": "/no/such/file.pth"}, "path to the weights file"),
    ({"weights": "/no/such/file.pth"}, "weights='/no/such/file.pth' (there is no such file)"),
    ({"input_shape": (3, 64, 64)}, "channels last. Received: input_shape=(3, 64, 64)"),
    ({"weights": "imagenet", "input_shape": (3, 64, 64)}, "channels last"),
    ({"pooling": "mean"}, "pooling='mean'"),
    ({"input_shape": (16, 64, 3)}, "at least 32x32"),
    ({"input_shape": (64, 64)}, r"input_shape=\(64, 64\)"),
    ({"input_shape": (3, None, None)}, "channels last"),
    ({"classes": 0}, "classes=0"),
    ({"weights": "imagenet", "input_shape": (224, 224, 4)}, "3 channels"),
    ({"weights": "imagenet", "classifier_activation": "relu"}, "classifier_activation='relu'"),
    (
        {"weights": "internimage_t_1k_224", "classifier_activation": "sigmoid"},
        "newly initialised, and may have any. Received: classifier_activation='sigmoid'",
    ),
    ({"weights": "imagenet22k"}, "published for the variant"),
    ({"depths": (1, 1, 1)}, "4 stages"),
    ({"groups": (3, 2, 4, 8)}, "groups=(3, 2, 4, 8)"),
    ({"level2_post_norm": True, "level2_post_norm_block_ids": (18,)}, "third stage"),
    ({"res_post_norm": True, "post_norm": True}, "res_post_norm"),
]


@pytest.mark.usefixtures("no_values")
@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError) as error:
        InternImageT(**{"weights": None, **arguments})
    assert message.replace("\\", "") in str(error.value)


@pytest.mark.parametrize("suffix", [".weights.h5", ".safetensors"])
def test_any_activation_of_a_new_classifier(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    trained = InternImage(**TINY, classes=5)
    trained.save_weights(tmp_path / "x.weights.h5")
    if suffix == ".safetensors":
        export(tmp_path / "x.weights.h5", path)
    model = InternImage(**TINY, classes=3, weights=path, classifier_activation="sigmoid")
    assert model.layers[-1].activation is keras.activations.sigmoid
    for name in ("stem", "head_conv"):
        for a, b in zip(
            model.get_layer(name).get_weights(), trained.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="classifier_activation='sigmoid', classes=5"):
        InternImage(**TINY, classes=5, weights=path, classifier_activation="sigmoid")


def test_sides_of_the_large_classifiers():
    with pytest.raises(ValueError, match="multiples of 32"):
        InternImageH(weights=None, input_shape=(224, 250, 3))


@pytest.mark.usefixtures("no_values")
def test_unusual_channels_warn():
    with pytest.warns(UserWarning, match="4 input channels"):
        InternImage(**TINY, include_top=False, input_shape=(64, 64, 4))


def test_backbone_refusals():
    with pytest.raises(ValueError, match="data_format='channels_first'"):
        InternImageBackbone(**TINY, data_format="channels_first")
    with pytest.raises(ValueError, match="variant='M'"):
        InternImageBackbone.from_variant("M")
    with pytest.raises(ValueError, match="one of T, S, B, L. Received: variant='XL'"):
        FlashInternImageBackbone.from_variant("XL")
    with pytest.raises(ValueError, match="remove_center=True"):
        FlashInternImageBackbone(**TINY, remove_center=True)
    with pytest.raises(ValueError, match="must be True with DCNv3"):
        InternImageBackbone(**TINY, dcn_output_bias=False)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_signatures_are_explicit(function):
    """What editors and `help` show, of the source's own functions."""
    variant = function.__name__.replace("InternImage", "")
    parameters = inspect.signature(function).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "kwargs"}
    assert defaults == {
        "include_top": True,
        "weights": "imagenet",
        "input_tensor": None,
        "input_shape": None,
        "pooling": None,
        "classes": 1000,
        "classifier_activation": "softmax",
        "name": model_name(variant),
    }
    assert list(parameters)[-1] == "kwargs"
    assert f"def {function.__name__}(" in inspect.getsource(function)
    side = models.VARIANTS[variant].resolution
    assert function.__doc__.startswith(f"Instantiates {title(variant)}: ")
    assert f"{side} x {side} pixels." in function.__doc__.splitlines()[0]
    assert f"default ({side}, {side}, 3)" in function.__doc__


def test_the_configuration_is_the_arguments_of_the_models():
    config = InternImageConfig(16, [1, 1, 2, 1], [1, 2, 4, 8])
    fields = {field.name: field.default for field in dataclasses.fields(InternImageConfig)}
    assert len(fields) == 18
    for made in (InternImage, InternImageBackbone.__init__):
        parameters = inspect.signature(made).parameters
        assert list(fields)[:3] == [name for name in parameters if name != "self"][:3]
        for name in list(fields)[3:]:
            assert parameters[name].default == fields[name], name
    assert config.depths == (1, 1, 2, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.channels = 8


def test_every_public_name_is_documented():
    for name in keras_internimage.__all__:
        value = getattr(keras_internimage, name)
        assert value.__doc__ and len(value.__doc__) > 40, name
