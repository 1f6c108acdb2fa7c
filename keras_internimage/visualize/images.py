"""Photographs in, PNG files out."""

import os

import numpy as np

from keras_internimage.files import atomic_write
from keras_internimage.preprocessing import MEAN, STD, load_image

DEFAULT_SIZE = 224
# Pixel values given for normalised ones are far beyond it; normalised ones lie in -2.2 to 2.7.
LARGEST_NORMALIZED = 20.0


def prepare(model, image, size=None, normalize=True):
    """An image as the model takes it, and as people look at it.

    Args:
        model: the model; its input shape decides the size where it is fixed.
        image: a path, PIL image or uint8 array (a photograph), or a float array (a model's input).
        size: side in pixels for photographs, None for the model's own, or 224 if it takes any.
        normalize: whether the model takes images of `preprocess_input`; otherwise values 0 to 255.

    Returns:
        `(x, photo)`: float32 `(1, H, W, 3)` and uint8 `(H, W, 3)`, the same pixels.

    Raises:
        ValueError: the image, or its size, is not as said above.
    """
    height, width = _input_size(model)
    if isinstance(image, np.ndarray) and image.dtype != np.uint8:
        x = _model_input(image, normalize)
        for name, have, want in (("height", x.shape[1], height), ("width", x.shape[2], width)):
            if want not in (None, have):
                raise ValueError(
                    f"The image's {name} must be the model's, {want}. Received: {name}={have}"
                )
        return x, _photo(x[0], normalize)
    if height != width:
        raise ValueError(
            "Photographs are cut to squares; the model must take them, or `image` be a float "
            f"array. Received: a model for {height} x {width} pixels"
        )
    if size is not None and height not in (None, size):
        raise ValueError(f"`size` must be the model's, {height}. Received: size={size!r}")
    size = size or height or DEFAULT_SIZE
    if isinstance(image, np.ndarray) and image.ndim == 4 and len(image) == 1:
        image = image[0]
    x = load_image(image, size)[None]
    photo = _photo(x[0], True)
    return (x if normalize else photo[None].astype("float32")), photo


def prepare_several(model, images, size=None, normalize=True):
    """`prepare` for one image, a list of them, or an array `(N, H, W, 3)`."""
    if isinstance(images, np.ndarray):
        images = list(images) if images.ndim == 4 else [images]
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if not images:
        raise ValueError("`images` must be at least one image. Received: none")
    return [prepare(model, image, size, normalize) for image in images]


def _input_size(model):
    try:
        shape = model.input_shape
    except (AttributeError, ValueError):  # a subclassed model has none
        return None, None
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (3, None):
        raise ValueError(
            f"`model` must take one batch of RGB images (N, H, W, 3). Received: input shape={shape}"
        )
    return shape[1], shape[2]


def _model_input(image, normalize):
    x = image[None] if image.ndim == 3 else image
    if x.ndim != 4 or len(x) != 1 or x.shape[3] != 3 or x.dtype.kind != "f":
        raise ValueError(
            "An image must be a path, a PIL image, a uint8 array (H, W, 3), or a float array "
            f"(H, W, 3) for the model. Received: dtype={image.dtype}, shape={image.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError("A float image must be finite. Received: NaN or infinity in it")
    if normalize and np.abs(x).max() > LARGEST_NORMALIZED:
        raise ValueError(
            "A float image must be normalised (`preprocess_input`), or `normalize=False` say that "
            f"the model takes pixel values. Received: values up to {np.abs(x).max():g}"
        )
    return x.astype("float32")


def _photo(x, normalized):
    if normalized:
        x = (x * np.float32(STD) + np.float32(MEAN)) * 255
    return np.uint8(np.clip(np.round(x), 0, 255))


def save_png(picture, path):
    """Writes an RGB array as a PNG file, whole or not at all. Raises as `check_png`."""
    from PIL import Image

    check_png(path)
    with atomic_write(path) as unfinished:
        Image.fromarray(picture).save(unfinished, optimize=True)


def check_png(path):
    """Refuses a path at which `save_png` cannot write.

    Raises:
        ValueError: `path` does not end in .png.
        FileNotFoundError: its folder does not exist.
    """
    path = os.path.abspath(os.fspath(path))
    if not path.lower().endswith(".png"):
        raise ValueError(f"`path` must end in .png. Received: path={path}")
    if not os.path.isdir(os.path.dirname(path)):
        raise FileNotFoundError(f"The folder of `path` must exist. Received: path={path}")
