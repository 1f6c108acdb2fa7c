"""The backbone does all that KerasHub's own test of vision backbones asks for."""

import json

import keras
import numpy as np
import pytest
from models.reference import as_array, call
from small_models import TINY

from keras_internimage import InternImageBackbone

CONFIG = {
    **TINY,
    "layer_scale": 0.1,
    "post_norm": True,
    "image_shape": (64, 64, 3),
}
SIZES = {"P2": (16, 16, 8), "P3": (8, 8, 16), "P4": (4, 4, 32), "P5": (2, 2, 64)}
IMAGES = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype("float32")


def test_configuration_round_trips():
    backbone = InternImageBackbone(**CONFIG)
    config = backbone.get_config()
    again = InternImageBackbone.from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)
    serialised = keras.saving.serialize_keras_object(backbone)
    revived = keras.saving.deserialize_keras_object(json.loads(json.dumps(serialised)))
    assert isinstance(revived, InternImageBackbone)
    assert set(dir(revived)) == set(dir(backbone))
    assert backbone.name.startswith("intern_image_backbone")
    assert backbone.token_embedding is None


def test_pyramid():
    backbone = InternImageBackbone(**CONFIG)
    assert backbone.output_shape == (None, 2, 2, 64)
    maps = keras.Model(backbone.input, backbone.pyramid_outputs).predict(IMAGES, verbose=0)
    assert {level: features.shape[1:] for level, features in maps.items()} == SIZES
    assert backbone.data_format == "channels_last"
    assert backbone.image_shape == (64, 64, 3)


def test_predict_in_batches():
    backbone = InternImageBackbone(**CONFIG)
    whole = backbone.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(backbone.predict(IMAGES, batch_size=2, verbose=0), whole, atol=1e-5)
    np.testing.assert_allclose(as_array(call(backbone, IMAGES)), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_policy_reaches_every_part(name):
    policy = keras.dtype_policies.DTypePolicy(name)
    backbone = InternImageBackbone(**CONFIG, dtype=policy)
    output = call(backbone, IMAGES)
    assert keras.backend.standardize_dtype(output.dtype) == policy.compute_dtype
    assert (
        backbone.compute_output_spec(keras.ops.convert_to_tensor(IMAGES)).dtype
        == policy.compute_dtype
    )
    for weight in backbone.weights:
        assert keras.backend.standardize_dtype(weight.dtype) == policy.variable_dtype
    for part in backbone._flatten_layers():
        if not isinstance(part, keras.layers.InputLayer):
            assert part.compute_dtype == policy.compute_dtype, part.path


def test_policies_of_single_parts():
    dense = [
        layer
        for layer in InternImageBackbone(**CONFIG)._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
    ]
    quantised = {layer.path: keras.dtype_policies.get("int8_from_float32") for layer in dense}
    policies = keras.dtype_policies.DTypePolicyMap("float32", quantised)
    backbone = InternImageBackbone(**CONFIG, dtype=policies)
    for layer in backbone._flatten_layers():
        expected = "int8" if isinstance(layer, keras.layers.Dense) else None
        assert layer.quantization_mode == expected, layer.path
    again = InternImageBackbone.from_config(backbone.get_config())
    assert again.get_config() == backbone.get_config()
    again.set_weights(backbone.get_weights())
    np.testing.assert_allclose(
        as_array(call(again, IMAGES)), as_array(call(backbone, IMAGES)), atol=1e-6
    )


def test_nested_in_another_model():
    """As a layer of a user's model, and by its tensors."""
    backbone = InternImageBackbone(**CONFIG)
    image = keras.Input((64, 64, 3))
    nested = keras.Model(image, keras.layers.GlobalMaxPooling2D()(backbone(image)))
    flat = keras.Model(
        backbone.input, keras.layers.GlobalMaxPooling2D()(backbone.pyramid_outputs["P5"])
    )
    np.testing.assert_allclose(
        nested.predict(IMAGES, verbose=0), flat.predict(IMAGES, verbose=0), atol=1e-5
    )
