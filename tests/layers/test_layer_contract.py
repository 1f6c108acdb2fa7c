"""Keras' own layer test for every layer: shapes, types, serialisation, training, precision."""

import numpy as np
import pytest
from keras.src import testing

from keras_internimage import layers
from keras_internimage.layers.segmentation import UperNetDecoder

IMAGE = (2, 6, 7, 8)
# (layer, arguments, input shape, output shape, trainable weights, seed generators,
#  weights that are not trainable)
CASES = {
    "dcnv3": (layers.DCNv3, {"groups": 2}, IMAGE, IMAGE, 10, 0),
    "dcnv3_strided": (
        layers.DCNv3,
        {"groups": 4, "kernel_size": (3, 5), "strides": 2, "dilation_rate": (2, 1)},
        IMAGE,
        (2, 3, 4, 8),
        10,
        0,
    ),
    "dcnv3_all_options": (
        layers.DCNv3,
        {
            "groups": 1,
            "dw_kernel_size": 5,
            "offset_scale": 2.0,
            "center_feature_scale": True,
            "remove_center": True,
            "mask_activation": "sigmoid",
        },
        IMAGE,
        IMAGE,
        12,
        0,
    ),
    "dcnv3_free_mask": (
        layers.DCNv3,
        {"groups": 2, "mask_activation": None},
        IMAGE,
        IMAGE,
        10,
        0,
    ),
    "dcnv4": (layers.DCNv4, {"groups": 2}, IMAGE, IMAGE, 6, 0),
    "dcnv4_strided": (
        layers.DCNv4,
        {"groups": 4, "kernel_size": (3, 5), "strides": 2, "dilation_rate": (2, 1)},
        IMAGE,
        (2, 3, 4, 8),
        6,
        0,
    ),
    "dcnv4_all_options": (
        layers.DCNv4,
        {
            "groups": 1,
            "dw_kernel_size": 5,
            "offset_scale": 2.0,
            "center_feature_scale": True,
            "remove_center": True,
            "output_bias": False,
        },
        IMAGE,
        IMAGE,
        9,
        0,
    ),
    "dcnv4_without_pointwise": (
        layers.DCNv4,
        {"groups": 2, "without_pointwise": True},
        IMAGE,
        IMAGE,
        2,
        0,
    ),
    "block": (layers.InternImageBlock, {"groups": 2}, IMAGE, IMAGE, 18, 0),
    "block_post_norm": (
        layers.InternImageBlock,
        {"groups": 2, "post_norm": True, "layer_scale": 1e-5, "drop_path_rate": 0.5},
        IMAGE,
        IMAGE,
        20,
        1,
    ),
    "block_res_post_norm": (
        layers.InternImageBlock,
        {"groups": 2, "res_post_norm": True, "center_feature_scale": True, "dw_kernel_size": 5},
        IMAGE,
        IMAGE,
        24,
        0,
    ),
    "block_dcnv4": (
        layers.InternImageBlock,
        {"groups": 2, "core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False},
        IMAGE,
        IMAGE,
        12,
        0,
    ),
    "stem": (layers.InternImageStem, {"filters": 8}, (2, 9, 12, 3), (2, 3, 3, 8), 8, 0),
    "downsample": (layers.InternImageDownsample, {"filters": 12}, IMAGE, (2, 3, 4, 12), 3, 0),
    "attention_pooling": (
        layers.AttentionPooling,
        {"num_heads": 2, "output_dim": 5},
        IMAGE,
        (2, 5),
        14,
        0,
    ),
    "adaptive_average_pooling": (
        layers.AdaptiveAveragePooling2D,
        {"output_size": (3, 4)},
        IMAGE,
        (2, 3, 4, 8),
        0,
        0,
    ),
    "bilinear_resizing": (
        layers.BilinearResizing,
        {},
        ((2, 3, 4, 5), IMAGE),
        (2, 6, 7, 5),
        0,
        0,
    ),
    "fusion_convolution": (
        layers.FusionConvolution,
        {"filters": 3},
        (IMAGE, (2, 3, 4, 5)),
        (2, 6, 7, 3),
        1,
        0,
    ),
    "normalized_convolution": (
        layers.NormalizedConvolution,
        {"filters": 3},
        IMAGE,
        (2, 6, 7, 3),
        3,
        0,
        2,
    ),
    "normalized_fusion": (
        layers.NormalizedConvolution,
        {"filters": 3, "kernel_size": 1},
        (IMAGE, (2, 3, 4, 5)),
        (2, 6, 7, 3),
        3,
        0,
        2,
    ),
    "top_down_convolution": (
        layers.TopDownConvolution,
        {"filters": 5},
        (IMAGE, (2, 3, 4, 5)),
        (2, 6, 7, 5),
        3,
        0,
        2,
    ),
    "upernet_decoder": (
        UperNetDecoder,
        {"channels": 4},
        ((2, 4, 6, 3), (2, 2, 3, 5)),
        (2, 4, 6, 4),
        24,
        0,
        16,
    ),
    "drop_path": (layers.DropPath, {"rate": 0.3, "seed": 1}, IMAGE, IMAGE, 0, 1),
    "drop_path_zero": (layers.DropPath, {"rate": 0}, IMAGE, IMAGE, 0, 0),
    "pixel_shuffle_add": (
        layers.PixelShuffleAdd,
        {},
        ((2, 3, 4, 12), (2, 6, 8, 3)),
        (2, 6, 8, 3),
        0,
        0,
    ),
}


class TestLayers(testing.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        np.random.seed(0)

    def check(
        self, layer, arguments, input_shape, output_shape, weights, seed_generators, fixed_weights=0
    ):
        self.run_layer_test(
            layer,
            arguments,
            input_shape=input_shape,
            expected_output_shape=output_shape,
            expected_num_trainable_weights=weights,
            expected_num_non_trainable_weights=fixed_weights,
            expected_num_seed_generators=seed_generators,
            expected_num_losses=0,
            supports_masking=layer is layers.DropPath,
        )


def _add(name, case):
    setattr(TestLayers, f"test_{name}", lambda self: self.check(*case))


for _name, _case in CASES.items():
    _add(_name, _case)


def test_every_public_layer_is_covered():
    public = {getattr(layers, name) for name in layers.__all__}
    covered = {case[0] for case in CASES.values()} - {UperNetDecoder}  # of a package of its own
    assert covered == {v for v in public if isinstance(v, type)}


@pytest.mark.parametrize("name", layers.__all__)
def test_every_public_layer_has_a_docstring(name):
    assert len(getattr(layers, name).__doc__) > 80
