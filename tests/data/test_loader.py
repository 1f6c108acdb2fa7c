"""Batches are a function of seed, epoch and index, whatever the threads do."""

import concurrent.futures

import keras
import numpy as np
import photographs
import pytest
from batches import check_function_of_seed_epoch_and_index
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from keras_internimage.data import EpochSetter, ImageFiles, scan
from keras_internimage.data.batches import NoImageLeft
from keras_internimage.data.loader import random_crop
from keras_internimage.preprocessing import load_image, preprocess_input

SIZE = 32


@pytest.fixture
def images(tmp_path):
    return scan(photographs.folder(tmp_path / "data", images=5), validation_split=0.2)


@pytest.fixture
def make(images):
    made = []

    def make(part="train", **options):
        options = {"batch_size": 4, "training": part == "train", "seed": 7, **options}
        files = getattr(images, part)
        made.append(ImageFiles(files, len(images.class_names), SIZE, **options))
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


def invert(images, labels, seed):
    """An augmentation that shows its seed: images (255 - x), labels shifted by it."""
    return 255.0 - images, labels + seed[-1]


class TestTraining:
    @pytest.mark.any_backend
    def test_is_a_function_of_seed_epoch_and_index(self, make):
        check_function_of_seed_epoch_and_index(make)

    @pytest.mark.any_backend
    def test_every_image_once_and_the_last_batch_filled(self, make, images):
        dataset = make(batch_size=3)
        assert len(dataset) == 3
        for epoch in range(3):
            order = dataset.order(epoch)
            assert sorted(order[:8]) == list(range(8)) and list(order[8:]) == [order[0]]
        positions = [i for index in range(3) for i in dataset.batch(index)[2]]
        assert positions == dataset.order(0).tolist()

    @pytest.mark.any_backend
    def test_balanced_sampling(self, images):
        files = [file for file in images.train if file[1] == 0 or "000" in file[0].name]
        files += [file for file in images.train if file[1] == 1][:1]
        dataset = ImageFiles(files, 2, SIZE, 2, training=True, seed=3, sampling="balanced")
        labels = np.array([label for _, label in dataset.files])
        orders = [dataset.order(epoch) for epoch in (0, 1, 0)]
        for order in orders:
            shown = np.bincount(labels[order[: len(files)]])
            assert abs(shown[0] - shown[1]) <= 1
        assert (orders[0] == orders[2]).all() and (orders[0] != orders[1]).any()
        dataset.close()
        with pytest.raises(ValueError, match="`sampling` must be .* Received: sampling='other'"):
            ImageFiles(files, 2, SIZE, 2, training=True, sampling="other")
        with pytest.raises(ValueError, match="`sampling` must be None where `training=False`"):
            ImageFiles(files, 2, SIZE, 2, training=False, sampling="balanced")

    @pytest.mark.any_backend
    def test_fewer_images_than_a_batch_holds(self, make):
        dataset = make(batch_size=20, multiple=2)
        assert len(dataset) == 2
        for index in range(2):
            x, y = dataset[index]
            assert x.shape == (20, SIZE, SIZE, 3) and y.shape == (20, 2)

    @pytest.mark.any_backend
    def test_what_a_batch_holds(self, make, images):
        x, y, positions = make().batch(0)
        assert x.dtype == y.dtype == "float32"
        np.testing.assert_array_equal(y, np.eye(2)[[images.train[i][1] for i in positions]])
        random = np.random.default_rng((7, 0, 1, 2))
        expected = random_crop(images.train[positions[2]][0], SIZE, random)
        np.testing.assert_array_equal(x[2], preprocess_input(expected.astype("float32")))

    @pytest.mark.any_backend
    def test_augmentation_is_given_its_seed_and_normalised_after(self, make):
        plain, augmented = make(), make(augment=invert)
        for index in range(2):
            x, y = augmented[index]
            expected = plain[index][0]
            black = preprocess_input(np.zeros((1, 1, 3), "float32"))
            white = preprocess_input(np.full((1, 1, 3), 255.0, "float32"))
            np.testing.assert_allclose(x, black + white - expected, atol=1e-5)
            np.testing.assert_array_equal(y, plain[index][1] + index)

    @pytest.mark.any_backend
    def test_asking_from_many_threads(self, make):
        dataset, again = make(batch_size=2), make(batch_size=2)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: dataset[i % 4], range(40)))
        for i, (x, _) in enumerate(found):
            np.testing.assert_array_equal(x, again[i % 4][0])


class TestEvaluation:
    @pytest.mark.any_backend
    def test_official_transform_in_order(self, make, images):
        dataset = make("validation", batch_size=4)
        assert len(dataset) == 1
        x, y, positions = dataset.batch(0)
        assert positions == [0, 1] and len(x) == 2  # a smaller batch, nothing twice
        for image, (path, _) in zip(x, images.validation, strict=True):
            np.testing.assert_array_equal(image, load_image(path, SIZE, exif_orientation=True))
        dataset.epoch = 5
        np.testing.assert_array_equal(dataset[0][0], x)

    @pytest.mark.any_backend
    def test_a_bad_image_is_left_out(self, make, images):
        images.validation[0][0].write_bytes(b"")
        dataset = make("validation")
        x, y, positions = dataset.batch(0)
        assert positions == [1] and len(x) == len(y) == 1
        assert dataset.skipped == {images.validation[0][0]: "is empty"}

    @pytest.mark.any_backend
    def test_a_batch_of_bad_images_shows_the_next_one(self, make, images):
        images.validation[0][0].unlink()
        dataset = make("validation", batch_size=1)
        assert dataset.batch(0)[2] == dataset.batch(1)[2] == [1]
        assert dataset.skipped == {images.validation[0][0]: "is not there any more"}


class TestFilesThatBecomeBad:
    @pytest.mark.any_backend
    def test_another_of_the_batch_takes_the_place(self, make, images):
        before = make()
        good, positions = before[0][0], before.batch(0)[2]
        images.train[positions[1]][0].write_text("text")
        for _ in range(2):
            dataset = make(threads=3)
            x, y, now = dataset.batch(0)
            assert now == [positions[0], positions[2], positions[2], positions[3]]
            assert dataset.skipped == {images.train[positions[1]][0]: "is text, not an image"}
            np.testing.assert_array_equal(x[[0, 2, 3]], good[[0, 2, 3]])
            assert not np.array_equal(x[1], x[2])  # another crop of it
            np.testing.assert_array_equal(y, np.eye(2)[[images.train[i][1] for i in now]])

    @pytest.mark.any_backend
    def test_a_whole_batch(self, make, images):
        dataset = make()
        order = dataset.order(0)
        for position in order[:4]:
            images.train[position][0].unlink()
        assert dataset.batch(0)[2] == [order[4]] * 4
        assert len(dataset.skipped) == 4

    @pytest.mark.any_backend
    @pytest.mark.parametrize("part", ["train", "validation"])
    def test_all_of_them(self, make, images, part):
        for path, _ in getattr(images, part):
            path.unlink()
        with pytest.raises(NoImageLeft, match="At least one image must be readable. Received: "):
            make(part)[0]


def test_fit_is_given_the_batches_of_each_epoch(make):
    """By Keras' own loop on this backend, from the beginning or from a later epoch on."""

    class Numbered(ImageFiles):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x, np.full_like(y, 10 * self.epoch + index)

    def mean_of_labels(y_true, y_pred):
        return keras.ops.mean(y_true, -1) + 0 * keras.ops.mean(y_pred, -1)

    def fit(first):
        dataset = make()
        dataset.__class__ = Numbered
        layers = [keras.layers.Flatten(), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers])
        model.compile("sgd", mean_of_labels)
        losses, states = [], []
        notes = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda step, logs: losses.append(float(logs["loss"])),
            on_epoch_begin=lambda epoch, logs: states.append(
                [keras.ops.convert_to_numpy(v).tolist() for v in model.non_trainable_variables]
            ),
        )
        callbacks = [EpochSetter(dataset, 3), notes]
        options = {"initial_epoch": first, "epochs": 3, "callbacks": callbacks, "verbose": 0}
        model.fit(dataset, shuffle=False, **options)  # or Keras shuffles the batches itself
        return losses, states

    losses, states = fit(0)
    # The loss shown is the mean so far of the epoch: of (0, 1), (10, 11) and (20, 21).
    np.testing.assert_allclose(losses, [0, 0.5, 10, 10.5, 20, 20.5])
    resumed_losses, resumed_states = fit(2)
    np.testing.assert_allclose(resumed_losses, losses[4:])
    assert resumed_states == states[2:] and states[1] != states[2]


@pytest.mark.any_backend
class TestCrop:
    def test_decoding_smaller_changes_little(self, tmp_path, monkeypatch):
        image = photographs.photograph("china")
        image.save(tmp_path / "a.jpg", quality=95)
        image.save(tmp_path / "a.png")
        decoded = []
        load = JpegImageFile.load
        monkeypatch.setattr(
            JpegImageFile, "load", lambda self: (decoded.append(self.size[0]), load(self))[1]
        )
        for seed in range(5):
            crops = [
                random_crop(
                    tmp_path / name, 64, np.random.default_rng(seed), scale=(0.8, 1.0)
                ).astype("float32")
                for name in ("a.jpg", "a.png")
            ]
            # As much as JPEG itself; a crop that is off by a pixel of the result differs by 20.
            assert np.abs(crops[0] - crops[1]).mean() < 6
        assert min(decoded) == image.width // 4

    def test_mirrored_every_second_time(self, tmp_path):
        ramp = np.broadcast_to(3 * np.arange(64, dtype="uint8")[:, None], (64, 64, 3))
        Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
        falls = 0
        for seed in range(200):
            crop = random_crop(tmp_path / "a.png", 16, np.random.default_rng(seed))
            falls += int(crop[8, 0, 0] > crop[8, -1, 0])
        assert 75 < falls < 125


def test_epochs_differ_without_a_callback(make):
    data = make()
    model = keras.Sequential(
        [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(data.classes)]
    )
    model.compile("sgd", "mse")
    seen = []
    end = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: seen.append(data.epoch))
    model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[end])
    assert np.diff(seen).tolist() == [1, 1]
    later = data.batch(0)[0]
    data.epoch = 0
    assert np.abs(later - data.batch(0)[0]).max() > 0.1
