"""Random changes of training images together with their masks, by Pillow and NumPy."""

import dataclasses

import numpy as np

from keras_internimage.training.augmentations import Seed, entropy_of

# Tries to find a crop that no class fills alone.
TRIES = 10


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a crop lies: chosen by the mask, applied to image and mask.

    Attributes:
        size: width and height in pixels that the whole image is resized to.
        box: left, top, right and bottom of the crop in the resized image.
        mirrored: whether the crop is mirrored, left to right.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    mirrored: bool


@dataclasses.dataclass(frozen=True)
class MaskAugmentation:
    """Random scale, crop, mirroring and photometric distortion of images and their masks.

    The defaults are those of mmsegmentation's recipe for ADE20K, under which the published UperNet
    files were trained. In this order:

    1. The image is resized, keeping its ratio, as large as fits into `scale` times a factor,
       uniform in `scale_range`: images bilinear, masks to the nearest pixel.
    2. A random crop of `crop`, less where the image is smaller. Up to ten crops are tried until
       no class has `largest_class_share` or more of the pixels that count.
    3. Mirroring with probability `flip`.
    4. Brightness plus up to `brightness`; contrast times a factor in `contrast`, before or after
       the rest; saturation times a factor in `saturation`; hue plus up to `hue` degrees. Each with
       probability 1/2.

    What is missing to `crop` is filled up at the right and below: the mask with `ignore_value`, the
    image with 0 after it is normalised, which is ImageNet's mean.

    Attributes:
        crop: height and width of the result in pixels.
        scale: the long and the short side that images are fitted into; None: four times and once
            the shorter side of `crop`, as in all official configurations of ADE20K.
        scale_range, contrast, saturation: least and greatest factor.
        largest_class_share: in (0, 1]; 1 takes the first crop.
        flip: probability.
        brightness: in values of 0 to 255.
        hue: in degrees.
        ignore_value: of pixels that count nowhere.

    Source: mmsegmentation 0.27, `mmseg/datasets/pipelines/transforms.py`, and the configurations of
    https://github.com/OpenGVLab/InternImage, `segmentation/configs`.
    """

    crop: tuple[int, int] = (512, 512)
    scale: tuple[int, int] | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)
    largest_class_share: float = 0.75
    flip: float = 0.5
    brightness: float = 32
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36
    ignore_value: int = 255

    def __post_init__(self):
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"`crop` must be height and width. Received: crop={self.crop}")
        if not 0 < self.largest_class_share <= 1:
            raise ValueError(
                "`largest_class_share` must be in (0, 1]. "
                f"Received: largest_class_share={self.largest_class_share}"
            )
        for name in ("scale_range", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"`{name}` must be two factors above 0, the lower first. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: Seed
    ) -> tuple[np.ndarray, np.ndarray]:
        """Changes one image and its mask.

        Args:
            image: `(H, W, 3)`, uint8; not changed.
            mask: `(H, W)`, integers; not changed.
            seed: int or tuple of ints, at least 0, from which all randomness follows.

        Returns:
            `(image, mask)`: uint8 `(h, w, 3)` and int32 `(h, w)`, of `crop` or smaller.

        Raises:
            ValueError: shapes or the seed are not as said.
        """
        if image.dtype != np.uint8 or image.shape != (*mask.shape, 3) or mask.ndim != 2:
            raise ValueError(
                "`image` must be uint8 (H, W, 3) and `mask` (H, W). Received: "
                f"image.dtype={image.dtype}, image.shape={image.shape}, mask.shape={mask.shape}"
            )
        from PIL import Image

        random = np.random.default_rng(entropy_of(seed))
        placement, mask = self.place(mask, random)
        return self.change(Image.fromarray(image), placement, random), mask

    def place(self, mask: np.ndarray, random: np.random.Generator) -> tuple[Placement, np.ndarray]:
        """Chooses where the crop lies, and cuts the mask. An image need not be read before."""
        rows, columns = mask.shape
        long, short = self.scale or (4 * min(self.crop), min(self.crop))
        # Each side is rounded down on the way, as in the source.
        factor = random.uniform(*self.scale_range)
        long, short = int(max(long, short) * factor), int(min(long, short) * factor)
        factor = min(long / max(rows, columns), short / min(rows, columns))
        width, height = (max(1, int(side * factor + 0.5)) for side in (columns, rows))
        crop_height, crop_width = min(self.crop[0], height), min(self.crop[1], width)
        for _ in range(TRIES + 1):
            top = int(random.integers(height - crop_height + 1))
            left = int(random.integers(width - crop_width + 1))
            # The pixel of the mask that the middle of each pixel of the crop lies in.
            y = ((top + np.arange(crop_height) + 0.5) * rows / height).astype(int)
            x = ((left + np.arange(crop_width) + 0.5) * columns / width).astype(int)
            cut = mask[y[:, None], x]
            if self.largest_class_share == 1 or self._is_varied(cut):
                break
        mirrored = bool(random.random() < self.flip)
        box = (left, top, left + crop_width, top + crop_height)
        cut = cut[:, ::-1] if mirrored else cut
        return Placement((width, height), box, mirrored), np.ascontiguousarray(cut, "int32")

    def change(self, image, placement: Placement, random: np.random.Generator) -> np.ndarray:
        """The crop of an image, of any size, and its colours changed: uint8 `(h, w, 3)`."""
        from PIL import Image

        x, y = (now / then for now, then in zip(image.size, placement.size, strict=True))
        left, top, right, bottom = placement.box
        box = left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)
        image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)
        if placement.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._distort(np.asarray(image), random)

    def _is_varied(self, mask):
        counts = np.bincount(mask[mask != self.ignore_value].ravel())
        return np.count_nonzero(counts) > 1 and counts.max() < (
            self.largest_class_share * counts.sum()
        )

    def _distort(self, pixels, random):
        """Brightness, contrast, saturation and hue; each result is rounded to 8 bits."""
        brightness = random.uniform(-self.brightness, self.brightness)
        contrast = random.uniform(*self.contrast)
        saturation = random.uniform(*self.saturation)
        hue = random.uniform(-self.hue, self.hue)
        do = random.random(4) < 0.5
        contrast_first = random.random() < 0.5
        if do[0]:
            pixels = _eight_bits(pixels + np.float32(brightness))
        if do[1] and contrast_first:
            pixels = _eight_bits(pixels * np.float32(contrast))
        saturation, hue = saturation if do[2] else 1, hue if do[3] else 0
        if saturation != 1 or hue != 0:
            pixels = _in_hsv(pixels, saturation, hue)
        if do[1] and not contrast_first:
            pixels = _eight_bits(pixels * np.float32(contrast))
        return pixels


def _eight_bits(pixels):
    return np.clip(np.round(pixels), 0, 255).astype("uint8")


def _in_hsv(pixels, saturation, hue):
    """Saturation times a factor, and the hue turned by degrees."""
    from PIL import Image

    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    hsv[..., 1] = _eight_bits(hsv[..., 1] * np.float32(saturation))
    hsv[..., 0] += np.uint8(round(hue * 256 / 360) % 256)  # wraps around, as the hue does
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
