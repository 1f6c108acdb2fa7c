"""Batches of images and masks from files: for every backend, with threads.

As with `ImageFiles`, what a batch holds is a function of (seed, epoch, index) and of the files
alone.
"""

import math

import numpy as np

from keras_internimage.data.batches import CHANGE, CROP, FileBatches
from keras_internimage.data.mask_files import IGNORED, read_mask
from keras_internimage.preprocessing import preprocess_input, read_image
from keras_internimage.training.mask_augmentations import MaskAugmentation


class SegmentationFiles(FileBatches):
    """Batches `(images, masks)`: float32 `(N, H, W, 3)`, normalised, and int32 `(N, H, W)`.

    Pixels of a mask that count nowhere are 255. For training, an epoch visits every image once, in
    an order of its own, and takes a crop of each as `augmentation` says; all batches have one
    shape. For evaluation, files keep their order, images are whole, and the last batch may be
    smaller.

    Images of different sizes in one batch are filled up at the right and below: images with 0,
    which is ImageNet's mean, masks with 255. Batches of one image are filled up as far as
    `size_multiple` says. JAX and XLA compile a program for each size they meet: a `size_multiple`
    of, say, 128 lets them meet few.

    A file that cannot be read is noted in `skipped`. In training, another image of the batch takes
    its place; in evaluation, it is left out of the batch.

    Args:
        files: `(image, mask)` of each pair, as from `scan_segmentation`.
        encoding: how values of masks become class numbers: that of `scan_segmentation`.
        batch_size: images in a batch.
        training: whether the batches are for training.
        seed: integer from which all randomness follows.
        augmentation: for training, a `training.MaskAugmentation`; None takes the default one.
        change_pair: None, or for training a function `(image, mask, seed) -> (image, mask)`
            of a crop, uint8 `(h, w, 3)` and int32 `(h, w)`, called in the decoding threads; the
            seed is a tuple of integers.
        outputs: None, or names of a model's outputs: the masks of a batch are then a dict, the
            same for each, as `compile(loss={...})` needs it.
        fit: for evaluation, None or `(long, short)` in pixels: images and masks are resized,
            keeping their ratio, as large as fits into that. None keeps them as they are.
        size_multiple: for evaluation, height and width of a batch are multiples of this.
        multiple: batches in an epoch of training are a multiple of this.
        threads: threads that decode; None takes one for each processor, 16 at most.

    Attributes:
        epoch, skipped: as of `FileBatches`.
    """

    def __init__(
        self,
        files,
        encoding,
        batch_size,
        *,
        training,
        seed=0,
        augmentation=None,
        change_pair=None,
        outputs=None,
        fit=None,
        size_multiple=1,
        multiple=1,
        threads=None,
    ):
        if not training and (augmentation is not None or change_pair is not None):
            raise ValueError(
                "`augmentation` and `change_pair` must be None where `training=False`. Received: "
                f"augmentation={augmentation!r}, change_pair={change_pair!r}"
            )
        if training and fit is not None:
            raise ValueError(
                "`fit` must be None where `training=True`: `augmentation.scale` is for training. "
                f"Received: fit={fit}"
            )
        super().__init__(
            files, batch_size, training=training, seed=seed, multiple=multiple, threads=threads
        )
        self.encoding, self.change_pair = encoding, change_pair
        self.augmentation = MaskAugmentation() if augmentation is None else augmentation
        self.outputs, self.fit, self.size_multiple = outputs, fit, size_multiple

    @classmethod
    def for_training(cls, files, encoding, batch_size, recipe, **options):
        """Batches for training by a `training.Recipe` of segmentation.

        The crop is a square of its `resolution`, the probability of mirroring its `flip`, and the
        rest the default of `MaskAugmentation`. `options` are those of the class.
        """
        options.setdefault(
            "augmentation",
            MaskAugmentation(crop=(recipe.resolution, recipe.resolution), flip=recipe.flip),
        )
        return cls(files, encoding, batch_size, training=True, **options)

    def read(self, epoch, place, position):
        """An image and its mask for a place in the epoch's order, or None if one cannot be read."""
        image, mask = self.files[position]
        path = mask
        try:
            numbers = read_mask(mask, self.encoding)
            path = image
            if not self.training:
                return self._whole(image, numbers)
            random = self.random(epoch, CROP, int(place))
            placement, numbers = self.augmentation.place(numbers, random)
            pixels = read_image(image, at_least=lambda size: placement.size)
        except (FileNotFoundError, ValueError) as error:
            self.skip(path, error)
            return None
        # Outside of `try`: its errors are not the file's.
        pixels = self.augmentation.change(pixels, placement, random)
        if self.change_pair is None:
            return pixels, numbers
        return self.change_pair(pixels, numbers, (self.seed, epoch, CHANGE, int(place)))

    def collate(self, pairs, positions, epoch, index):
        """Images and masks of a batch, filled up to one size."""
        if self.training:
            height, width = self.augmentation.crop
        else:
            height, width = (
                math.ceil(max(mask.shape[axis] for _, mask in pairs) / self.size_multiple)
                * self.size_multiple
                for axis in (0, 1)
            )
        images = np.zeros((len(pairs), height, width, 3), "float32")
        masks = np.full((len(pairs), height, width), IGNORED, "int32")
        for i, (pixels, mask) in enumerate(pairs):
            rows, columns = mask.shape
            images[i, :rows, :columns] = preprocess_input(np.asarray(pixels, "float32"))
            masks[i, :rows, :columns] = mask
        if self.outputs is not None:
            return images, dict.fromkeys(self.outputs, masks)
        return images, masks

    def _whole(self, image, mask):
        from PIL import Image

        rows, columns = mask.shape
        size = columns, rows
        if self.fit is not None:
            long, short = max(self.fit), min(self.fit)
            factor = min(long / max(size), short / min(size))
            size = tuple(max(1, int(side * factor + 0.5)) for side in size)
        pixels = read_image(image, at_least=lambda _: size)
        if pixels.size != (columns, rows) and self.fit is None:
            raise ValueError(
                f"image and mask must have one size. Received: image {pixels.size}, "
                f"mask {(columns, rows)}"
            )
        if pixels.size != size:
            pixels = pixels.resize(size, Image.Resampling.BILINEAR)
        if size != (columns, rows):
            y = ((np.arange(size[1]) + 0.5) * rows / size[1]).astype(int)
            x = ((np.arange(size[0]) + 0.5) * columns / size[0]).astype(int)
            mask = mask[y[:, None], x]
        return np.asarray(pixels), mask
