"""Small models whose offsets differ from pixel to pixel, and a photograph."""

import keras
import numpy as np
import pytest
import small_models
from small_models import FIVE_BLOCKS

import keras_internimage
from keras_internimage.layers import DCNv3, DCNv4

# What InternImage-L, -H and -G have beside the smaller ones.
OPTIONS = {
    "plain": {},
    "large": {"offset_scale": 2.0, "post_norm": True, "layer_scale": 0.5},
    "huge": {
        "res_post_norm": True,
        "dw_kernel_size": 5,
        "center_feature_scale": True,
        "remove_center": True,
        "level2_post_norm": True,
        "level2_post_norm_block_ids": (0, 1),
        "use_clip_projector": True,
    },
    "flash": {"core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False},
    "flash_with_all": {
        "core_op": "DCNv4",
        "dw_kernel_size": 3,
        "offset_scale": 0.5,
        "center_feature_scale": True,
    },
}


def _scattered(model):
    """Gives the offsets, masks and scales of every DCNv3 and DCNv4 something to predict."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, (DCNv3, DCNv4)):
            scale = [layer.center_scale] if layer.center_feature_scale else []
            for part in [layer.offset_mask, *scale]:
                part.kernel.assign(rng.normal(0, 0.4, part.kernel.shape))
                part.bias.assign(rng.normal(0, 0.4, part.bias.shape))
    return model


@pytest.fixture(scope="session")
def tiny():
    """Makes a small classifier, or a backbone where an `image_shape` is given."""

    def make(options="plain", **more):
        keras.utils.set_random_seed(3)
        make = small_models.backbone
        if "image_shape" not in more:
            make = small_models.classifier
            more = {"input_shape": (64, 64, 3), "classes": 5, **more}
        return _scattered(make(FIVE_BLOCKS, **OPTIONS[options], **more))

    return make


@pytest.fixture(scope="session")
def classifier(tiny):
    return tiny()


@pytest.fixture(scope="session")
def nested(tiny):
    """`(model, backbone)`: a user's model, pixel values in, probabilities out, in another."""
    backbone = tiny(image_shape=(None, None, 3))
    inputs = keras.Input((64, 64, 3))
    x = backbone(keras.layers.Rescaling(1 / 64, offset=-2.0)(inputs))
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(x)
    x = keras.layers.Dense(3, name="scores")(x)
    inner = keras.Model(inputs, keras.layers.Activation("softmax")(x))
    outer = keras.Input((64, 64, 3))
    return keras.Model(outer, inner(outer)), backbone


@pytest.fixture(scope="session")
def photo():
    """uint8 `(64, 64, 3)`: smooth, with a bright rectangle."""
    y, x = np.mgrid[:64, :64]
    image = np.stack([x * 3, y * 3, 255 - x * 2], axis=-1)
    image[10:30, 34:54] = (250, 240, 60)
    return np.uint8(image)


@pytest.fixture(scope="session")
def normalized(photo):
    return keras_internimage.preprocess_input(photo)[None]
