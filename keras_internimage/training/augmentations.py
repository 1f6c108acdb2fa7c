"""Random changes of training images and their labels, by Pillow and NumPy."""

import numpy as np

from keras_internimage.preprocessing import MEAN, STD
from keras_internimage.training.mixing import cutmix, mixup
from keras_internimage.training.recipe_types import Recipe
from keras_internimage.training.recipes import check_resolved

# Random erasing: least and greatest share of the image's area, and height over width.
ERASED_SHARE = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)

Seed = int | tuple[int, ...]


class Augmentation:
    """Random changes of a batch: `images, labels = augment(images, labels, seed=(epoch, step))`.

    In this order, for each image by itself: a random crop resized to the image's size, mirroring,
    RandAugment or else random brightness, contrast and saturation, erasing. Then MixUp or CutMix of
    the batch. See `Recipe` for the strength of each. Images are changed by Pillow, 8 bits a value.

    A loader that reads images in threads calls the two halves by themselves: `change_image` for
    each image, `mix` for the batch. All three may be called from several threads at once.

    Args:
        recipe: a `Recipe` for one variant.
        seed: int or None. With an int, calls without a seed of their own give the same sequence of
            results each time the program runs.
    """

    def __init__(self, recipe: Recipe, seed: int | None = None) -> None:
        check_resolved(recipe)
        self.recipe = recipe
        self._random = np.random.default_rng(seed)

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, seed: Seed | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Changes a batch.

        Args:
            images: `(N, H, W, 3)`, uint8, or floats in [0, 255], which are rounded; not changed.
            labels: `(N, K)`, floats: one-hot or soft, several classes (0 or 1 each), or the targets
                of a regression. They change with MixUp and CutMix only.
            seed: int or tuple of ints, at least 0: the same seed gives the same result for the same
                batch, whatever was called before. None draws one.

        Returns:
            `(images, labels)`, new float32 NumPy arrays of the same shapes: images in [0, 255], not
            yet normalised (`keras_internimage.preprocess_input`), and labels. Rows of labels have
            the sums they had where all had the same.

        Raises:
            ValueError: shapes are not as said, images are out of range, or a seed is negative.
        """
        images = _images(images)
        labels = _labels(labels, images)
        if seed is None:
            entropy = self._random.integers(2**32, size=4).tolist()
        else:
            entropy = entropy_of(seed)
        # Not (*seed, index): trailing zeros would not change what NumPy makes of it.
        of_batch, *of_images = np.random.SeedSequence(entropy).spawn(1 + len(images))
        changed = np.empty(images.shape, "float32")
        for index, sequence in enumerate(of_images):
            changed[index] = self._change(images[index], np.random.default_rng(sequence))
        return self._mix(changed, labels, np.random.default_rng(of_batch))

    def change_image(self, image: np.ndarray, seed: Seed) -> np.ndarray:
        """All changes of one image by itself: those of a call but for MixUp and CutMix.

        Args:
            image: `(H, W, 3)`, uint8; not changed.
            seed: int or tuple of ints, at least 0, from which all randomness follows.

        Returns:
            A new uint8 array of the same shape.

        Raises:
            ValueError: the image or the seed is not as said.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                "`image` must be uint8 of the shape (H, W, 3). "
                f"Received: image.dtype={image.dtype}, image.shape={image.shape}"
            )
        return self._change(image, np.random.default_rng(entropy_of(seed)))

    def mix(
        self, images: np.ndarray, labels: np.ndarray, seed: Seed
    ) -> tuple[np.ndarray, np.ndarray]:
        """MixUp or CutMix of a batch, if the recipe has them.

        Args:
            images: `(N, H, W, 3)`, any type.
            labels, seed: as for a call.

        Returns:
            `(images, labels)`, float32 NumPy arrays of the same shapes.

        Raises:
            ValueError: shapes or the seed are not as said.
        """
        labels = _labels(labels, images)
        random = np.random.default_rng(entropy_of(seed))
        return self._mix(np.asarray(images, "float32"), labels, random)

    def _change(self, pixels, random):
        from PIL import Image

        row, image = self.recipe, Image.fromarray(pixels)
        if row.crop_scale is not None:
            box = crop_box(*pixels.shape[:2], row.crop_scale, row.crop_ratio, random)
            image = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
        if random.random() < row.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if row.rand_augment is not None:
            from keras_internimage.training.rand_augment import rand_augment

            image = rand_augment(image, row.rand_augment, random)
        elif row.color_jitter:
            image = _color_jitter(image, row.color_jitter, random)
        pixels = np.array(image)
        if random.random() < row.random_erasing:
            _erase(pixels, random)
        return pixels

    def _mix(self, images, labels, random):
        row = self.recipe
        if not (row.mixup or row.cutmix) or random.random() >= row.mix_probability:
            return images, labels
        both = row.mixup and row.cutmix
        if not row.mixup or (both and random.random() < row.switch_probability):
            return cutmix(images, labels, row.cutmix, random)
        return mixup(images, labels, row.mixup, random)


def augmentation(recipe: Recipe, seed: int | None = None) -> Augmentation:
    """The random changes of a recipe: a callable `augment(images, labels, seed=None)`.

    Args:
        recipe: a `Recipe` for one variant.
        seed: int, or None for another sequence each time.

    Returns:
        An `Augmentation`.

    Raises:
        ValueError: `recipe` is not as said above.
    """
    return Augmentation(recipe, seed)


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    random: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random part of an image: (left, top, right, bottom) in pixels.

    Its area is uniform between `scale` of the image's, the logarithm of its width over height
    between those of `ratio`; after ten that do not fit, the middle at the nearest ratio.
    """
    for _ in range(10):
        w, h = _rectangle(height * width, scale, ratio, random)
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(width - w + 1), random.integers(height - h + 1)
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _rectangle(area, scale, ratio, random):
    """Width and height of a random rectangle, by shares of an area and width over height."""
    low, high = np.log(ratio)
    area = area * random.uniform(*scale)
    aspect = np.exp(random.uniform(low, high))
    return round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))


def _color_jitter(image, strength, random):
    """Brightness, contrast and saturation times 1 - strength to 1 + strength, in random order."""
    from PIL import ImageEnhance

    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in random.permutation(len(kinds)):
        image = kinds[index](image).enhance(random.uniform(1 - strength, 1 + strength))
    return image


def _erase(pixels, random):
    """Fills a rectangle of `pixels`, in place, with noise of ImageNet's mean and deviation."""
    height, width = pixels.shape[:2]
    for _ in range(10):
        w, h = _rectangle(height * width, ERASED_SHARE, ERASED_RATIO, random)
        if w < width and h < height:
            left, top = random.integers(width - w + 1), random.integers(height - h + 1)
            noise = random.standard_normal((h, w, 3), "float32") * np.float32(STD)
            noise = np.clip(255 * (noise + np.float32(MEAN)), 0, 255)
            pixels[top : top + h, left : left + w] = np.round(noise).astype("uint8")
            return


def _images(images):
    """Images as uint8."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(
            f"`images` must have the shape (N, H, W, 3). Received: images.shape={array.shape}"
        )
    if array.dtype == np.uint8 or not array.size:
        return array.astype("uint8", copy=False)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise ValueError(
            "`images` must be in [0, 255], not yet normalised. "
            f"Received: values from {low} to {high}"
        )
    return np.round(array).astype("uint8")


def _labels(labels, images):
    """Labels as a new float32 array."""
    labels = np.array(labels, "float32")
    if labels.ndim != 2 or len(labels) != len(images):
        raise ValueError(
            "`labels` must be one-hot, or other floats, of shape (N, K), for images (N, H, W, 3). "
            f"Received: labels.shape={labels.shape}, images.shape={np.shape(images)}"
        )
    return labels


def entropy_of(seed):
    seeds = seed if isinstance(seed, (tuple, list)) else (seed,)
    if not seeds or any(
        isinstance(s, bool) or not isinstance(s, (int, np.integer)) or s < 0 for s in seeds
    ):
        raise ValueError(
            f"`seed` must be an int or a tuple of ints, at least 0. Received: seed={seed!r}"
        )
    return [int(s) for s in seeds]
