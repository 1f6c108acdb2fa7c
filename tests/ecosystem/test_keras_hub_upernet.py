"""UperNet as a task of KerasHub: fitted on raw images, saved, loaded."""

import keras
import numpy as np
import pytest
import small_models

keras_hub = pytest.importorskip("keras_hub")

pytestmark = pytest.mark.any_backend


def test_task(tmp_path):
    from keras_internimage import preprocess_input
    from keras_internimage.models.segmentation.keras_hub import (
        UperNetImageConverter,
        UperNetImageSegmenter,
        UperNetImageSegmenterPreprocessor,
    )

    backbone = small_models.backbone(small_models.TINY)
    preprocessor = UperNetImageSegmenterPreprocessor(
        UperNetImageConverter(image_size=(32, 32)), resize_output_mask=True
    )
    task = UperNetImageSegmenter(backbone, 3, preprocessor, channels=8)
    assert isinstance(task, keras_hub.models.ImageSegmenter)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("float32")
    masks = np.eye(3, dtype="float32")[rng.integers(0, 3, (2, 32, 32))]
    prepared = keras.ops.convert_to_numpy(preprocessor(images))
    np.testing.assert_allclose(prepared, preprocess_input(images), rtol=0, atol=1e-5)
    task.compile(optimizer=keras.optimizers.SGD(1e-3))
    before = [keras.ops.convert_to_numpy(v) for v in backbone.trainable_variables]
    task.fit(images, masks, verbose=0)
    after = [keras.ops.convert_to_numpy(v) for v in backbone.trainable_variables]
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    expected = task.predict(images, verbose=0)
    assert expected.shape == (2, 32, 32, 3)
    task.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert type(again) is UperNetImageSegmenter
    np.testing.assert_allclose(again.predict(images, verbose=0), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="positive int. Received: classes=0"):
        UperNetImageSegmenter(backbone, 0)


def test_a_backbone_of_keras_hub():
    from keras_internimage import UperNet

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 8, 8, 8],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(64, 64, 3),
        data_format="channels_last",
    )
    model = UperNet(backbone, classes=3, channels=8)
    y = model.predict(np.ones((1, 64, 64, 3), "float32"), verbose=0)
    assert y.shape == (1, 64, 64, 3) and np.isfinite(y).all()
