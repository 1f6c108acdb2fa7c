"""Batches of images and masks: a function of seed, epoch and index; whole for evaluation."""

import masks
import numpy as np
import pytest
from batches import check_function_of_seed_epoch_and_index
from PIL import Image

from keras_internimage.data import SegmentationFiles, scan_segmentation
from keras_internimage.data.batches import NoImageLeft
from keras_internimage.preprocessing import preprocess_input, read_image
from keras_internimage.training import MaskAugmentation, recipe

pytestmark = pytest.mark.any_backend

CROP = MaskAugmentation(crop=(24, 32))


@pytest.fixture
def images(tmp_path):
    return scan_segmentation(masks.folder(tmp_path, 5, 3))


@pytest.fixture
def make(images):
    made = []

    def make(part="train", batch_size=2, **options):
        options = {"training": part == "train", "seed": 7, **options}
        if options["training"]:
            options.setdefault("augmentation", CROP)
        files = getattr(images, part)
        made.append(SegmentationFiles(files, images.encoding, batch_size, **options))
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


class TestTraining:
    def test_is_a_function_of_seed_epoch_and_index(self, make):
        check_function_of_seed_epoch_and_index(make)

    def test_shapes_and_masks_that_belong_to_the_images(self, make):
        """Without a change of colours, a mask can be told from its image."""
        still = MaskAugmentation((64, 80), (64, 48), (1, 1), 1, 0.5, 0, (1, 1), (1, 1), 0)
        data = make(augmentation=still)
        assert len(data) == 3  # five images, the last batch is filled up
        grey = {0: [], 1: []}
        for index in range(3):
            pixels, numbers = data[index]
            assert pixels.shape == (2, 64, 80, 3) and pixels.dtype == np.float32
            assert numbers.shape == (2, 64, 80) and numbers.dtype == np.int32
            assert (numbers[:, 48:] == 255).all() and (numbers[:, :, 64:] == 255).all()
            assert not pixels[:, 48:].any() and not pixels[:, :, 64:].any()
            bright = preprocess_input(np.full((1, 1, 3), 128, "float32")).mean()
            counted = numbers != 255
            assert counted[:, 1:48, :64].all()
            assert pixels.mean(-1)[numbers == 1].min() > bright - 1
            for c in grey:
                grey[c] += pixels.mean(-1)[numbers == c].tolist()
        assert np.mean(grey[0]) < bright < np.mean(grey[1])

    def test_hook_and_outputs(self, make):
        seeds = []

        def change(image, mask, seed):
            seeds.append(seed)
            return np.full_like(image, 255), np.zeros_like(mask)

        data = make(change_pair=change, outputs=("logits", "auxiliary"))
        pixels, numbers = data[0]
        assert list(numbers) == ["logits", "auxiliary"]
        assert numbers["logits"] is numbers["auxiliary"]
        assert (numbers["logits"] == 0).any() and pixels.max() > 2.2
        assert len(set(seeds)) == len(seeds) >= 2

    def test_of_a_recipe(self, images):
        row = recipe("upernet-512", "T")
        data = SegmentationFiles.for_training(images.train, images.encoding, 1, row, threads=1)
        assert data.augmentation == MaskAugmentation(crop=(512, 512), flip=0.5)
        assert data[0][0].shape == (1, 512, 512, 3)
        data.close()

    def test_files_that_go_bad(self, make, images):
        expected = make(batch_size=5)[0]
        images.train[1][1].write_bytes(b"")
        images.train[2][0].unlink()
        data = make(batch_size=5)
        pixels, numbers = data[0]
        assert pixels.shape == expected[0].shape and numbers.shape == expected[1].shape
        assert data.skipped == {
            images.train[1][1]: "is empty",
            images.train[2][0]: "is not there any more",
        }
        for image, _ in images.train:
            image.unlink(missing_ok=True)
        with pytest.raises(NoImageLeft, match="At least one image must be readable. Received: "):
            make()[0]


class TestEvaluation:
    def test_whole_images_in_order(self, make, images):
        data = make("validation")
        assert len(data) == 2 and [len(data[i][0]) for i in range(2)] == [2, 1]
        pixels, numbers, positions = data.batch(1)
        assert positions == [2] and pixels.shape == (1, 48, 64, 3)
        np.testing.assert_array_equal(numbers[0], masks.pair(102)[1])
        whole = read_image(images.validation[2][0])
        np.testing.assert_array_equal(pixels[0], preprocess_input(np.asarray(whole, "float32")))

    def test_unlike_sizes_are_filled_up(self, make, images):
        image, mask = images.validation[0]
        Image.open(image).crop((0, 0, 30, 48)).save(image)
        Image.open(mask).crop((0, 0, 30, 48)).save(mask)
        pixels, numbers = make("validation", 3, size_multiple=32)[0]
        assert pixels.shape == (3, 64, 64, 3)
        assert (numbers[0, :, 30:] == 255).all() and (numbers[:, 48:] == 255).all()
        np.testing.assert_array_equal(numbers[0, :48, :30], masks.pair(100)[1][:, :30])

    def test_resized_to_fit(self, make):
        for fit, shape in (((64, 24), (24, 32)), ((32, 128), (32, 43)), ((40, 40), (30, 40))):
            pixels, numbers = make("validation", 1, fit=fit)[0]
            assert pixels.shape == (1, *shape, 3) and numbers.shape == (1, *shape)
            assert set(np.unique(numbers)) <= {0, 1, 255}

    def test_bad_files_are_left_out(self, make, images):
        images.validation[0][0].write_text("text")
        data = make("validation", 3)
        pixels, _, positions = data.batch(0)
        assert positions == [1, 2] and len(pixels) == 2
        assert data.skipped == {images.validation[0][0]: "is text, not an image"}

    def test_arguments(self, make):
        with pytest.raises(ValueError, match="`fit` must be None where `training=True`"):
            make(fit=(64, 64))
        with pytest.raises(ValueError, match="must be None where `training=False`"):
            make("validation", augmentation=CROP)
