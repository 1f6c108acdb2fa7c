"""Random changes of training images and their labels, made of Keras' preprocessing layers."""

import threading

import keras
import numpy as np

from keras_internimage.preprocessing import MEAN, STD
from keras_internimage.training.rand_augment import Operations, saturation
from keras_internimage.training.recipes import check_resolved

# Explicit: the global data format and data type policy must not reach the layers. "seed" only makes
# their random state; each call sets it.
_ARGUMENTS = {"data_format": "channels_last", "dtype": "float32", "seed": 0}
_VALUES = {"value_range": (0, 255)}


class Augmentation:
    """Random changes of a batch: `images, labels = augment(images, labels, seed=(epoch, step))`.

    In this order: a random crop resized to the images' size, mirroring, RandAugment or else random
    brightness, contrast and saturation, erasing, and MixUp or CutMix of the batch. See
    `Recipe` for what each is told. Crops are Pillow's bicubic ones (Keras has no such layer),
    mirrors are NumPy's; the rest are Keras' layers, on the CPU of the backend.

    It may be called from several threads; their calls wait for each other.

    Args:
        recipe: a `Recipe` for one variant.
        seed: int or None. With an int, calls without a seed of their own give the same sequence of
            results each time the program runs.
    """

    def __init__(self, recipe, seed=None):
        check_resolved(recipe)
        self.recipe = recipe
        self._lock = threading.Lock()
        self._random = np.random.default_rng(seed)
        with keras.device("cpu"):
            self._build()

    def _build(self):
        row, layers = self.recipe, keras.layers
        self._operations = self._jitter = None
        if row.rand_augment is not None:
            self._operations = Operations(row.rand_augment, _ARGUMENTS)
        elif row.color_jitter:
            s = row.color_jitter
            # Not RandomColorJitter: it does not pass the data type and data format on to its parts.
            # Brightness is added: by as much as s changes the mean of a photograph (0.45 of 255).
            self._jitter = (
                layers.RandomBrightness(0.45 * s, **_VALUES, **_ARGUMENTS),
                # A single number would only raise the contrast.
                layers.RandomContrast((s, s), **_VALUES, **_ARGUMENTS),
                saturation((1 - s, 1 + s), _ARGUMENTS),
            )
        self._erasing = None
        if row.random_erasing:
            # A single number would be the highest of a random probability.
            p = row.random_erasing
            self._erasing = layers.RandomErasing(
                (p, p), scale=(0.02, 1 / 3), **_VALUES, **_ARGUMENTS
            )
        self._mixup = layers.MixUp(row.mixup, **_ARGUMENTS) if row.mixup else None
        # A single number would be the highest of a random alpha.
        self._cutmix = layers.CutMix((row.cutmix, row.cutmix), **_ARGUMENTS) if row.cutmix else None

    def __call__(self, images, labels, seed=None):
        """Changes a batch.

        Args:
            images: `(N, H, W, 3)`, uint8 or floats in [0, 255]; not changed.
            labels: `(N, classes)`, one-hot or soft.
            seed: int or tuple of ints, at least 0: the same seed gives the same result for the same
                batch, whatever was called before. None draws one.

        Returns:
            `(images, labels)`, new float32 NumPy arrays of the same shapes: images in [0, 255], not
            yet normalised (`keras_internimage.preprocess_input`), soft labels whose rows have the
            sums they had.

        Raises:
            ValueError: shapes are not as said, images are out of range, or a seed is negative.
        """
        images = _images(images)
        labels = np.array(labels, "float32")
        if labels.ndim != 2 or len(labels) != len(images):
            raise ValueError(
                "`labels` must be one-hot, of shape (N, classes), for images (N, H, W, 3). "
                f"Received: labels.shape={labels.shape}, images.shape={images.shape}"
            )
        if not len(images):
            return images, labels
        with self._lock, keras.device("cpu"):
            random = self._random if seed is None else np.random.default_rng(_entropy(seed))
            return self._apply(images, labels, random)

    def _apply(self, images, labels, random):
        row = self.recipe

        def run(layer, data, transformation=None):
            data = keras.ops.convert_to_tensor(data)
            if transformation is None:
                transformation = _draw(layer, data, random)
            return _array(layer.transform_images(data, transformation, training=True))

        if row.crop_scale is not None:
            images = np.stack([self._crop(image, random) for image in images])
        if row.flip:
            mirrored = random.random(len(images)) < row.flip
            images[mirrored] = images[mirrored, :, ::-1]
        if self._operations is not None:
            self._operations(images, random, run)
        for layer in self._jitter or ():
            images = run(layer, images)
        if self._erasing is not None:
            images = self._erase(images, random)
        return self._mix(images, labels, random)

    def _crop(self, image, random):
        """A part of the image, resized to its size."""
        from PIL import Image

        height, width = image.shape[:2]
        box = crop_box(height, width, self.recipe.crop_scale, self.recipe.crop_ratio, random)
        image = Image.fromarray(np.round(image).astype("uint8"))
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return np.asarray(image, "float32")

    def _erase(self, images, random):
        data = keras.ops.convert_to_tensor(images)
        transformation = _draw(self._erasing, data, random)
        # Noise of ImageNet's mean and deviation, as in the official program. The layer's own has
        # the mean 0 and the deviation 255, so that half of it is black.
        noise = random.standard_normal(images.shape, "float32") * (255 * np.float32(STD))
        noise = np.clip(noise + 255 * np.float32(MEAN), 0, 255)
        transformation["fill_value"] = keras.ops.convert_to_tensor(noise)
        return _array(self._erasing.transform_images(data, transformation))

    def _mix(self, images, labels, random):
        layers = [layer for layer in (self._mixup, self._cutmix) if layer is not None]
        if not layers or random.random() >= self.recipe.mix_probability:
            return images, labels
        layer = layers[-1]
        if len(layers) == 2 and random.random() >= self.recipe.switch_probability:
            layer = layers[0]
        _reseed(layer, random)
        data = {
            "images": keras.ops.convert_to_tensor(images),
            "labels": keras.ops.convert_to_tensor(labels),
        }
        data = layer(data, training=True)
        return _array(data["images"]), _array(data["labels"])


def augmentation(recipe, seed=None):
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


def crop_box(height, width, scale, ratio, random):
    """A random part of an image: (left, top, right, bottom) in pixels.

    Its area is uniform between `scale` of the image's, the logarithm of its width over height
    between those of `ratio`; after ten that do not fit, the middle at the nearest ratio.
    """
    low, high = np.log(ratio)
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = np.exp(random.uniform(low, high))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(width - w + 1), random.integers(height - h + 1)
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _images(images):
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(
            f"`images` must have the shape (N, H, W, 3). Received: images.shape={array.shape}"
        )
    if array.dtype != np.uint8 and array.size:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255):
            raise ValueError(
                "`images` must be in [0, 255], not yet normalised. "
                f"Received: values from {low} to {high}"
            )
    # A copy: PyTorch shares the memory of arrays, and RandomBrightness adds in place.
    return np.array(array, "float32")


def _entropy(seed):
    seeds = seed if isinstance(seed, (tuple, list)) else (seed,)
    if not seeds or any(
        isinstance(s, bool) or not isinstance(s, (int, np.integer)) or s < 0 for s in seeds
    ):
        raise ValueError(
            f"`seed` must be an int or a tuple of ints, at least 0. Received: seed={seed!r}"
        )
    return [int(s) for s in seeds]


def _array(tensor):
    """A tensor as an array that may be written to: JAX's and TensorFlow's own may not."""
    return np.require(keras.ops.convert_to_numpy(tensor), "float32", "W")


def _draw(layer, data, random):
    _reseed(layer, random)
    return layer.get_random_transformation(data, training=True)


def _reseed(layer, random):
    generator = getattr(layer, "generator", None)
    if generator is not None:
        generator.state.assign(np.array([random.integers(2**31), 0]))
