"""Batches of images from files, as a `keras.utils.PyDataset`: for every backend, with threads.

What a batch holds is a function of (seed, epoch, index) and of the files alone. A resumed training
therefore sees exactly what an uninterrupted one would have seen.
"""

import concurrent.futures
import dataclasses
import math
import os
import threading

import keras
import numpy as np

from keras_internimage.data.balance import balanced_order
from keras_internimage.data.check import explain
from keras_internimage.preprocessing import load_image, preprocess_input, read_image
from keras_internimage.training.augmentations import augmentation, crop_box

# Streams of random numbers of an epoch; each has its own, whatever the others use.
_ORDER, _CROP, _AUGMENT, _CHANGE = range(4)
# Batches made before they are asked for.
AHEAD = 3


class NoImageLeft(ValueError):
    """None of the files of a batch can be read any more, nor any other."""


class ImageFiles(keras.utils.PyDataset):
    """Batches `(images, labels)` of image files.

    For training, an epoch visits every image once, in an order of its own. From each it takes a
    random crop, mirrors some, applies `change_image` and `augment`, and normalises. The last batch
    is filled up with images from the epoch's beginning, so that all batches have one shape: XLA
    compiles a second program for a second shape. For evaluation, files keep their order, the
    images are those of `load_image`, and the last batch may be smaller.

    A file that cannot be read is noted in `skipped`. In training, another image of the batch takes
    its place; in evaluation, it is left out of the batch.

    Args:
        files: `(path, label)` of each image, as from `scan`.
        classes: number of classes.
        size: side of the images in pixels.
        batch_size: images in a batch.
        training: whether the batches are for training.
        seed: integer from which all randomness follows.
        change_image: None, or a function `(image, seed) -> image` of an image, uint8
            `(size, size, 3)`, called in the decoding threads; the seed is a tuple of integers.
        augment: None, or a function `(images, labels, seed) -> (images, labels)` of a batch: images
            are uint8 `(N, size, size, 3)`, labels one-hot `(N, classes)`, the seed is a tuple of
            integers; what it returns is float, still in `[0, 255]`.
        multiple: batches in an epoch are a multiple of this.
        crop_scale, crop_ratio: least and greatest share of the image's area, and width over height,
            of a random crop; None for the central square.
        flip: probability of mirroring an image, left to right.
        sampling: for training, None visits every image once in an epoch; "balanced" visits as many
            images, an equal share of each class, those of small classes several times.
        threads: threads that decode; None takes one for each processor, 16 at most.

    Attributes:
        epoch: the epoch, from 0, whose batches are given. Keras' `on_epoch_end` counts it up, also
            once more where Keras builds the model first; `EpochSetter` sets it to what `fit` says.
        skipped: reasons by path.
    """

    def __init__(
        self,
        files,
        classes,
        size,
        batch_size,
        *,
        training,
        seed=0,
        change_image=None,
        augment=None,
        multiple=1,
        crop_scale=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        flip=0.5,
        sampling=None,
        threads=None,
    ):
        # Keras' own threads hand batches over from one epoch to the next after an early end, and
        # start before the dataset hears of the new epoch. These here know what they work on.
        super().__init__(workers=1)
        if not files:
            raise ValueError("files must hold at least one image. Received: files=()")
        if sampling not in (None, "balanced"):
            raise ValueError(
                f"`sampling` must be None or 'balanced'. Received: sampling={sampling!r}"
            )
        if sampling is not None and not training:
            raise ValueError(
                "`sampling` must be None where `training=False`: an evaluation visits every image "
                f"once. Received: sampling={sampling!r}, training=False"
            )
        self.files, self.classes, self.size = tuple(files), classes, size
        self.sampling = sampling
        self.batch_size, self.training, self.seed = batch_size, training, seed
        self.change_image, self.augment = change_image, augment
        self.crop = {"scale": crop_scale, "ratio": crop_ratio, "flip": flip}
        self.epoch, self.skipped = 0, {}
        self.batches = math.ceil(len(self.files) / batch_size)
        if training:
            self.batches = math.ceil(self.batches / multiple) * multiple
        threads = threads or min(16, os.cpu_count() or 1)
        self._decoders = concurrent.futures.ThreadPoolExecutor(threads, "decode")
        self._makers = concurrent.futures.ThreadPoolExecutor(2, "batch")
        self._lock = threading.Lock()
        self._coming = {}  # (epoch, index) -> future

    @classmethod
    def for_training(cls, files, classes, size, batch_size, recipe, **options):
        """Batches for training by a `training.Recipe`.

        Crops and mirroring are made of the files themselves, which is sharper than of images of the
        model's size; the rest of the recipe is `training.augmentation`. `options` are those of
        the class.
        """
        rest = augmentation(dataclasses.replace(recipe, crop_scale=None, flip=0.0))
        return cls(
            files,
            classes,
            size,
            batch_size,
            training=True,
            change_image=rest.change_image,
            augment=rest.mix,
            crop_scale=recipe.crop_scale,
            crop_ratio=recipe.crop_ratio,
            flip=recipe.flip,
            **options,
        )

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        return self.batch(index)[:2]

    def on_epoch_end(self):
        """Called by Keras."""
        self.epoch += self.training

    def batch(self, index):
        """Images, labels and positions (in `files`) of a batch of this epoch."""
        epoch = self.epoch
        with self._lock:
            wanted = [(epoch, ahead) for ahead in range(index, index + 1 + AHEAD)]
            # At an epoch's end, the next one's first batches: they are made during validation.
            wanted = [
                (e + i // self.batches, i % self.batches) if self.training else (e, i)
                for e, i in wanted
                if self.training or i < self.batches
            ]
            for key in set(self._coming) - set(wanted):
                self._coming.pop(key).cancel()
            for key in wanted:
                if key not in self._coming:
                    self._coming[key] = self._makers.submit(self._make, *key)
            future = self._coming.pop((epoch, index))
        return future.result()

    def close(self):
        """Ends the threads; what they have not begun is not made."""
        self._makers.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def order(self, epoch):
        """The positions in `files` that an epoch visits, in order, filled up to whole batches."""
        if not self.training:
            return np.arange(len(self.files))
        random = self._random(epoch, _ORDER)
        if self.sampling == "balanced":
            order = balanced_order([label for _, label in self.files], self.classes, random)
        else:
            order = random.permutation(len(self.files))
        return np.resize(order, self.batches * self.batch_size)  # repeats from its beginning

    def _random(self, epoch, stream, *more):
        return np.random.default_rng((self.seed, epoch, stream, *more))

    def _make(self, epoch, index):
        order = self.order(epoch)
        first = index * self.batch_size
        places = range(first, min(first + self.batch_size, len(order)))
        futures = [
            self._decoders.submit(self._read, epoch, place, order[place]) for place in places
        ]
        images = [future.result() for future in futures]
        positions = [int(order[place]) for place in places]
        if any(image is None for image in images):
            images, positions = self._without_bad(epoch, order, places, images, positions)
        images = np.stack(images)
        labels = np.zeros((len(positions), self.classes), "float32")
        labels[np.arange(len(positions)), [self.files[i][1] for i in positions]] = 1
        if self.training:
            if self.augment is not None:
                seed = (self.seed, epoch, _AUGMENT, index)
                images, labels = self.augment(images, labels, seed=seed)
                images = keras.ops.convert_to_numpy(images)
                labels = keras.ops.convert_to_numpy(labels)
            images = preprocess_input(np.asarray(images, "float32"))
        return images, np.asarray(labels, "float32"), positions

    def _read(self, epoch, place, position):
        """An image for a place in the epoch's order, or None if its file cannot be read."""
        path, _ = self.files[position]
        try:
            if not self.training:
                return load_image(path, self.size)
            random = self._random(epoch, _CROP, int(place))
            image = random_crop(path, self.size, random, **self.crop)
        except FileNotFoundError:
            self.skipped[path] = "is not there any more"
        except ValueError as error:
            try:
                self.skipped[path] = explain(path, error)
            except OSError:  # explain looks into the file
                self.skipped[path] = "cannot be opened any more"
        else:  # outside of `try`: its errors are not the file's
            if self.change_image is None:
                return image
            return self.change_image(image, (self.seed, epoch, _CHANGE, int(place)))
        return None

    def _without_bad(self, epoch, order, places, images, positions):
        good = [i for i, image in enumerate(images) if image is not None]
        if not self.training and good:
            return [images[i] for i in good], [positions[i] for i in good]
        if not good:  # the nearest image after the batch, whatever the batch is for
            for step in range(len(order)):
                position = int(order[(places[-1] + 1 + step) % len(order)])
                image = self._read(epoch, places[0], position)
                if image is not None:
                    break
            else:
                raise NoImageLeft(
                    f"At least one image must be readable. Received: {len(self.files)} files, "
                    f"such as {self.files[0][0]}, that were readable when the training began"
                )
            images, positions, good = [image], [position], [0]
            if not self.training:
                return images, positions
        filled, where = [], []
        for i, place in enumerate(places):
            if i < len(images) and images[i] is not None:
                filled.append(images[i])
                where.append(positions[i])
                continue
            # The next good one of the batch, cut anew: not the same picture twice.
            source = positions[next((g for g in good if g > i), good[0])]
            image = self._read(epoch, place, source)
            filled.append(images[good[0]] if image is None else image)
            where.append(positions[good[0]] if image is None else source)
        return filled, where


class EpochSetter(keras.callbacks.Callback):
    """Tells a dataset which epoch begins, and the model's random layers where they stand.

    The state of each random layer is set from (seed, epoch), so that a resumed training draws what
    an uninterrupted one would have drawn.
    """

    def __init__(self, dataset, seed):
        super().__init__()
        self.dataset, self.seed = dataset, seed

    def on_epoch_begin(self, epoch, logs=None):
        self.dataset.epoch = epoch
        states = [v for v in self.model.non_trainable_variables if v.name == "seed_generator_state"]
        for index, state in enumerate(states):
            words = np.random.SeedSequence((self.seed, epoch, index)).generate_state(2)
            state.assign(words.astype(keras.backend.standardize_dtype(state.dtype)))


def random_crop(path, size, random, *, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5):
    """A random part of an image, resized to a square, sometimes mirrored.

    It is cut from the file's own pixels, and a JPEG file is decoded no larger than that needs.
    Resized bicubic and antialiased. The image is turned upright by its EXIF note.

    Args:
        path: of the image.
        size: side of the result in pixels.
        random: `numpy.random.Generator`.
        scale: least and greatest share of the area, as `training.augmentation` has it. None takes
            the central square.
        ratio: least and greatest width over height.
        flip: probability of mirroring, left to right.

    Returns:
        uint8 array `(size, size, 3)`.
    """
    from PIL import Image

    mirrored = random.random() < flip
    chosen = {}

    def at_least(whole):
        chosen["whole"] = whole
        chosen["box"] = left, top, right, bottom = _box(*whole, random, scale, ratio)
        if min(right - left, bottom - top) < size:
            return whole
        # The size of the whole image at which the crop is as large as the result.
        parts = right - left, bottom - top
        return tuple(math.ceil(side * size / p) for side, p in zip(whole, parts, strict=True))

    image = read_image(path, at_least=at_least)
    # The box of the image as it was decoded.
    x, y = (now / full for now, full in zip(image.size, chosen["whole"], strict=True))
    left, top, right, bottom = chosen["box"]
    box = left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def _box(width, height, random, scale, ratio):
    if scale is None:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    return tuple(map(int, crop_box(height, width, scale, ratio, random)))
