"""Preprocessing against a second computation of each step, written out here."""

import io
import os
import pathlib

import keras
import numpy as np
import pytest
from PIL import Image

from keras_internimage import preprocessing
from keras_internimage.preprocessing import decode_predictions, load_image, preprocess_input

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


def normalised(x):
    return (x.astype("float64") / 255.0 - MEAN) / STD


class TestPreprocessInput:
    @pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
    def test_numpy(self, dtype):
        x = pixels(2, 5, 4, 3).astype(dtype)
        before = x.copy()
        y = preprocess_input(x)
        assert isinstance(y, np.ndarray)
        assert y.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_allclose(y, normalised(x), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(x, before)

    def test_agrees_with_keras_applications(self):
        x = pixels(2, 5, 4, 3).astype("float32")
        expected = keras.applications.imagenet_utils.preprocess_input(x.copy(), mode="torch")
        np.testing.assert_allclose(preprocess_input(x), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "bfloat16"])
    def test_tensor(self, dtype):
        x = pixels(1, 4, 4, 3)
        y = preprocess_input(keras.ops.cast(keras.ops.convert_to_tensor(x), dtype))
        assert keras.ops.is_tensor(y)
        expected_dtype = "float32" if dtype == "uint8" else dtype
        assert keras.backend.standardize_dtype(y.dtype) == expected_dtype
        y = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
        # One rounding of a result of at most 2.65: the arithmetic itself is float32.
        atol = {"float16": 2.7 / 2**11, "bfloat16": 2.7 / 2**8}.get(dtype, 1e-6)
        np.testing.assert_allclose(y, normalised(x), rtol=0, atol=atol)

    def test_symbolic_and_saved(self, tmp_path):
        inputs = keras.Input((None, None, 3), dtype="uint8")
        model = keras.Model(inputs, preprocess_input(inputs))
        x = pixels(2, 6, 7, 3)
        np.testing.assert_allclose(model.predict(x, verbose=0), normalised(x), rtol=0, atol=1e-6)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(again.predict(x, verbose=0), normalised(x), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 5, 3), (2, 3, 4, 5, 3)])
    def test_channels_first(self, shape):
        x = pixels(*shape)
        y = preprocess_input(np.moveaxis(x, -1, -3), data_format="channels_first")
        np.testing.assert_allclose(np.moveaxis(y, -3, -1), normalised(x), rtol=0, atol=1e-6)

    def test_global_channels_first_changes_nothing(self):
        keras.config.set_image_data_format("channels_first")
        x = pixels(3, 4, 3)
        np.testing.assert_allclose(preprocess_input(x), normalised(x), rtol=0, atol=1e-6)

    def test_tf_data_pipeline_of_any_backend(self):
        tf = pytest.importorskip("tensorflow")
        x = pixels(2, 4, 4, 3)
        dataset = tf.data.Dataset.from_tensor_slices(x).map(preprocess_input).batch(2)
        (y,) = list(dataset.as_numpy_iterator())
        assert y.dtype == "float32"
        np.testing.assert_allclose(y, normalised(x), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(4, 4, 1), (4, 3), (3, 4, 4), (3,)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"three channels.*Received: shape="):
            preprocess_input(np.zeros(shape))

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="data_format must be .*Received: data_format='NHWC'"):
            preprocess_input(np.zeros((4, 4, 3)), data_format="NHWC")


def by_hand(image, size):
    """The official transform, each step as its own source has it."""
    image = image.convert("RGB")
    width, height = image.size
    if width <= height:
        resized = image.resize((size, int(size * height / width)), 3)  # 3: bicubic
    else:
        resized = image.resize((int(size * width / height), size), 3)
    width, height = resized.size
    top = int(round((height - size) / 2.0))
    left = int(round((width - size) / 2.0))
    array = np.asarray(resized)[top : top + size, left : left + size]
    return normalised(array)


class TestLoadImage:
    @pytest.mark.parametrize("size", [32, 33])
    @pytest.mark.parametrize(
        "height, width", [(50, 70), (70, 50), (33, 33), (47, 64), (101, 40), (20, 31), (32, 45)]
    )
    def test_official_transform(self, tmp_path, height, width, size):
        path = tmp_path / "image.png"
        Image.fromarray(pixels(height, width, 3)).save(path)
        result = load_image(path, size)
        assert result.shape == (size, size, 3)
        assert result.dtype == "float32"
        np.testing.assert_allclose(result, by_hand(Image.open(path), size), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("width, left", [(37, 2), (39, 4), (35, 2), (41, 4)])
    def test_odd_margins_round_half_to_even(self, width, left):
        # Nothing is resized, so the crop shows its first column: 2.5 -> 2, 3.5 -> 4, 1.5 -> 2, 4.5.
        image = pixels(32, width, 3)
        expected = normalised(image[:, left : left + 32])
        np.testing.assert_allclose(load_image(image, 32), expected, rtol=0, atol=1e-6)

    def test_downsampling_is_antialiased(self):
        board = np.indices((64, 64)).sum(0) % 2 * 255
        image = np.repeat(board[..., None], 3, axis=-1).astype("uint8")
        flat = load_image(image, 16)[4:-4, 4:-4]
        grey = normalised(np.full((1, 1, 3), 127.5))
        np.testing.assert_allclose(flat, np.broadcast_to(grey, flat.shape), atol=0.02)

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
    def test_modes(self, tmp_path, mode):
        image = Image.fromarray(pixels(40, 50, 3)).convert(mode)
        path = tmp_path / ("image.jpg" if mode in ("CMYK", "YCbCr") else "image.png")
        image.save(path)
        with Image.open(path) as stored:
            expected = by_hand(stored, 32)
        np.testing.assert_allclose(load_image(path, 32), expected, rtol=0, atol=1e-6)

    def test_palette_with_transparency(self, tmp_path):
        path = tmp_path / "image.gif"
        Image.fromarray(pixels(40, 50, 3)).convert("P").save(path, transparency=0)
        with Image.open(path) as stored:
            expected = by_hand(stored, 32)
        np.testing.assert_allclose(load_image(path, 32), expected, rtol=0, atol=1e-6)

    def test_kinds_of_source_agree(self, tmp_path):
        array = pixels(40, 50, 3)
        image = Image.fromarray(array)
        path = tmp_path / "image.png"
        image.save(path)
        expected = load_image(path, 32)
        content = io.BytesIO(path.read_bytes())
        for source in (str(path), content, image, array):
            np.testing.assert_array_equal(load_image(source, 32), expected)
        np.testing.assert_array_equal(image, array)

    def test_grey_and_rgba_arrays(self):
        grey = pixels(40, 50)
        expected = load_image(np.repeat(grey[..., None], 3, -1), 32)
        np.testing.assert_array_equal(load_image(grey, 32), expected)
        rgba = pixels(40, 50, 4)
        np.testing.assert_array_equal(load_image(rgba, 32), load_image(rgba[..., :3].copy(), 32))

    def test_exif_orientation_is_ignored_on_demand(self, tmp_path):
        image = Image.fromarray(pixels(40, 50, 3))
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: rotated by a quarter
        path, turned = tmp_path / "plain.png", tmp_path / "turned.png"
        image.save(path)
        image.save(turned, exif=exif)
        found = load_image(turned, 32, exif_orientation=False)
        np.testing.assert_array_equal(found, load_image(path, 32))
        assert not np.array_equal(load_image(turned, 32), found)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent.jpg"):
            load_image(tmp_path / "absent.jpg", 32)

    @pytest.mark.parametrize("content", [b"", b"not an image at all"])
    def test_no_image(self, tmp_path, content):
        path = tmp_path / "broken.jpg"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"an image that Pillow reads. Received: .*broken.jpg"):
            load_image(path, 32)

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_truncated_image(self, tmp_path, suffix):
        whole, broken = tmp_path / f"whole.{suffix}", tmp_path / f"broken.{suffix}"
        Image.fromarray(pixels(64, 64, 3)).save(whole)
        content = whole.read_bytes()
        broken.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"Received: .*broken"):
            load_image(broken, 32)

    def test_folder(self, tmp_path):
        with pytest.raises(ValueError, match="an image that Pillow reads"):
            load_image(tmp_path, 32)

    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    def test_more_than_sixteen_bits(self, tmp_path, dtype):
        path = tmp_path / "deep.tiff"
        Image.fromarray(np.full((40, 40), 1000, dtype)).save(path)
        with pytest.raises(ValueError, match=r"8 or 16 bits per channel. Received: .*deep.tiff"):
            load_image(path, 32)

    @pytest.mark.parametrize("suffix", ["png", "tiff"])
    def test_sixteen_bits_are_scaled(self, tmp_path, suffix):
        values = np.random.default_rng(0).integers(0, 65536, (32, 32)).astype("uint16")
        values[0, :3] = 0, 65535, 257
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
        expected = np.round(values * (255 / 65535))
        assert expected[0, :3].tolist() == [0, 255, 1]
        expected = normalised(np.repeat(expected[..., None], 3, -1))
        result = load_image(tmp_path / f"deep.{suffix}", 32)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, tmp_path, orientation):
        image = Image.fromarray(pixels(40, 50, 3))
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "turned.png"
        image.save(path, exif=exif)
        upright = np.asarray(image)
        if orientation >= 5:  # the first row is a column of the scene
            upright = upright.transpose(1, 0, 2)
        if orientation in (2, 3, 6, 7):
            upright = upright[:, ::-1]
        if orientation in (3, 4, 7, 8):
            upright = upright[::-1]
        result = load_image(path, 32, exif_orientation=True)
        np.testing.assert_array_equal(result, load_image(np.ascontiguousarray(upright), 32))

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_jpeg_is_decoded_no_larger_than_needed(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "large.jpg"
        Image.fromarray(pixels(160, 320, 3)).save(path, exif=exif)
        seen = []

        def at_least(size):
            seen.append(size)
            return size[0] // 4, size[1] // 2 - 1

        small = preprocessing.read_image(path, exif_orientation=True, at_least=at_least)
        assert seen == [(320, 160) if orientation == 1 else (160, 320)]
        assert small.size == (seen[0][0] // 2, seen[0][1] // 2)
        assert preprocessing.read_image(path, exif_orientation=True).size == seen[0]

    @pytest.mark.parametrize("size", [0, -1, 32.0, "32", None, True, (32, 32)])
    def test_wrong_size(self, size):
        with pytest.raises(ValueError, match="size must be a positive integer. Received: size="):
            load_image(pixels(40, 40, 3), size)

    @pytest.mark.parametrize(
        "array",
        [np.zeros((4, 4, 3), "float32"), np.zeros((4, 4, 2), "uint8"), np.zeros(4, "uint8")],
    )
    def test_wrong_array(self, array):
        with pytest.raises(ValueError, match="An array must be uint8 of shape"):
            load_image(array, 32)


@pytest.fixture
def class_index(monkeypatch, tmp_path):
    """A class index like the one Keras downloads."""
    index = {str(i): [f"n{i:08d}", f"class_{i}"] for i in range(1000)}
    monkeypatch.setattr(_imagenet_utils(), "CLASS_INDEX", index)


def _imagenet_utils():
    import sys

    return sys.modules[keras.applications.imagenet_utils.decode_predictions.__module__]


class TestDecodePredictions:
    def test_names_and_order(self, class_index):
        scores = np.zeros((2, 1000), "float32")
        scores[0, [7, 3, 5]] = [0.5, 0.3, 0.2]
        scores[1, 999] = 1.0
        for preds in (scores, keras.ops.convert_to_tensor(scores)):
            first, second = decode_predictions(preds, top=3)
            assert [name for _, name, _ in first] == ["class_7", "class_3", "class_5"]
            assert first[0][0] == "n00000007"
            np.testing.assert_allclose([score for *_, score in first], [0.5, 0.3, 0.2])
            assert second[0][1] == "class_999"
            assert len(second) == 3
        assert len(decode_predictions(scores)[0]) == 5

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_types(self, class_index, dtype):
        scores = np.zeros((1, 1000), "float32")
        scores[0, 12] = 0.5
        preds = keras.ops.cast(keras.ops.convert_to_tensor(scores), dtype)
        assert decode_predictions(preds, top=1)[0][0][1:] == ("class_12", 0.5)

    @pytest.mark.parametrize("shape", [(1000,), (1, 21841), (1, 10), (1, 1, 1000)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"must be a batch of predictions \(N, 1000\)"):
            decode_predictions(np.zeros(shape))

    @pytest.mark.parametrize("top", [0, 1001, 2.0])
    def test_wrong_top(self, top):
        with pytest.raises(ValueError, match="top must be an integer in 1..1000"):
            decode_predictions(np.zeros((1, 1000)), top=top)

    def test_offline(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise Exception("URL fetch failure: no route to host")

        utils = _imagenet_utils()
        monkeypatch.setattr(utils, "CLASS_INDEX", None)
        monkeypatch.setattr(utils.file_utils, "get_file", refuse)
        with pytest.raises(RuntimeError, match="imagenet_class_index.json.*no route to host"):
            decode_predictions(np.zeros((1, 1000)))


@pytest.mark.any_backend
def test_statistics_are_the_published_ones():
    assert preprocessing.MEAN == tuple(MEAN) and preprocessing.STD == tuple(STD)


@pytest.mark.any_backend
def test_sample_photograph():
    datasets = pytest.importorskip("sklearn.datasets")
    path = pathlib.Path(datasets.__file__).parent / "images" / "china.jpg"
    assert os.path.exists(path)
    expected = by_hand(Image.open(path), 224)
    np.testing.assert_allclose(load_image(path, 224), expected, rtol=0, atol=1e-6)
