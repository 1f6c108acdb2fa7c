"""From a photograph to a model's input, and from its output to names."""

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import keras
import numpy as np

if TYPE_CHECKING:
    import PIL.Image

ImageSource: TypeAlias = Union[str, os.PathLike, BinaryIO, "PIL.Image.Image", np.ndarray]

# ImageNet's mean and standard deviation per channel (red, green, blue), of values in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
# Images are resized whole before their centre is cut, up to this ratio of the sides.
LONGEST = 16


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Scales RGB values in `[0, 255]` as the official models expect: `(x / 255 - mean) / std`.

    In the style of `keras.applications`. The input is never written over. Half types are computed
    in float32 and returned in their own type; integers become `keras.config.floatx()`.

    Nothing fails where it is forgotten: of images in `[0, 255]` as they are, the models make scores
    near uniform. An exported file can have it inside:

    ```python
    scores = model.predict(preprocess_input(images))  # images in [0, 255]
    exports.export(model, "model.onnx", include_preprocessing=True)  # takes uint8 images
    ```

    Args:
        x: NumPy array, tensor (also symbolic, also a TensorFlow tensor of a `tf.data` pipeline on
            another backend) with three channels: `(..., H, W, 3)`, or `(..., 3, H, W)` with
            `data_format="channels_first"`.
        data_format: `"channels_last"` or `"channels_first"`. None means `"channels_last"`, whatever
            the global setting: every model of this package takes channels last.

    Returns:
        An array or tensor of the kind and shape of `x`.

    Raises:
        ValueError: where `x` has not three channels, or `data_format` is not one of the two.
    """
    if data_format not in (None, "channels_last", "channels_first"):
        raise ValueError(
            "data_format must be 'channels_last', 'channels_first' or None. "
            f"Received: data_format={data_format!r}"
        )
    if not hasattr(x, "shape"):
        x = np.asarray(x)
    axis = -3 if data_format == "channels_first" else -1
    if len(x.shape) < 3 or x.shape[axis] not in (3, None):
        where = "(..., 3, H, W)" if axis == -3 else "(..., H, W, 3)"
        raise ValueError(
            f"x must be images with three channels, {where}. Received: shape={tuple(x.shape)}"
        )
    statistics_shape = (3, 1, 1) if axis == -3 else (3,)
    mean = np.reshape(np.array(MEAN, "float32"), statistics_shape)
    std = np.reshape(np.array(STD, "float32"), statistics_shape)
    cast, dtype = _cast_of(x)
    result_dtype = dtype if "float" in dtype else keras.config.floatx()
    # float64 stays; every other type is computed in float32.
    compute_dtype = result_dtype if result_dtype == "float64" else "float32"
    mean, std = cast(mean, compute_dtype), cast(std, compute_dtype)
    return cast((cast(x, compute_dtype) / 255.0 - mean) / std, result_dtype)


def decode_predictions(preds: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Names the most probable of the 1000 ImageNet classes.

    In the style of `keras.applications`; the class index is a small file that Keras downloads once.

    Args:
        preds: array or tensor `(N, 1000)`: probabilities or logits of a batch.
        top: how many classes of each image to return.

    Returns:
        One list per image of `(wordnet_id, name, score)`, best first.

    Raises:
        ValueError: where `preds` is not `(N, 1000)`. Models with 21841 classes have no such index.
        RuntimeError: where the class index is neither in Keras' cache nor can be downloaded.
    """
    shape = tuple(np.shape(preds) if not hasattr(preds, "shape") else preds.shape)
    if len(shape) != 2 or shape[1] != IMAGENET_CLASSES:
        raise ValueError(
            f"preds must be a batch of predictions (N, {IMAGENET_CLASSES}). Received: shape={shape}"
        )
    if not isinstance(top, int) or not 1 <= top <= IMAGENET_CLASSES:
        raise ValueError(f"top must be an integer in 1..{IMAGENET_CLASSES}. Received: top={top!r}")
    scores = np.asarray(keras.ops.convert_to_numpy(preds), "float32")
    try:
        return keras.applications.imagenet_utils.decode_predictions(scores, top=top)
    except Exception as error:  # get_file raises bare Exception
        raise RuntimeError(
            "The names of the ImageNet classes must be in Keras' cache or downloadable. Without a "
            "network, put the file imagenet_class_index.json into the folder 'models' of Keras' "
            f"home (by default ~/.keras/models). Received: {error}"
        ) from error


def load_image(path: "ImageSource", size: int, *, exif_orientation: bool = True) -> np.ndarray:
    """Reads an image as the models take it: a normalised square.

    The image is turned upright, then comes the official evaluation transform: conversion to RGB,
    bicubic antialiased resize of the short side to `size` (the long side is
    `int(size * long / short)`), centre crop, `/ 255`, mean and standard deviation. Alpha is
    dropped, not composed. `internimage-train` and `internimage-predict` read images in this way.

    Files exported with `include_preprocessing=True` normalise by themselves: they take uint8
    images, not what this function returns.

    Args:
        path: path or binary file object of an image, a `PIL.Image.Image`, or a uint8 array
            `(H, W)`, `(H, W, 3)` or `(H, W, 4)`.
        size: side of the returned square in pixels, the model's resolution.
        exif_orientation: whether to turn the image upright first, where a camera noted in EXIF how
            it was held. The official transform, under which the published accuracies were
            measured, does not: False gives exactly that one. The photographs that this concerns
            are few in ImageNet, and many from a phone.

    Returns:
        float32 array `(size, size, 3)`; a batch of one is `load_image(path, size)[None]`.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is no readable image, has 32 bits per channel, or an argument is
            out of range.

    Source: https://github.com/OpenGVLab/InternImage, `classification/dataset/build.py`.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"size must be a positive integer. Received: size={size!r}")
    image = _resized_centre(read_image(path, exif_orientation=exif_orientation), int(size))
    return preprocess_input(np.asarray(image, "float32"))


def _resized_centre(image, size):
    """The centre square of an image whose short side is resized to `size`."""
    from PIL import Image

    width, height = image.size
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    width, height = (size, long) if width <= height else (long, size)
    # Python's round, half to even, is the official transform's.
    left, top = round((width - size) / 2), round((height - size) / 2)
    if long <= LONGEST * size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        return image.crop((left, top, left + size, top + size))
    # Of a thin image only what is kept is resized: all of it can be 10 GB. The numbers differ from
    # those above by rounding only. Cut down first, since Pillow keeps the box in float32.
    x, y = image.width / width, image.height / height
    box = left * x, top * y, (left + size) * x, (top + size) * y
    margin_x, margin_y = math.ceil(3 * max(x, 1)), math.ceil(3 * max(y, 1))  # bicubic reaches 2
    cut = (
        max(math.floor(box[0]) - margin_x, 0),
        max(math.floor(box[1]) - margin_y, 0),
        min(math.ceil(box[2]) + margin_x, image.width),
        min(math.ceil(box[3]) + margin_y, image.height),
    )
    box = [edge - cut[i % 2] for i, edge in enumerate(box)]
    box[2], box[3] = min(box[2], cut[2] - cut[0]), min(box[3], cut[3] - cut[1])
    return image.crop(cut).resize((size, size), Image.Resampling.BICUBIC, box=tuple(box))


def read_image(
    path: "ImageSource",
    *,
    exif_orientation: bool = True,
    at_least: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
    most_pixels: int | None = None,
) -> "PIL.Image.Image":
    """Reads a whole image as 8-bit RGB.

    Of an animation it is the first frame. Alpha is dropped. Values of 16 bits are scaled to 8:
    `round(value * 255 / 65535)`. EXIF that is damaged counts as none.

    Args:
        path: as for `load_image`.
        exif_orientation: whether to turn the image upright, where a camera noted how it was held.
        at_least: None, or a function of the upright image's `(width, height)` that returns the
            width and height which are enough. A JPEG file is then decoded at 1/2, 1/4 or 1/8 of
            its size where that is enough, several times faster. It is called once for a file.
        most_pixels: None, or the number of pixels beyond which a file is refused before it is
            decoded.

    Returns:
        A `PIL.Image.Image` of mode RGB.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is no readable image, has 32 bits per channel, or too many
            pixels.
    """
    from PIL import Image

    if isinstance(path, np.ndarray):
        channels = path.shape[2:]
        if path.dtype != np.uint8 or path.ndim < 2 or channels not in ((), (3,), (4,)):
            raise ValueError(
                "An array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4). "
                f"Received: dtype={path.dtype}, shape={path.shape}"
            )
        path = Image.fromarray(path)
    if isinstance(path, Image.Image):
        path.load()  # Pillow turns TIFF by itself while loading, and forgets the orientation then
        orientation = _orientation(path) if exif_orientation else 1
        return _turned(_eight_bits(path, "PIL image"), orientation)
    try:
        with Image.open(path) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise ValueError(
                    f"is too large ({image.width} x {image.height} pixels; "
                    f"at most {most_pixels} in all)"
                )
            image, orientation = _loaded(image, exif_orientation, at_least)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # what Pillow's many decoders raise for a bad file is not limited
        raise ValueError(
            f"path must be an image that Pillow reads. Received: path={path} ({error})"
        ) from error
    return _turned(_eight_bits(image, path), orientation)


def read_orientation(path: "str | os.PathLike") -> int:
    """EXIF's note of how the camera was held, 1 to 8; 1 (upright) where there is none.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is no readable image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.format == "PNG":  # it may come behind the pixels
                image.load()
            return _orientation(image)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"path must be an image that Pillow reads. Received: path={path} ({error})"
        ) from error


def _loaded(image, exif_orientation, at_least):
    """An opened image with its pixels, as they are stored, and its orientation."""
    from PIL import Image

    if image.format in ("JPEG", "MPO"):  # the only ones that are decoded in other sizes
        orientation = _orientation(image) if exif_orientation else 1
        if at_least is not None:
            sideways = orientation >= 5
            enough = at_least(image.size[::-1] if sideways else image.size)
            width, height = enough[::-1] if sideways else enough
            image.draft(None, (width, height))
        image.load()
        return image, orientation
    if image.format == "TIFF":
        # Pillow would turn it while loading, and fail where it cannot write the other tags back.
        # Hidden from it, the pixels stay as they are in the file, but for the size, which it has
        # swapped already: that of a copy is the pixels' own. Without a name it is not mapped into
        # memory, which would be done by the swapped size.
        orientation = _orientation(image) if exif_orientation else 1
        image.getexif, image.filename = Image.Exif, ""
        image.load()
        image = image.copy()
    else:
        image.load()  # first, since EXIF may come behind the pixels in a PNG file
        orientation = _orientation(image) if exif_orientation else 1
    if at_least is not None:
        at_least(image.size[::-1] if orientation >= 5 else image.size)
    return image, orientation


def _orientation(image):
    """EXIF's orientation, 1 to 8; 1 also where there is none, or none that means anything."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF, which says nothing about the pixels: as if there were none
        return 1
    # Bytes and text stand there too. Browsers and viewers show such an image as it is stored.
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image, orientation):
    """An RGB image turned upright. Not by `ImageOps.exif_transpose`, which writes all EXIF anew."""
    from PIL.Image import Transpose

    operations = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image = image if orientation == 1 else image.transpose(operations[orientation])
    image = image.convert("RGB")
    image.info = {}  # or whoever reads this image would turn it once more
    return image


def _eight_bits(image, path):
    from PIL import Image

    if image.mode.startswith("I;16"):
        scaled = (np.arange(65536) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype("uint8")[np.asarray(image)])
    # Of 32-bit integers and floats nobody knows which value is white. Pillow would clip to 255.
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(
            "An image must have 8 or 16 bits per channel. "
            f"Received: path={path} of Pillow's mode {image.mode!r}"
        )
    return image


def _cast_of(x):
    """The function that casts arrays to the kind of `x`, and the name of the type of `x`."""
    if isinstance(x, np.ndarray):
        return (lambda value, dtype: np.asarray(value, dtype)), x.dtype.name
    if not isinstance(x, keras.KerasTensor) and not keras.ops.is_tensor(x):
        if type(x).__module__.startswith("tensorflow."):
            # A tf.data pipeline feeding another backend: the user has imported TensorFlow.
            import tensorflow

            return tensorflow.cast, x.dtype.name
        raise ValueError(
            f"x must be a NumPy array or a tensor. Received: x of type {type(x).__name__}"
        )

    def cast(value, dtype):
        if isinstance(value, np.ndarray):
            return keras.ops.convert_to_tensor(value, dtype)
        return keras.ops.cast(value, dtype)

    return cast, keras.backend.standardize_dtype(x.dtype)
