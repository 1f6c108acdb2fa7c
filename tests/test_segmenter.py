"""`Segmenter`: what the published test pipeline says, computed once more in the plain way."""

import re

import keras
import numpy as np
import photographs
import pytest
from PIL import Image
from small_models import upernet

from keras_internimage import models
from keras_internimage.checkpoints import published
from keras_internimage.checkpoints.infer import Guess
from keras_internimage.data import resizing
from keras_internimage.layers.resampling import resize_bilinear
from keras_internimage.preprocessing import preprocess_input
from keras_internimage.segmenter import Resizing, Segmenter, load_segmenter, loading
from keras_internimage.segmenter.windows import Windows, positions

LABELS = ("a", "b", "c")


def tiny(size=(None, None), classes=3, name="tiny"):
    """Logits at half the size, from the edges of 3x3 pixels."""
    keras.utils.set_random_seed(3)
    image = keras.Input((*size, 3))
    options = {"padding": "same", "data_format": "channels_last"}
    x = keras.layers.Conv2D(classes, 3, strides=2, use_bias=False, **options)(image)
    model = keras.Model(image, x, name=name)
    (kernel,) = model.get_weights()
    model.set_weights([3 * (kernel - kernel.mean((0, 1)))])  # or one class is everywhere
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def photograph():
    return photographs.piece("china", 3, 64).crop((0, 0, 53, 39))


def bilinear(x, *sizes):
    x = keras.ops.convert_to_tensor(x)
    for size in sizes:
        x = resize_bilinear(x, size)
    return keras.ops.convert_to_numpy(x)


def seen(image, *sizes):
    """A batch of one as a model sees it."""
    pixels = resizing.resize_image(np.asarray(image), sizes)
    return preprocess_input(pixels.astype("float32"))[None]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def compare(segmenter, image, expected):
    """Compares both results with probabilities; where two classes tie, either may be named."""
    found = segmenter.probabilities(image)
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels = segmenter.label_map(image)
    assert labels.dtype == np.uint8 and labels.shape == expected.shape[:2]
    assert len(np.unique(labels)) > 1  # or nothing is compared
    best = np.take_along_axis(expected, labels[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(best, expected.max(-1), atol=1e-5)


def test_rows_equal_resizing_at_once():
    generator = np.random.default_rng(0)
    for old, new in (((7, 9), (23, 31)), ((24, 17), (5, 17)), ((1, 1), (4, 3)), ((6, 6), (6, 13))):
        x = generator.normal(size=(*old, 4)).astype("float32")
        rows = resizing.resized(resizing.Map(x), *new)
        cut = np.concatenate([rows.rows(i, min(i + 2, new[0])) for i in range(0, new[0], 2)])
        np.testing.assert_allclose(cut, bilinear(x[None], new)[0], atol=2e-5)


def test_images_are_rounded_after_each_resizing(photograph):
    """As OpenCV does with 8 bits; a few values lie half-way, where roundings differ."""
    pixels = expected = np.asarray(photograph)
    for size in ((48, 65), (64, 96)):
        expected = np.rint(bilinear(expected[None].astype("float32"), size)[0])
    found = resizing.resize_image(pixels, [(48, 65), (64, 96)])
    assert found.dtype == np.uint8 and found.shape == (64, 96, 3)
    assert abs(found - expected).max() <= 1 and np.mean(found != expected) < 0.01


@pytest.mark.any_backend
def test_sizes():
    """By hand from `mmcv.imrescale` and `ResizeToMultiple`."""
    ade20k = Resizing(512, multiple=32)
    assert ade20k.longest == 2048
    assert ade20k.sizes(480, 640) == [(512, 683), (512, 704)]
    assert ade20k.sizes(512, 512) == [(512, 512)]
    assert ade20k.sizes(100, 1000) == [(205, 2048), (224, 2048)]
    assert ade20k.sizes(480, 640, 0.75) == [(384, 512)]
    assert Resizing(1024, 2048).sizes(1024, 2048) == [(1024, 2048)]
    assert Resizing(1024, 2048).sizes(500, 3000) == [(341, 2048)]
    for row in (published.find(name) for name in published.names("segmentation")):
        made = loading.published_resizing(row)
        assert (made.longest, made.shortest, made.multiple) == {
            "L": (2560, 640, 32),
            "XL": (2560, 640, 32),
            "H": (3584, 896, 32),
            "FlashL": (2560, 640, 32),
        }.get(row.variant, (2048, 512, 32)) or row.data != "ade20k"
        if row.data != "ade20k":
            assert (made.longest, made.shortest, made.multiple) == (2048, 1024, 1)


def test_whole_image(photograph):
    """A UperNet at its quarter, which is then resized three times: as the whole model does."""
    keras.utils.set_random_seed(0)
    model = upernet(image_shape=(None, None, 3), auxiliary=True)
    for layer in model.layers:
        if layer.name == "decode_predictions":  # or all classes are as probable
            layer.set_weights([100 * w for w in layer.get_weights()])
    segmenter = Segmenter(model, "abcde", resizing=Resizing(48, multiple=32))
    assert segmenter.classes == 5
    x = seen(photograph, (48, 65), (64, 96))
    logits = keras.ops.convert_to_numpy(model.predict_on_batch(x)["logits"])
    assert logits.shape == (1, 64, 96, 5)
    expected = softmax(bilinear(logits, (39, 53))[0])
    assert expected.max() > 0.5
    compare(segmenter, photograph, expected)


def test_scales_and_mirrored_images(model, photograph):
    segmenter = Segmenter(model, LABELS, resizing=Resizing(40), scales=(0.5, 1.25), flip=True)
    total = 0
    for size in ((20, 27), (50, 68)):
        for image in (photograph, photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            logits = keras.ops.convert_to_numpy(model(seen(image, size)))
            probabilities = softmax(bilinear(logits, size, (39, 53))[0])
            total = total + (probabilities if image is photograph else probabilities[:, ::-1])
    compare(segmenter, photograph, total / 4)
    plain = Segmenter(model, LABELS, resizing=Resizing(40)).probabilities(photograph)
    assert abs(plain - total / 4).max() > 0.01


@pytest.mark.any_backend
def test_positions_of_windows():
    assert positions(100, 40, 30) == [0, 30, 60]
    assert positions(101, 40, 30) == [0, 30, 60, 61]
    assert positions(40, 40, 7) == [0] and positions(10, 40, 30) == [0]


@pytest.mark.parametrize("flip", [False, True])
def test_sliding_window(model, photograph, flip, monkeypatch):
    monkeypatch.setattr(resizing, "BAND", 5 * 53 * 3)  # rows at a time
    crop, stride = (20, 24), (13, 24)
    segmenter = Segmenter(model, LABELS, crop=crop, stride=stride, flip=flip, batch_size=4)
    batches = []
    monkeypatch.setattr(
        segmenter._network,
        "predict_on_batch",
        lambda x, predict=segmenter._network.predict_on_batch: (
            batches.append(x.shape) or predict(x)
        ),
    )
    expected = slide(model, seen(photograph), crop, [0, 13, 19], [0, 24, 29])
    if flip:
        mirrored = seen(photograph)[:, :, ::-1]
        mirrored = slide(model, mirrored, crop, [0, 13, 19], [0, 24, 29])[:, ::-1]
        expected = (softmax(expected) + softmax(mirrored)) / 2
    else:
        expected = softmax(expected)
    compare(segmenter, photograph, expected)
    # 3 x 3 windows at a time are never computed: a row of them, in batches of 4.
    assert batches == [(4, 20, 24, 3)] * (len(batches))
    assert len(batches) <= 2 * (1 + flip) * 3


def slide(model, images, crop, tops, lefts):
    """The mean of the logits of windows over their number."""
    total = np.zeros((*images.shape[1:3], 3))
    count = np.zeros((*images.shape[1:3], 1))
    for y in tops:
        for x in lefts:
            window = images[:, y : y + crop[0], x : x + crop[1]]
            logits = bilinear(model(np.ascontiguousarray(window)), crop)[0]
            total[y : y + crop[0], x : x + crop[1]] += logits
            count[y : y + crop[0], x : x + crop[1]] += 1
    assert count.min() >= 1 and count.max() == 6
    return total / count


@pytest.mark.any_backend
def test_windows_keep_only_what_is_needed():
    """And reach over the edge of a small image, where they see the mean colour."""
    image = np.random.default_rng(0).normal(size=(60, 20, 3)).astype("float32")
    kept = []

    def predict(batch):
        assert batch.shape == (2, 12, 32, 3) and not batch[:, :, 20:].any()
        return batch

    windows = Windows(predict, image, (12, 32), (8, 32), 2)
    for start in range(0, 60, 3):
        np.testing.assert_allclose(windows.rows(start, start + 3), image[start : start + 3])
        kept.append(len(windows.scores))
    assert max(kept) == 2  # one above the other, not all seven


@pytest.mark.any_backend
def test_a_large_image_a_few_rows_at_a_time(monkeypatch):
    model = tiny(classes=150)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")).resize(
        (1500, 1000), Image.Resampling.BICUBIC
    )
    segmenter = Segmenter(model, range(150), resizing=Resizing(32))
    small = segmenter.label_map(image.crop((0, 0, 300, 200)))
    made = []

    class Spy(resizing.Resized):
        def rows(self, start, stop):
            made.append((stop - start) * self.width * 150)
            return super().rows(start, stop)

    monkeypatch.setattr(resizing, "Resized", Spy)
    monkeypatch.setattr(resizing, "BAND", 1 << 21)
    labels = segmenter.label_map(image)
    assert labels.shape == (1000, 1500) and len(np.unique(labels)) > 10
    assert 0 < max(made) <= 1 << 21 and len(made) > 1000 * 1500 * 150 / (1 << 21)
    monkeypatch.setattr(resizing, "BAND", 300 * 150 * 7)
    np.testing.assert_array_equal(segmenter.label_map(image.crop((0, 0, 300, 200))), small)


@pytest.mark.any_backend
class TestLoading:
    def test_a_published_name(self, monkeypatch, photograph):
        """Of the outputs for Cityscapes the first 19 count."""
        built = []

        def build(**options):
            built.append(options)
            return tiny(classes=150)

        monkeypatch.setattr(models, "UperNetT", build)
        name = "upernet_internimage_t_512x1024_160k_cityscapes"
        segmenter = load_segmenter(name, resizing=Resizing(32))
        assert built == [{"weights": name, "output_size": "quarter"}]
        assert segmenter.labels[0] == "road" and segmenter.palette[0] == (128, 64, 128)
        assert segmenter.classes == 19 and segmenter.resizing == Resizing(32)
        assert segmenter.probabilities(photograph).shape == (39, 53, 19)
        np.testing.assert_allclose(segmenter.probabilities(photograph).sum(-1), 1, atol=1e-5)
        for arguments in (
            ("upernet_internimage_t_512_160k_ade20k",),
            ("T", "ade20k"),
            ("T", "upernet_internimage_t_512_160k_ade20k"),
        ):
            segmenter = load_segmenter(arguments[0], weights=(arguments + (None,))[1])
            assert segmenter.classes == 150 and segmenter.labels[2] == "sky"
            assert segmenter.resizing == Resizing(512, 2048, 32)

    def test_an_official_file_of_another_number_of_classes(self, monkeypatch, tmp_path):
        built = []
        path = tmp_path / "mine.pth"
        path.write_text("")
        guess = Guess({}, "T", 3, (), "upernet")
        monkeypatch.setattr(models, "UperNetT", lambda **options: built.append(options) or tiny())
        monkeypatch.setattr(loading, "infer_config", lambda shapes: guess)
        monkeypatch.setattr(loading, "open_checkpoint", lambda path: keras.Model())
        monkeypatch.setattr(keras.Model, "shapes", dict, raising=False)
        segmenter = load_segmenter("T", weights=path, labels=LABELS)
        assert built == [{"weights": path, "classes": 3, "output_size": "quarter"}]
        assert segmenter.labels == LABELS

    def test_files_beside_the_model(self, model, tmp_path):
        model.save(tmp_path / "model.keras")
        with pytest.warns(UserWarning, match="classes are shown as numbers"):
            segmenter = load_segmenter(tmp_path)
        assert segmenter.labels == ("0", "1", "2") and segmenter.resizing is None
        assert segmenter.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
        (tmp_path / "classes.txt").write_text("a 1 2 3\nb 4 5 6\nc 7 8 9\nignore 0 0 0\n")
        segmenter = load_segmenter(tmp_path / "model.keras", crop=16)
        assert segmenter.labels == LABELS and segmenter.palette[2] == (7, 8, 9)
        assert (segmenter.crop, segmenter.stride) == ((16, 16), (10, 10))
        (tmp_path / "labels.json").write_text('{"classes": ["a", "b", "c"], "resolution": 64}')
        segmenter = load_segmenter(tmp_path)
        assert segmenter.resizing == Resizing(64, 256, 32) and segmenter.palette[2] == (7, 8, 9)
        with pytest.warns(UserWarning, match="of the model's 3 outputs the first 2 count"):
            assert load_segmenter(tmp_path, labels=["x", "y"]).classes == 2
        (tmp_path / "labels.json").write_text('\ufeff["a", "b"]')
        with pytest.raises(ValueError, match="as many as the model has classes, 3. Received: 2"):
            load_segmenter(tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("internimage_t_1k_224",), "one for segmentation. Received: internimage_t_1k_224"),
            (("none.keras",), "none.keras, no such file"),
            (
                ("Q", "ade20k"),
                "model must be one of T, S, B, L, XL, H, FlashT, FlashS, FlashB, FlashL. "
                "Received: model='Q'",
            ),
            (("T", "none.pth"), "weights=none.pth, no such file"),
            (("H", "cityscapes"), "must be published for the variant"),
            (("S", "upernet_internimage_t_512_160k_ade20k"), "weights must be for the variant"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_segmenter(arguments[0], weights=(arguments + (None,))[1])


@pytest.mark.any_backend
class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"labels": "abcd"}, "no more than the model's outputs, 3. Received: 4 labels"),
            ({"labels": "a"}, "labels must be at least two"),
            ({"labels": "aba"}, "labels must differ from each other. Received: 'a' more than once"),
            ({"palette": [(0, 0, 0)]}, "palette must have a colour"),
            ({"palette": [(0, 0, 256)] * 3}, "palette must have a colour .R, G, B., 0 to 255"),
            ({"palette": 5}, "palette must have a colour"),
            ({"resizing": 512}, "resizing must be a Resizing or None. Received: resizing=512"),
            ({"scales": ()}, "scales must be positive numbers"),
            ({"scales": 0.5}, "scales must be positive numbers"),
            ({"scales": (1, -1)}, "scales must be positive numbers"),
            ({"batch_size": 0}, "batch_size must be a positive int. Received: batch_size=0"),
            ({"crop": 0}, "`crop` must be a positive int or two"),
            ({"stride": 8}, "stride needs crop. Received: stride=8"),
            ({"crop": 8, "stride": (8, 9)}, "stride must be at most crop"),
        ],
    )
    def test_refuses(self, model, options, message):
        with pytest.raises(ValueError, match=message):
            Segmenter(model, **{"labels": LABELS, **options})

    @pytest.mark.parametrize("options", [(0,), (8, 4), (8, 8, 0), (8.0,), (True,)])
    def test_sizes(self, options):
        with pytest.raises(ValueError, match="shortest|multiple"):
            Resizing(*options)

    def test_a_model_of_a_fixed_size(self, photograph):
        model = tiny((32, 48))
        segmenter = Segmenter(model, LABELS)
        logits = keras.ops.convert_to_numpy(model(seen(photograph, (32, 48))))
        compare(segmenter, photograph, softmax(bilinear(logits, (32, 48), (39, 53))[0]))
        for options, message in (
            ({"resizing": Resizing(32)}, "resizing must be left out"),
            ({"scales": (1, 2)}, "scales must be left out"),
            ({"crop": 32}, "crop must be what the model takes. Received: crop=.32, 32., where the"),
        ):
            with pytest.raises(ValueError, match=message):
                Segmenter(model, LABELS, **options)
        Segmenter(model, LABELS, crop=(32, 48), resizing=Resizing(64), scales=(1, 2))

    def test_logits_that_are_no_numbers(self, photograph):
        model = tiny()
        model.set_weights([np.full_like(model.get_weights()[0], np.nan)])
        with pytest.raises(ValueError, match="logits must be finite. Received: .* NaN from tiny"):
            Segmenter(model, LABELS).label_map(photograph)

    @pytest.mark.parametrize(
        "message",
        [
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes",
            "CUDA out of memory. Tried to allocate 9 GiB",
            "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.",
        ],
    )
    def test_a_model_that_runs_out_of_memory(self, photograph, monkeypatch, message):
        model = tiny()
        segmenter = Segmenter(model, LABELS)

        def fail(_):
            raise RuntimeError(message)

        monkeypatch.setattr(segmenter._network, "predict_on_batch", fail)
        with pytest.raises(MemoryError, match=re.escape(message)):
            segmenter.label_map(photograph)

    def test_what_is_no_image_or_model(self, model, photograph):
        with pytest.raises(ValueError, match="PIL image of mode RGB"):
            Segmenter(model, LABELS).label_map(photograph.convert("L"))
        inputs = keras.Input((8, 8, 3))
        flat = keras.Model(inputs, keras.layers.Flatten()(inputs))
        with pytest.raises(ValueError, match="give logits .N, H, W, classes.. Received: "):
            Segmenter(flat, LABELS)
