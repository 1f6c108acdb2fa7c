"""What variables start as, and that nothing is drawn for those which weights replace at once."""

import keras
import numpy as np
import pytest
from keras import ops
from small_models import SMALL, TINY

from keras_internimage import InternImage, InternImageBackbone, layers

OPTIONS = {
    **TINY,
    "input_shape": (64, 64, 3),
    "use_clip_projector": True,
    "center_feature_scale": True,
}


def as_array(x):
    return ops.convert_to_numpy(x)


def test_convolutions_start_within_their_bounds():
    stem = layers.InternImageStem(64)
    stem.build((1, 32, 32, 3))
    for weight, fan_in in (
        (stem.conv1.kernel, 27),
        (stem.conv1.bias, 27),
        (stem.conv2.kernel, 288),
    ):
        bound = fan_in**-0.5
        largest = np.abs(as_array(weight)).max()
        assert 0.8 * bound < largest <= bound
    dcn = layers.DCNv3(groups=4)
    dcn.build((1, 8, 8, 64))
    assert not as_array(dcn.offset_mask.kernel).any()
    assert 0.3 < np.abs(as_array(dcn.dw_conv.kernel)).max() <= 1 / 3


def test_no_two_projections_of_the_attention_start_alike():
    layer = layers.AttentionPooling(num_heads=2, output_dim=8)
    layer.build((1, 4, 4, 8))
    kernels = [as_array(part.kernel) for part in (layer.query, layer.key, layer.value, layer.proj)]
    for index, kernel in enumerate(kernels):
        assert 0.01 < kernel.std() < 0.03
        assert all(np.abs(kernel - other).max() > 0.01 for other in kernels[:index])


@pytest.fixture
def drawn(monkeypatch):
    """The shapes of all random initial values."""
    shapes = []
    for name in ("RandomUniform", "TruncatedNormal", "GlorotUniform"):
        kind = getattr(keras.initializers, name)

        def record(self, shape, dtype=None, kind=kind, original=kind.__call__):
            shapes.append(tuple(shape))
            return original(self, shape, dtype)

        monkeypatch.setattr(kind, "__call__", record)
    return shapes


def test_nothing_large_is_drawn_for_weights_that_follow(drawn, tmp_path):
    path = str(tmp_path / "x.weights.h5")
    model = InternImage(**OPTIONS, classes=3)
    assert (64, 256) in drawn and (8, 8) in drawn  # of the last stage, and of the first
    model.save_weights(path)
    drawn.clear()
    loaded = InternImage(**OPTIONS, classes=3, weights=path)
    # The depthwise windows, and three layers of the head.
    assert {np.prod(shape) for shape in drawn if len(shape) > 1} <= {
        *(9 * 8 * 2**stage for stage in range(4)), 64 * 4096, 32 * 1024, 768 * 3,
    }  # fmt: skip
    for weight, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(as_array(weight), as_array(expected), err_msg=weight.path)

    fresh = InternImage(**OPTIONS, classes=5, weights=path)
    assert 0.01 < as_array(fresh.get_layer("predictions").kernel).std() < 0.03

    # Neither a clone nor the next model starts as zeros, not even after weights that do not fit.
    with pytest.raises(ValueError, match="must fit the model"):
        InternImageBackbone(**SMALL, weights=path)
    for model in (
        keras.models.clone_model(loaded),
        InternImageBackbone(**TINY),
    ):
        for part in ("mlp_fc1", "mlp_fc2", "dcn"):
            layer = getattr(model.get_layer("stage4_block1"), part)
            kernel = layer.kernel if part != "dcn" else layer.output_proj.kernel
            assert as_array(kernel).std() > 0.01
