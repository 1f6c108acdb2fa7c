"""From a photograph to a model's input, and from its output to names."""

import keras
import numpy as np

# ImageNet's mean and standard deviation per channel (red, green, blue), of values in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000


def preprocess_input(x, data_format=None):
    """Scales RGB values in `[0, 255]` as the official models expect: `(x / 255 - mean) / std`.

    In the style of `keras.applications`. The input is never written over. Half types are computed
    in float32 and returned in their own type; integers become `keras.config.floatx()`.

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


def decode_predictions(preds, top=5):
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


def load_image(path, size, *, exif_orientation=False):
    """Reads an image and applies the official evaluation transform.

    Conversion to RGB, bicubic antialiased resize of the short side to `size` (the long side is
    `int(size * long / short)`), centre crop, `/ 255`, mean and standard deviation: the transform
    under which the published accuracies were measured. Alpha is dropped, not composed.

    Args:
        path: path or binary file object of an image, a `PIL.Image.Image`, or a uint8 array
            `(H, W)`, `(H, W, 3)` or `(H, W, 4)`.
        size: side of the returned square in pixels, the model's resolution.
        exif_orientation: whether to turn the image upright first, where a camera noted how it was
            held. The official transform does not; `internimage-train` and `internimage-predict` do.

    Returns:
        float32 array `(size, size, 3)`; a batch of one is `load_image(path, size)[None]`.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is no readable image, has 32 bits per channel, or an argument is
            out of range.

    Source: https://github.com/OpenGVLab/InternImage, `classification/dataset/build.py`.
    """
    from PIL import Image

    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"size must be a positive integer. Received: size={size!r}")
    image = read_image(path, exif_orientation=exif_orientation)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    width, height = (size, long) if width <= height else (long, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    # Python's round, half to even, is the official transform's.
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return preprocess_input(np.asarray(image, "float32"))


def read_image(path, *, exif_orientation=False, at_least=None):
    """Reads a whole image as 8-bit RGB.

    Of an animation it is the first frame. Alpha is dropped. Values of 16 bits are scaled to 8:
    `round(value * 255 / 65535)`.

    Args:
        path: as for `load_image`.
        exif_orientation: whether to turn the image upright, where a camera noted how it was held.
        at_least: None, or a function of the image's `(width, height)` that returns the width and
            height which are enough. A JPEG file is then decoded at 1/2, 1/4 or 1/8 of its size
            where that is enough, several times faster.

    Returns:
        A `PIL.Image.Image` of mode RGB.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is no readable image, or has 32 bits per channel.
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
        return _upright(_eight_bits(path, "PIL image"), exif_orientation).convert("RGB")
    try:
        with Image.open(path) as image:
            if at_least is not None:
                _decode_smaller(image, at_least, exif_orientation)
            image.load()
            image = _upright(image, exif_orientation)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # what Pillow's many decoders raise for a bad file is not limited
        raise ValueError(
            f"path must be an image that Pillow reads. Received: path={path} ({error})"
        ) from error
    return _eight_bits(image, path).convert("RGB")


def _decode_smaller(image, at_least, exif_orientation):
    sideways = exif_orientation and _orientation(image) >= 5
    width, height = at_least(image.size[::-1] if sideways else image.size)
    # Only JPEG's decoder has other sizes; for all others this does nothing.
    image.draft(None, (height, width) if sideways else (width, height))


def _orientation(image):
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF, which says nothing about the pixels: as if there were none
        return 1


def _upright(image, exif_orientation):
    from PIL import ImageOps

    if not exif_orientation or _orientation(image) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _eight_bits(image, path):
    from PIL import Image

    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype("uint32")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype("uint8"))
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
