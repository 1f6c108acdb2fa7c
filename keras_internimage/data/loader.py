"""Batches of images from files, as a `keras.utils.PyDataset`: for every backend, with threads.

What a batch holds is a function of (seed, epoch, index) and of the files alone. A resumed training
therefore sees exactly what an uninterrupted one would have seen.
"""

import dataclasses
import math

import keras
import numpy as np

from keras_internimage.data.balance import balanced_order
from keras_internimage.data.batches import AUGMENT, CHANGE, CROP, FileBatches
from keras_internimage.preprocessing import load_image, preprocess_input, read_image
from keras_internimage.training.augmentations import augmentation, crop_box


class ImageFiles(FileBatches):
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
        if sampling not in (None, "balanced"):
            raise ValueError(
                f"`sampling` must be None or 'balanced'. Received: sampling={sampling!r}"
            )
        if sampling is not None and not training:
            raise ValueError(
                "`sampling` must be None where `training=False`: an evaluation visits every image "
                f"once. Received: sampling={sampling!r}, training=False"
            )
        super().__init__(
            files, batch_size, training=training, seed=seed, multiple=multiple, threads=threads
        )
        self.classes, self.size, self.sampling = classes, size, sampling
        self.change_image, self.augment = change_image, augment
        self.crop = {"scale": crop_scale, "ratio": crop_ratio, "flip": flip}

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

    def visited(self, random):
        """The positions in `files` that an epoch of training visits, in order."""
        if self.sampling == "balanced":
            return balanced_order([label for _, label in self.files], self.classes, random)
        return super().visited(random)

    def collate(self, images, positions, epoch, index):
        """Images and labels of a batch."""
        images = np.stack(images)
        labels = np.zeros((len(positions), self.classes), "float32")
        labels[np.arange(len(positions)), [self.files[i][1] for i in positions]] = 1
        if self.training:
            if self.augment is not None:
                seed = (self.seed, epoch, AUGMENT, index)
                images, labels = self.augment(images, labels, seed=seed)
                images = keras.ops.convert_to_numpy(images)
                labels = keras.ops.convert_to_numpy(labels)
            images = preprocess_input(np.asarray(images, "float32"))
        return images, np.asarray(labels, "float32")

    def read(self, epoch, place, position):
        """An image for a place in the epoch's order, or None if its file cannot be read."""
        path, _ = self.files[position]
        try:
            if not self.training:
                return load_image(path, self.size)
            random = self.random(epoch, CROP, int(place))
            image = random_crop(path, self.size, random, **self.crop)
        except (FileNotFoundError, ValueError) as error:
            self.skip(path, error)
            return None
        # Outside of `try`: its errors are not the file's.
        if self.change_image is None:
            return image
        return self.change_image(image, (self.seed, epoch, CHANGE, int(place)))


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
