"""Batches of images and objects: a function of seed, epoch and index; filled up for detectors."""

import functools

import annotated_shapes
import numpy as np
import pytest
from batches import check_function_of_seed_epoch_and_index
from PIL import Image

from keras_internimage.data import AnnotatedImage, DetectionFiles, draw_mask, scan_detection
from keras_internimage.data.coco import CocoObject
from keras_internimage.data.resizing import resize_image
from keras_internimage.preprocessing import preprocess_input, read_image
from keras_internimage.training import BoxAugmentation, recipe

pytestmark = pytest.mark.any_backend

CHANGES = BoxAugmentation((50, 60), 90, 0.5, (40, 50), (30, 40), 0.5)
STILL = BoxAugmentation((48,), 64, flip=0.0)


class Flat(DetectionFiles):
    """Arrays of a batch in order, the images first."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return [x["images"], x["image_sizes"], *(y[name] for name in sorted(y))]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return scan_detection(annotated_shapes.coco(tmp_path_factory.mktemp("objects"), 5, 3))


@pytest.fixture
def make(images):
    made = []

    def make(part="train", batch_size=2, files=None, kind=DetectionFiles, **options):
        options = {"training": part == "train", "seed": 7, **options}
        if options["training"]:
            options.setdefault("augmentation", CHANGES)
        made.append(kind(files or getattr(images, part), batch_size, **options))
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


class TestTraining:
    def test_is_a_function_of_seed_epoch_and_index(self, make):
        check_function_of_seed_epoch_and_index(functools.partial(make, kind=Flat))

    def test_what_is_drawn_is_what_is_told(self, make, images):
        """Each object's mask and box lie where its colour is seen."""
        data = make(batch_size=3, few_shapes=False)
        assert len(data) == 2  # five images, the last batch is filled up
        seen = 0
        for epoch in range(3):
            data.epoch = epoch
            for index in range(2):
                x, y = data[index]
                count, height, width = x["images"].shape[:3]
                assert count == 3 and height % 32 == width % 32 == 0
                assert y["masks"].shape == (*y["labels"].shape, height, width)
                assert y["boxes"].shape == (*y["labels"].shape, 4)
                types = {x["images"].dtype.name, y["boxes"].dtype.name}
                assert types == {"float32"} and y["masks"].dtype == np.uint8
                assert y["labels"].dtype == x["image_sizes"].dtype == np.int32
                for i, (rows, columns) in enumerate(x["image_sizes"]):
                    assert not x["images"][i, rows:].any() and not x["images"][i, :, columns:].any()
                    assert not y["masks"][i, :, rows:].any()
                    assert not y["masks"][i, :, :, columns:].any()
                    for label, box, mask in zip(
                        y["labels"][i], y["boxes"][i], y["masks"][i], strict=True
                    ):
                        if label < 0:
                            assert not box.any() and not mask.any()
                            continue
                        assert (box >= 0).all() and box[2] <= columns and box[3] <= rows
                        inner = mask > 0
                        if inner.sum() < 30:
                            continue
                        seen += 1
                        # A square is red, a triangle green.
                        colour = np.median(x["images"][i][inner], axis=0)
                        assert np.argmax(colour) == label
                        at = np.argwhere(inner)[:, ::-1]
                        around = np.array([*at.min(0), *(at.max(0) + 1)])
                        assert (np.abs(around - box) < 3).all() or label == 1
                        assert (around[:2] > box[:2] - 3).all() and (around[2:] < box[2:] + 3).all()
        assert seen > 15

    def test_the_official_size(self, make, images):
        """(1333, 800), half-pixel bilinear of 8 bits, then normalised; multiples of 32."""
        data = make("validation", 2, few_shapes=False)
        x, y = data[0]
        assert x["images"].shape == (2, 800, 1088, 3)
        assert x["image_sizes"].tolist() == [[800, 1067]] * 2
        assert x["original_sizes"].tolist() == [[48, 64]] * 2
        pixels = np.asarray(read_image(images.validation[0].path))
        whole = resize_image(pixels, [(800, 1067)]).astype("float32")
        np.testing.assert_array_equal(x["images"][0, :, :1067], preprocess_input(whole))
        one = images.validation[0].objects[0]
        expected = np.array(one.box) * ([1067 / 64, 800 / 48] * 2)
        np.testing.assert_allclose(y["boxes"][0, 0], expected, rtol=1e-6)
        mask = draw_mask(one.segmentation, 48, 64)
        share = y["masks"][0, 0].sum() / (800 * 1067)
        assert share == pytest.approx(mask.mean(), rel=0.01)

    def test_of_a_recipe(self, images):
        data = DetectionFiles.for_training(images.train, 1, recipe("mask-rcnn-3x", "T"), threads=1)
        assert data.augmentation == BoxAugmentation.of_recipe(recipe("mask-rcnn-3x", "T"))
        assert max(data[0][0]["image_sizes"][0]) <= 1333
        data.close()

    def test_files_that_go_bad(self, tmp_path):
        images = scan_detection(annotated_shapes.coco(tmp_path, 5, 1)).train
        images[1].path.write_bytes(b"")
        images[2].path.unlink()
        Image.new("RGB", (48, 64)).save(images[3].path)
        data = DetectionFiles(images, 5, training=True, augmentation=CHANGES)
        assert len(data[0][0]["images"]) == 5
        assert data.skipped == {
            images[1].path: "is empty",
            images[2].path: "is not there any more",
            images[3].path: "is 48 x 64 pixels, 64 x 48 by the annotations",
        }
        data.close()


class TestShapes:
    def many(self, images, numbers):
        first = images.train[0]
        assert first.objects
        return [first._replace(objects=first.objects[:1] * number) for number in numbers]

    def test_no_object_is_cut(self, make, images):
        """Two hundred in one image; M follows the largest, or powers of two."""
        for few, expected in ((False, [200, 3, 0]), (True, [256, 8, 8])):
            files = self.many(images, (200, 3, 0))
            data = make("validation", 1, files, fit=(64, 48), few_shapes=few)
            for index, most in enumerate(expected):
                _, y = data[index]
                assert y["labels"].shape == (1, most)
                assert (y["labels"] >= 0).sum() == (200, 3, 0)[index]
                assert y["masks"].shape[1] == most == y["boxes"].shape[1]
        assert make("validation", 3, files, fit=(64, 48))[0][1]["labels"].shape[1] >= 200

    def test_few_shapes(self, make):
        data = make("validation", few_shapes=True)
        sides = range(1, 1334)
        assert {data._side(x) for x in sides} == {192, 384, 576, 768, 800, 960, 1152, 1344}
        assert all(0 <= data._side(x) - x < 192 for x in sides)
        assert [data._side(x) for x in (768, 769, 800, 801)] == [768, 800, 800, 960]
        plain = make("validation", few_shapes=False)
        assert plain._side(1067) == 1088

    def test_unlike_sizes_share_a_batch(self, make, images):
        tall = Image.open(images.train[0].path).transpose(Image.Transpose.ROTATE_90)
        path = images.folder / "tall.png"
        tall.save(path)
        files = [images.train[0], AnnotatedImage(path, 5, 64, 48, (), ())]
        x, y = make("validation", 2, files, fit=(64, 48), few_shapes=False)[0]
        assert x["images"].shape == (2, 64, 64, 3)
        assert x["image_sizes"].tolist() == [[48, 64], [64, 48]]
        assert (y["labels"][1] == -1).all()


class TestKinds:
    @pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
    def test_modes(self, make, images, tmp_path, mode):
        first = images.train[0]
        picture = Image.open(first.path)
        path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
        if mode == "I;16":
            grey = np.asarray(picture.convert("L")).astype("uint16") * 257
            Image.fromarray(grey).save(path)
        else:
            picture.convert(mode).save(path)
        x, _ = make("validation", 1, [first._replace(path=path)], fit=(64, 48))[0]
        expected = picture.convert("L").convert("RGB") if mode in ("L", "I;16") else picture
        expected = preprocess_input(np.asarray(expected, "float32"))
        found = x["images"][0, :48, :64]
        assert np.abs(found - expected).mean() < (0.5 if mode == "P" else 0.02)

    def test_turned_upright(self, make, images, tmp_path):
        """The annotations are for the upright image."""
        first = images.train[0]
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.open(first.path)
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        files = [first._replace(path=tmp_path / "turned.png")]
        x, _ = make("validation", 1, files, fit=(64, 48))[0]
        expected = preprocess_input(np.asarray(picture, "float32"))
        np.testing.assert_array_equal(x["images"][0, :48, :64], expected)

    def test_formats_of_boxes(self, make, images):
        box = make("validation", 1, fit=(128, 96))[0][1]["boxes"][0, 0]
        left, top, right, bottom = box
        for name, expected in {
            "yxyx": [top, left, bottom, right],
            "xywh": [left, top, right - left, bottom - top],
            "center_xywh": [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top],
            "rel_xyxy": [left / 128, top / 96, right / 128, bottom / 96],
        }.items():
            _, y = make("validation", 1, fit=(128, 96), bounding_box_format=name)[0]
            np.testing.assert_allclose(y["boxes"][0, 0], expected, rtol=1e-6)
            assert not y["boxes"][y["labels"] < 0].any()

    def test_masks(self, make, images):
        first = images.train[0]
        bare = CocoObject(1, first.id, 0, (10.0, 6.0, 20.4, 16.0))
        files = [first._replace(objects=(bare, *first.objects[:1]))]
        _, y = make("validation", 1, files, fit=(64, 48), masks="rectangles")[0]
        expected = np.zeros_like(y["masks"][0, 0])
        expected[6:16, 10:20] = 1
        np.testing.assert_array_equal(y["masks"][0, 0], expected)
        own = draw_mask(first.objects[0].segmentation, 48, 64)
        np.testing.assert_array_equal(y["masks"][0, 1, :48, :64], own)
        _, y = make("validation", 1, files, fit=(64, 48), masks="none")[0]
        assert sorted(y) == ["boxes", "labels"]
        # Never in silence.
        with pytest.raises(ValueError, match="must have segmentations.* Received: annotation 1 of"):
            make("validation", 1, files, fit=(64, 48))[0]

    def test_arguments(self, make):
        with pytest.raises(ValueError, match="`augmentation` must be None where `training=False`"):
            make("validation", augmentation=STILL)
        with pytest.raises(ValueError, match="`masks` must be .* Received: masks='boxes'"):
            make(masks="boxes")
