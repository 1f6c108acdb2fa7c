"""UperNet as a task of KerasHub: fitted on raw images, saved, loaded."""

import keras
import numpy as np
import pytest
import small_models

keras_hub = pytest.importorskip("keras_hub")

pytestmark = pytest.mark.any_backend


def make_preprocessor():
    from keras_internimage.models.segmentation import keras_hub as tasks

    converter = tasks.UperNetImageConverter(image_size=(32, 32))
    return tasks.UperNetImageSegmenterPreprocessor(converter, resize_output_mask=True)


def test_task(tmp_path):
    from keras_internimage import preprocess_input
    from keras_internimage.models.segmentation.keras_hub import UperNetImageSegmenter

    backbone = small_models.backbone(small_models.TINY)
    preprocessor = make_preprocessor()
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
    assert again.preprocessor.resize_output_mask
    np.testing.assert_allclose(again.predict(images, verbose=0), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="positive int. Received: classes=0"):
        UperNetImageSegmenter(backbone, 0)


def test_presets(tmp_path):
    """Of a task, its preprocessor, and a backbone alone."""
    from keras_internimage.models.segmentation import keras_hub as tasks

    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    backbone = small_models.with_offsets(small_models.backbone(small_models.TINY))
    task = tasks.UperNetImageSegmenter(
        backbone, 3, make_preprocessor(), channels=8, drop_rate=0.2, dtype="mixed_bfloat16"
    )
    folder = str(tmp_path / "preset")
    task.save_to_preset(folder)
    expected = task.predict(images, verbose=0)
    assert expected.std() > 0
    for kind in (tasks.UperNetImageSegmenter, keras_hub.models.ImageSegmenter):
        read = kind.from_preset(folder)
        assert type(read) is tasks.UperNetImageSegmenter
        assert (read.num_classes, read.channels, read.drop_rate) == (3, 8, 0.2)
        assert read.dtype_policy.name == "mixed_bfloat16"
        assert read.backbone.dtype_policy.name == "float32"
    np.testing.assert_allclose(read.predict(images, verbose=0), expected, rtol=0, atol=1e-5)
    read = tasks.UperNetImageSegmenterPreprocessor.from_preset(folder)
    assert read.resize_output_mask and tuple(read.image_converter.image_size) == (32, 32)
    # Another number of classes: the backbone's weights alone are read.
    other = tasks.UperNetImageSegmenter.from_preset(folder, num_classes=5)
    assert other.output_shape[-1] == 5
    pairs = zip(other.backbone.weights, backbone.weights, strict=True)
    assert all(np.array_equal(*map(keras.ops.convert_to_numpy, pair)) for pair in pairs)

    backbone.save_to_preset(str(tmp_path / "backbone"))
    half = tasks.UperNetImageSegmenter.from_preset(
        str(tmp_path / "backbone"), num_classes=3, preprocessor=None, dtype="bfloat16", channels=8
    )
    policies = {half.dtype_policy.name, half.get_layer("decoder").dtype_policy.name}
    assert policies == {"bfloat16"} == {half.backbone.dtype_policy.name}
    assert "dtype" not in half.get_config()


def test_a_backbone_of_keras_hub(tmp_path):
    from keras_internimage import UperNet
    from keras_internimage.models.segmentation.keras_hub import UperNetImageSegmenter

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
    task = UperNetImageSegmenter(backbone, 3, channels=8)
    with pytest.raises(ValueError, match="must be an InternImageBackbone for a preset"):
        task.save_to_preset(str(tmp_path / "preset"))
    assert not list(tmp_path.iterdir())
