"""A detector with its preprocessing: what it gives for images of any size and kind."""

import keras
import numpy as np
import pytest
import small_models
from checkpoints.conftest import save_pth
from checkpoints.test_upernet import official
from PIL import Image

import keras_internimage
from keras_internimage.checkpoints.names import cascade_mask_rcnn
from keras_internimage.data import Resizing, detection_classes
from keras_internimage.data.resizing import resize_image
from keras_internimage.detector import Detections, Detector, load_detector, loading

NAMES = list("abcde")
RESIZING = Resizing(64, 96)


@pytest.fixture(scope="module")
def model():
    return small_models.detecting()


@pytest.fixture
def detector(model):
    return Detector(model, NAMES, resizing=RESIZING)


@pytest.fixture(scope="module")
def images():
    """Lying and upright; of noise, in which a model with random weights finds something."""
    rng = np.random.default_rng(0)
    sizes = (60, 80, 3), (90, 50, 3)
    return [Image.fromarray(rng.integers(0, 256, size, dtype="uint8")) for size in sizes]


def by_hand(model, image):
    """The model's own answer for an image alone, resized and padded here."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    ((h, w),) = RESIZING.sizes(height, width)
    seen = keras_internimage.preprocess_input(resize_image(pixels, [(h, w)]).astype("float32"))
    batch = np.zeros((1, -(-h // 32) * 32, -(-w // 32) * 32, 3), "float32")
    batch[0, :h, :w] = seen
    inputs = {
        "images": batch,
        "image_sizes": np.array([[h, w]], "int32"),
        "original_sizes": np.array([[height, width]], "int32"),
    }
    found = {k: keras.ops.convert_to_numpy(x)[0] for k, x in model.predict_on_batch(inputs).items()}
    return {k: x[: found["num_detections"]] for k, x in found.items() if k != "num_detections"}


def same(found, expected, atol=1e-4):
    assert len(found) == len(expected["boxes"]) > 2
    for name, x in expected.items():
        np.testing.assert_allclose(getattr(found, name), x, atol=atol, rtol=0)


def test_an_image_alone_is_seen_as_by_the_official_code(model, detector, images):
    for image, found in zip(images, detector.predict(images), strict=True):
        same(found, by_hand(model, image))
        assert (found.height, found.width) == image.size[::-1]
        assert (found.boxes >= 0).all() and (found.boxes <= np.array([*image.size] * 2)).all()


def test_a_batch_of_differing_images(detector, images):
    """Filled up to the largest, and to the number of images; nothing lies outside of an image."""
    found = detector.predict([*images, images[0]], batch_size=2)
    assert len(found) == 3
    alone = detector.predict(images)
    for one, image in zip(found, [*images, images[0]], strict=True):
        assert (one.boxes <= np.array([*image.size] * 2)).all() and len(one)
    # The last one, a batch of its own.
    expected = {name: getattr(alone[0], name) for name in ("boxes", "labels", "scores")}
    same(found[2], expected, atol=2e-3)
    best = [alone[0].scores[0], found[0].scores[0]]
    np.testing.assert_allclose(*best, atol=0.3)


@pytest.mark.any_backend
def test_other_box_formats(model, detector, images):
    expected = detector.predict(images[0])[0]
    for name in ("yxyx", "xywh", "rel_xyxy", "rel_center_xywh"):
        model.bounding_box_format, model.predict_function = name, None
        try:
            found = detector.predict(images[0])[0]
        finally:
            model.bounding_box_format, model.predict_function = "xyxy", None
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)


@pytest.mark.any_backend
class TestImages:
    def test_kinds(self, detector, images, tmp_path):
        """One image in all the ways in which it may be given."""
        image = images[0]
        pixels = np.asarray(image)
        image.save(tmp_path / "a.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
        given = [image, pixels, pixels * np.float32(0.999), tmp_path / "a.png"]
        given += [str(tmp_path / "a.png"), tmp_path, np.dstack([pixels, pixels[..., :1]])]
        found = detector.predict(given)
        assert len(found) == 8  # two of the folder
        for one in found[1:]:
            np.testing.assert_array_equal(one.boxes, found[0].boxes)
        (one,) = detector.predict(pixels)
        two = detector.predict(np.stack([pixels, pixels]))
        assert len(two) == 2
        np.testing.assert_array_equal(one.boxes, two[1].boxes)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((8, 8, 3), 0.5), "0 to 1 must be multiplied by 255. Received: an array from"),
            (np.full((8, 8, 3), -3.0), "must be 0 to 255. Received: an array from -3 to -3"),
            (np.full((8, 8, 3), np.nan), "must be 0 to 255. Received: an array from nan"),
            (np.zeros((8, 8, 3), "int32"), "An array must be uint8"),
        ],
    )
    def test_refuses(self, detector, image, message):
        with pytest.raises(ValueError, match=message):
            detector.predict(image)

    def test_one_that_cannot_be_read(self, detector, images, tmp_path):
        with pytest.raises(FileNotFoundError, match="An image must exist. Received: .*none.png"):
            detector.predict(tmp_path / "none.png")
        (tmp_path / "bad.png").write_text("text")
        rows = list(detector.stream([tmp_path / "bad.png", images[0]], 2))
        assert [row[1] is None for row in rows] == [True, False]
        assert "must be an image that Pillow reads" in str(rows[0][2])
        assert detector.predict([]) == []


@pytest.mark.any_backend
class TestDetections:
    def test_masks(self, detector, images):
        coco = pytest.importorskip("pycocotools.mask")
        (found,) = detector.predict(images[0])
        rows = found.coco("china.jpg", detector.category_ids)
        whole = keras_internimage.paste_masks(found.masks, found.boxes, (60, 80))
        assert whole.any()
        for index, row in enumerate(rows):
            np.testing.assert_array_equal(found.mask(index), whole[index])
            np.testing.assert_array_equal(coco.decode(row["segmentation"]), whole[index])
            assert row["image_id"] == "china.jpg"
            assert row["category_id"] == found.labels[index] + 1
            left, top, right, bottom = found.boxes[index]
            assert row["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
            assert row["score"] == pytest.approx(found.scores[index], abs=1e-5)

    def test_a_large_photograph(self):
        """Twenty whole masks would take 240 MB."""
        import tracemalloc

        rng = np.random.default_rng(0)
        corners = rng.uniform(0, 2500, (20, 2))
        boxes = np.c_[corners, corners + rng.uniform(100, 1500, (20, 2))]
        boxes = np.minimum(boxes, [4000, 3000, 4000, 3000]).astype("float32")
        y, x = np.mgrid[:28, :28] - 13.5
        masks = np.repeat(np.float32(1 - np.hypot(x, y)[None] / 26), 20, axis=0)  # a disc
        found = Detections(3000, 4000, boxes, np.zeros(20, "int32"), np.ones(20), masks)
        tracemalloc.start()
        rows = found.coco(1, [1])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(rows) == 20 and peak < 80e6

    def test_threshold(self, model, detector, images):
        (found,) = detector.predict(images[0])
        middle = float(np.median(found.scores))
        (fewer,) = Detector(model, NAMES, resizing=RESIZING, threshold=middle).predict(images[0])
        assert 0 < len(fewer) < len(found) and (fewer.scores > middle).all()
        np.testing.assert_array_equal(found.above(middle).boxes, fewer.boxes)
        assert not len(found.above(1)) and found.above(1).coco(1, [1]) == []

    def test_parts_that_do_not_fit(self):
        with pytest.raises(ValueError, match="boxes must be .D, 4.*Received: .2, 4., .1,., .2,."):
            Detections(4, 4, np.ones((2, 4)), np.ones(1), np.ones(2), np.ones((2, 28, 28)))


@pytest.mark.any_backend
class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"class_names": ["a"]}, "as many as the model has classes, 5. Received: .'a'"),
            ({"class_names": "abcde"}, "as many as the model has classes"),
            ({"class_names": [*"abcba"]}, "must differ from each other. Received: 'a', 'b' more"),
            ({"resizing": 800}, "resizing must be a Resizing or None. Received: resizing=800"),
            ({"threshold": 1}, "threshold must be at least 0 and less than 1. Received: threshold"),
            ({"category_ids": [1, 2]}, "as many as class_names, 5, and different"),
            ({"category_ids": [1, 2, 3, 4, 4]}, "and different. Received: category_ids="),
            ({"multiple": 48}, "multiple must be one of 32. Received: multiple=48"),
            ({"multiple": 0}, "multiple must be a positive int"),
        ],
    )
    def test_refuses(self, model, options, message):
        with pytest.raises(ValueError, match=message):
            Detector(model, **options)

    def test_what_is_no_detector(self, detector, images):
        with pytest.raises(ValueError, match="must be a detector, such as MaskRCNN. Received: "):
            Detector(small_models.upernet())
        backbone = small_models.backbone({**small_models.TINY, "layer_scale": 1.0})
        fixed = small_models.mask_rcnn(on=backbone)
        with pytest.raises(ValueError, match="of any size.*Received: mask_rcnn, for .* 32 x 32"):
            Detector(fixed)
        with pytest.raises(ValueError, match="batch_size must be a positive int"):
            detector.predict(images, batch_size=0)

    def test_names_and_ids(self, model):
        made = Detector(model)
        assert made.class_names == tuple("01234") and made.category_ids == (1, 2, 3, 4, 5)
        assert made.resizing == Resizing(800, 1333) and made.classes == 5
        assert Detector(model, category_ids=[3, 1, 9, 7, 5]).category_ids == (3, 1, 9, 7, 5)

    def test_classes_of_coco(self):
        rows = detection_classes("coco")
        assert len(rows) == 80 == len({row.name for row in rows})
        ids = [row.id for row in rows]
        missing = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
        assert ids == sorted(set(range(1, 91)) - missing)
        by_id = {row.id: row.name for row in rows}
        assert (by_id[1], by_id[18], by_id[44], by_id[90]) == (
            *("person", "dog", "bottle", "toothbrush"),
        )
        with pytest.raises(ValueError, match="must be one of coco. Received: data='voc'"):
            detection_classes("voc")


@pytest.mark.any_backend
class TestLoading:
    def test_a_published_name(self, monkeypatch):
        built = []

        def build(**options):
            built.append(options)
            return small_models.mask_rcnn(classes=80)

        monkeypatch.setattr(loading.models, "MaskRCNNS", build)
        for arguments in (
            {"model": "mask_rcnn_internimage_s_fpn_3x_coco"},
            {"model": "S", "weights": "coco"},
        ):
            detector = load_detector(**arguments, threshold=0.4)
            assert detector.class_names[16] == "dog" and detector.category_ids[16] == 18
            assert detector.resizing == Resizing(800, 1333) and detector.threshold == 0.4
        assert built == [{"weights": "mask_rcnn_internimage_s_fpn_3x_coco"}] * 2

    def test_files_beside_the_model(self, model, images, tmp_path):
        model.save(tmp_path / "model.keras")
        with pytest.warns(UserWarning, match="classes are shown as numbers"):
            plain = load_detector(tmp_path, resizing=RESIZING)
        assert plain.class_names == tuple("01234")
        (tmp_path / "labels.json").write_text('{"classes": ["v","w","x","y","z"],"resolution":96}')
        made = load_detector(tmp_path / "model.keras")
        assert made.class_names == tuple("vwxyz") and made.resizing == Resizing(96, 160)
        (found,) = plain.predict(images[0])
        (expected,) = Detector(model, resizing=RESIZING).predict(images[0])
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
        with pytest.raises(ValueError, match="as many as the model has classes, 5. Received: 2"):
            load_detector(tmp_path, class_names=["a", "b"])

    def test_a_file_of_a_cascade(self, monkeypatch, tmp_path):
        state = official(small_models.cascade_mask_rcnn(), cascade_mask_rcnn.TABLE)
        file = save_pth(tmp_path / "x.pth", state, "state_dict")

        def build(**options):
            return small_models.cascade_mask_rcnn(**options)

        monkeypatch.setattr(loading.models, "CascadeMaskRCNNFlashL", build)
        with pytest.warns(UserWarning, match="classes are shown as numbers"):
            assert load_detector("FlashL", weights=file).classes == 5
        for model in ("T", "FlashT"):
            with pytest.raises(ValueError, match="of a detector .*InternImage-T. .*Cascade Mask"):
                load_detector(model, weights=file)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"model": "internimage_t_1k_224"}, "must be one for detection. Received: internim"),
            ({"model": "nowhere"}, "nowhere, no such file"),
            ({"model": "X", "weights": "coco"}, "model must be one of T, S, B"),
            ({"model": "T", "weights": "x.pth"}, "weights must be 'coco', a published name"),
            (
                {"model": "T", "weights": "mask_rcnn_internimage_s_fpn_1x_coco"},
                "weights must be for the variant. Received: model='T'",
            ),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_detector(**arguments)
