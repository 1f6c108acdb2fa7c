"""What augmented images and labels are, of arrays and of files."""

import threading

import keras
import numpy as np
import photographs as files
import pytest
from PIL import Image

from keras_internimage import preprocess_input, training
from keras_internimage.data import ImageFiles, loader, scan
from keras_internimage.training import augmentations

pytestmark = pytest.mark.any_backend

NAMES = [("finetune", "T"), ("in1k-224", "T"), ("22kto1k-384", "L")]
PLAIN = {"crop_scale": None, "flip": 0.0, "color_jitter": 0.0}


@pytest.fixture(scope="module")
def photographs():
    """Eight different parts of two photographs, uint8 of 64 pixels, and one-hot labels."""
    from sklearn.datasets import load_sample_images

    parts = [
        np.asarray(Image.fromarray(image[40:, x : x + 380]).resize((64, 64)))
        for image in load_sample_images().images
        for x in (0, 80, 160, 240)
    ]
    return np.stack(parts), np.eye(8, 5, dtype="float32")[[0, 1, 2, 3, 4, 0, 1, 2]]


def recipe(name="finetune", variant="T", **changes):
    return training.recipe(name, variant, **changes)


@pytest.fixture(scope="module", params=NAMES, ids=lambda name: name[0])
def augment(request):
    return training.augmentation(recipe(*request.param), seed=3)


def test_images_and_labels_are_what_they_should_be(augment, photographs):
    images, labels = photographs
    given = images.copy(), labels.copy()
    changed, soft = augment(images, labels, seed=(1, 2))
    assert type(changed) is type(soft) is np.ndarray
    assert changed.dtype == soft.dtype == np.float32
    assert changed.shape == images.shape and soft.shape == labels.shape
    assert changed.flags.writeable and soft.flags.writeable
    assert changed.min() >= 0 and changed.max() <= 255 and changed.max() > 100
    assert soft.min() >= 0
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-5)
    # Every image changes, in its own way; none is blank.
    difference = np.abs(changed - images).mean((1, 2, 3))
    assert (difference > 1).all(), difference
    assert (changed.std((1, 2, 3)) > 5).all()
    np.testing.assert_array_equal(images, given[0])
    np.testing.assert_array_equal(labels, given[1])
    mixes = augment.recipe.mixup > 0
    assert np.array_equal(soft, labels) != mixes


def test_the_same_seed_gives_the_same_result(augment, photographs):
    first = augment(*photographs, seed=(4, 0))
    other = augment(*photographs, seed=(4, 1))
    augment(*photographs)
    again = augment(*photographs, seed=(4, 0))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_calls_without_a_seed_follow_the_constructors(photographs):
    row = recipe()
    a, b, c = (training.augmentation(row, seed) for seed in (1, 1, 2))
    first, second = a(*photographs)[0], a(*photographs)[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(b(*photographs)[0], first)
    np.testing.assert_array_equal(b(*photographs)[0], second)
    assert not np.array_equal(c(*photographs)[0], first)


def test_threads_do_not_disturb_each_other(augment, photographs):
    expected = [augment(*photographs, seed=i)[0] for i in range(4)]
    results = [None] * 4

    def work(i):
        results[i] = augment(*photographs, seed=i)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, value)


def test_global_settings_do_not_reach_it(photographs):
    row = recipe(random_erasing=1.0)
    expected = training.augmentation(row)(*photographs, seed=1)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("mixed_bfloat16")
    changed = training.augmentation(row)(*photographs, seed=1)
    np.testing.assert_array_equal(changed[0], expected[0])


def test_float_and_uint8_images_are_the_same(photographs):
    images, labels = photographs
    augment = training.augmentation(recipe())
    a, _ = augment(images, labels, seed=1)
    b, _ = augment(images.astype("float32"), labels, seed=1)
    np.testing.assert_array_equal(a, b)


def test_mirroring(photographs):
    images, labels = photographs
    augment = training.augmentation(recipe(**{**PLAIN, "flip": 0.5}))
    changed, _ = augment(images, labels, seed=0)
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(changed, images, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(changed, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True)) and any(mirrored) and any(kept)


def test_crops_are_parts_of_the_image():
    random = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        box = augmentations.crop_box(40, 60, (0.2, 0.6), (3 / 4, 4 / 3), random)
        left, top, right, bottom = box
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
        assert 0.7 < (right - left) / (bottom - top) < 1.43
        areas.append((right - left) * (bottom - top) / 2400)
    assert 0.17 < min(areas) < 0.25 and 0.55 < max(areas) < 0.65
    # Nothing fits: the middle.
    assert augmentations.crop_box(10, 100, (1, 1), (1, 1), random) == (45, 0, 55, 10)


def test_jitter_goes_both_ways_and_keeps_its_bounds(photographs):
    images = np.repeat(photographs[0][:1], 64, 0)
    labels = np.ones((64, 1), "float32")
    augment = training.augmentation(recipe(**{**PLAIN, "color_jitter": 0.2}))
    grey, contrast, colour = [], [], []
    changed, _ = augment(images // 2 + 50, labels, seed=5)  # far from 0 and 255
    base = (images[0] // 2 + 50).astype("float32")
    for image in changed:
        grey.append(image.mean() - base.mean())
        # Each by itself: brightness multiplies all three, contrast the last two.
        contrast.append(image.std() / image.mean() / (base.std() / base.mean()))
        colour.append(
            np.ptp(image, -1).mean() / image.std() / (np.ptp(base, -1).mean() / base.std())
        )
    limit = 0.2 * 0.45 * 255
    assert -limit * 1.2 < min(grey) < -0.5 * limit and 0.5 * limit < max(grey) < 1.2 * limit
    for values in (contrast, colour):
        assert 0.6 < min(values) < 0.95 and 1.05 < max(values) < 1.5


def test_erasing_fills_a_rectangle_with_noise(photographs):
    images, labels = photographs
    augment = training.augmentation(recipe(**{**PLAIN, "random_erasing": 1.0}))
    changed, same = augment(np.zeros_like(images), labels, seed=1)
    erased = changed.any(-1)
    share = erased.mean((1, 2))
    assert (share > 0.01).all() and (share < 0.36).all()
    for mask, image in zip(erased, changed, strict=True):
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.95
        # ImageNet's colours and their spread, not half black as the layer's own noise.
        assert 90 < image[mask].mean() < 140 and 45 < image[mask].std() < 75
    np.testing.assert_array_equal(same, labels)
    some = training.augmentation(recipe(**{**PLAIN, "random_erasing": 0.25}))
    changed = [some(images, labels, seed=i)[0] for i in range(20)]
    rate = np.mean([(c != images).any((1, 2, 3)) for c in changed])
    assert 0.13 < rate < 0.37


def grey_levels():
    """Images of one value each, so that what was mixed can be read off; the label says which."""
    images = np.arange(8, dtype="float32")[:, None, None, None] * 30 + np.zeros((8, 32, 32, 3))
    return images, np.eye(8, dtype="float32")


def test_mixup_mixes_images_as_labels():
    images, labels = grey_levels()
    augment = training.augmentation(recipe(**{**PLAIN, "mixup": 0.8}))
    changed, soft = augment(images, labels, seed=2)
    np.testing.assert_allclose(changed.mean((1, 2, 3)), soft @ (np.arange(8) * 30), atol=1e-2)
    assert (np.ptp(changed, (1, 2, 3)) < 1e-3).all() and (soft.max(1) < 0.999).sum() > 2


def test_cutmix_cuts_images_as_labels():
    images, labels = grey_levels()
    augment = training.augmentation(recipe(**{**PLAIN, "cutmix": 1.0}))
    weights = []
    for seed in range(6):
        changed, soft = augment(images, labels, seed=seed)
        for i in range(8):
            share = (changed[i, :, :, 0] == images[i, 0, 0, 0]).mean()
            assert abs(share - soft[i, i]) < 0.07, (share, soft[i])
            weights.append(soft[i, i])
    # Beta(1, 1) is uniform; a single `factor` of the layer would draw alpha, too.
    weights = np.array([w for w in weights if w < 0.999])
    assert 0.35 < weights.mean() < 0.65 and weights.std() > 0.2


@pytest.mark.parametrize("switch, expected", [(0.0, "mixup"), (1.0, "cutmix"), (0.5, "both")])
def test_mixup_and_cutmix_take_turns(switch, expected):
    images, labels = grey_levels()
    row = recipe(**{**PLAIN, "mixup": 0.8, "cutmix": 1.0, "switch_probability": switch})
    augment = training.augmentation(row)
    cut = [np.ptp(augment(images, labels, seed=i)[0], (1, 2, 3)).max() > 1 for i in range(12)]
    assert {"mixup": not any(cut), "cutmix": all(cut), "both": 0 < sum(cut) < 12}[expected]


def test_mixing_may_be_left_out():
    images, labels = grey_levels()
    augment = training.augmentation(recipe(**{**PLAIN, "mixup": 0.8, "mix_probability": 0.0}))
    changed, soft = augment(images, labels)
    np.testing.assert_array_equal(changed, images)
    np.testing.assert_array_equal(soft, labels)


def test_rand_augment_changes_half_of_the_times(photographs):
    images, labels = photographs
    row = recipe("in1k-224", "T", **{**PLAIN, "random_erasing": 0, "mixup": 0, "cutmix": 0})
    augment = training.augmentation(row)
    changed = [augment(images, labels, seed=i)[0] for i in range(6)]
    kept = np.mean([(c == images).all((1, 2, 3)) for c in changed])
    assert 0.08 < kept < 0.45  # two changes, each made half of the times: a quarter


def test_the_two_halves_by_themselves(photographs):
    images, labels = photographs
    augment = training.augmentation(recipe("in1k-224", "T"))
    given = images[0].copy()
    first, again, other = (augment.change_image(images[0], seed) for seed in ((1, 2), (1, 2), 3))
    assert first.dtype == np.uint8 and first.shape == given.shape
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(images[0], given)
    mixed, soft = augment.mix(images, labels, 5)
    assert mixed.dtype == soft.dtype == np.float32 and not np.array_equal(soft, labels)
    np.testing.assert_array_equal(augment.mix(images, labels, 5)[0], mixed)
    # Nothing to mix: only another type.
    mixed, soft = training.augmentation(recipe()).mix(images, labels, 5)
    np.testing.assert_array_equal(mixed, images.astype("float32"))
    np.testing.assert_array_equal(soft, labels)


def test_files_are_changed_in_the_decoding_threads(tmp_path, monkeypatch):
    """By seed, epoch and place, whatever the threads and what was read before."""
    images = scan(files.folder(tmp_path / "data", images=5), validation_split=0.2)
    row = recipe("in1k-224", "T")
    threads, results = set(), []
    change = augmentations.Augmentation.change_image

    def noted(*arguments):
        threads.add(threading.current_thread().name.split("_")[0])
        return change(*arguments)

    monkeypatch.setattr(augmentations.Augmentation, "change_image", noted)
    for count, order in ((1, [(0, 0), (0, 1), (1, 0), (1, 1)]), (4, [(1, 1), (1, 0), (0, 0)])):
        data = ImageFiles.for_training(images.train, 2, 32, 4, row, seed=7, threads=count)
        found = {}
        for data.epoch, index in order:
            found[data.epoch, index] = data.batch(index)
        data.close()
        results.append(found)
    assert threads == {"decode"}
    everything, resumed = results
    for key, (x, y, _) in resumed.items():
        np.testing.assert_array_equal(x, everything[key][0])
        np.testing.assert_array_equal(y, everything[key][1])
    assert not np.array_equal(everything[0, 0][0], everything[1, 0][0])
    # Crop and mirror of the file, the image's own changes, the batch's.
    crops = [
        loader.random_crop(
            images.train[position][0], 32, np.random.default_rng((7, 1, 1, 4 + place))
        )
        for place, position in enumerate(everything[1, 1][2])
    ]
    rest = training.augmentation(recipe("in1k-224", "T", crop_scale=None, flip=0.0))
    x = np.stack([change(rest, crop, (7, 1, 3, 4 + i)) for i, crop in enumerate(crops)])
    y = np.eye(2)[[images.train[position][1] for position in everything[1, 1][2]]]
    x, y = rest.mix(x, y, (7, 1, 2, 1))
    np.testing.assert_array_equal(everything[1, 1][0], preprocess_input(x))
    np.testing.assert_array_equal(everything[1, 1][1], y)


def test_labels_of_several_classes_and_of_regressions(photographs):
    """They stay as they are, or are mixed as the images are."""
    images, _ = photographs
    labels = np.random.default_rng(0).integers(0, 2, (8, 3)).astype("float64")
    targets = np.arange(8.0)[:, None] - 3.5
    for values in (labels, targets):
        _, same = training.augmentation(recipe())(images, values, seed=1)
        np.testing.assert_array_equal(same, values.astype("float32"))
    greys, _ = grey_levels()
    mixing = training.augmentation(recipe(**{**PLAIN, "mixup": 0.8}))
    changed, mixed = mixing(greys, targets, seed=2)
    np.testing.assert_allclose(changed.mean((1, 2, 3)) / 30 - 3.5, mixed[:, 0], atol=1e-2)


def test_inputs_that_are_refused(photographs):
    images, labels = photographs
    augment = training.augmentation(recipe())
    with pytest.raises(ValueError, match=r"`images` must have the shape \(N, H, W, 3\)"):
        augment(images[0], labels)
    with pytest.raises(ValueError, match=r"must be in \[0, 255\].*from -1"):
        augment(images.astype("float32") - 1 - images.min(), labels)
    with pytest.raises(ValueError, match="must be in"):
        augment(np.where(images > 100, np.nan, images), labels)
    with pytest.raises(ValueError, match="`labels` must be one-hot"):
        augment(images, labels.argmax(1))
    with pytest.raises(ValueError, match="`image` must be uint8.*float32"):
        augment.change_image(images[0].astype("float32"), 1)
    with pytest.raises(ValueError, match=r"`image` must be uint8.*image.shape=\(64, 64\)"):
        augment.change_image(images[0, :, :, 0], 1)
    with pytest.raises(ValueError, match="`labels` must be one-hot"):
        augment.mix(images, labels[:3], 1)
    for seed in (-1, (1, -2), 1.5, (), True):
        with pytest.raises(ValueError, match="`seed` must be an int or a tuple of ints"):
            augment(images, labels, seed=seed)
    empty = augment(images[:0], labels[:0])
    assert empty[0].shape == (0, 64, 64, 3)
