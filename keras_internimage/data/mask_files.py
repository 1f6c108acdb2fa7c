"""One mask: its file as class numbers, and what may be wrong with it."""

import dataclasses
import os

import numpy as np

from keras_internimage.data.check import reading, why_bad
from keras_internimage.preprocessing import read_orientation

# The class number of pixels that count nowhere: neither in a loss nor in a metric.
IGNORED = 255


class MaskError(ValueError):
    """A mask cannot be used; the message is the reason, to be read after its name."""


@dataclasses.dataclass(frozen=True)
class MaskEncoding:
    """How the values of mask files become class numbers.

    Attributes:
        classes: number of classes; None where it is not known, and any number below 255 is one.
        reduce_zero_label: whether 0 is ignored, and class `c` is stored as `c + 1`, as in ADE20K.
        palette: colours of the classes, for masks that are stored in colours; may be empty.
        ignored: further colours, of pixels that are ignored.
        numbers: the class number of each value of a file, from 0, or 255, as for the ids of
            Cityscapes' labels; empty where the values are the class numbers.
    """

    classes: int | None = None
    reduce_zero_label: bool = False
    palette: tuple[tuple[int, int, int], ...] = ()
    ignored: tuple[tuple[int, int, int], ...] = ()
    numbers: tuple[int, ...] = ()


def read_mask(path: str | os.PathLike, encoding: MaskEncoding | None = None) -> np.ndarray:
    """A mask's class numbers.

    Files of Pillow's modes 1, L, I, I;16 and P hold the numbers themselves. RGB masks are read by
    the colours of `encoding.palette`; so are those of mode P, by the colours of their own palette,
    and of mode L, where they are colours of `encoding.palette` and not the grey of their number.

    Args:
        path: of a file without loss, such as PNG.
        encoding: None takes the numbers as they are.

    Returns:
        int32 array `(H, W)`: class numbers, 255 for ignored pixels.

    Raises:
        FileNotFoundError: there is no such file.
        MaskError (a ValueError): it is no mask, or holds what is no class.
    """
    from PIL import Image

    encoding = encoding or MaskEncoding()
    try:
        with Image.open(path) as image:
            if image.format in ("JPEG", "MPO"):
                raise MaskError("is a JPEG file, which does not keep class numbers exactly")
            image.load()
            mask = _numbers(image, encoding)
    except (FileNotFoundError, MemoryError, MaskError):
        raise
    except Exception as error:  # what Pillow's many decoders raise for a bad file is not limited
        raise ValueError(
            f"path must be an image that Pillow reads. Received: path={path} ({error})"
        ) from error
    return _classes(mask, encoding)


def _numbers(image, encoding):
    """The file's numbers: those of the classes where it is in colours."""
    mode = image.mode
    if mode in ("RGBA", "LA"):
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < 255:
            raise MaskError("is transparent in places; a mask has a class, or 255, in each pixel")
        image = image.convert(mode.removesuffix("A"))
        mode = image.mode
    if mode == "RGB":
        if not encoding.palette:
            raise MaskError(
                "is in colours, which needs a classes.txt with lines `name R G B` beside the "
                "folders"
            )
        return _by_colour(np.asarray(image, "int32"), encoding)
    if mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        raise MaskError(f"must hold class numbers or colours, not Pillow's mode {mode}")
    numbers = np.asarray(image).astype("int32")
    if encoding.palette and mode == "P":
        own = np.zeros((256, 3), "int32")
        stored = np.asarray(image.getpalette("RGB"), "int32").reshape(-1, 3)
        own[: len(stored)] = stored
        used = np.unique(numbers)
        if _are_colours(own[used], used, encoding):
            table = np.full(256, IGNORED, "int32")  # 255 is ignored, whatever its colour
            used = used[used != IGNORED]
            table[used] = _by_colour(own[used], encoding)
            return table[numbers]
    if encoding.palette and mode == "L" and _all_grey(encoding):
        return _by_colour(np.stack([numbers] * 3, axis=-1), encoding)
    return numbers


def _are_colours(colours, numbers, encoding):
    """Whether the colours of a mask's own palette stand for classes, rather than its numbers."""
    if (colours == numbers[:, None]).all():  # the grey of each number: nobody has chosen it
        return False
    known = {*encoding.palette, *encoding.ignored}
    return any(tuple(colour) in known for colour in colours.tolist())


def _all_grey(encoding):
    """Whether all classes have a grey, and not that of their number."""
    if any(len(set(colour)) > 1 for colour in (*encoding.palette, *encoding.ignored)):
        return False
    return [colour[0] for colour in encoding.palette] != list(range(len(encoding.palette)))


def _by_colour(colours, encoding):
    """Numbers, as a mask of numbers would have them, of colours `(..., 3)`."""
    codes = (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
    first = int(encoding.reduce_zero_label)
    numbers = {colour: number for number, colour in enumerate(encoding.palette, start=first)}
    numbers |= dict.fromkeys(encoding.ignored, IGNORED)
    found, where = np.unique(codes, return_inverse=True)
    result = np.empty(len(found), "int32")
    for index, code in enumerate(found.tolist()):
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour not in numbers:
            raise MaskError(f"has the colour {colour}, which no line of classes.txt has")
        result[index] = numbers[colour]
    return result[where].reshape(codes.shape)


def _classes(numbers, encoding):
    first = int(encoding.reduce_zero_label)
    last = IGNORED - 1 if encoding.classes is None else encoding.classes - 1 + first
    if encoding.numbers:
        last = len(encoding.numbers) - 1
    wrong = (numbers < 0) | ((numbers > last) & (numbers != IGNORED))
    if wrong.any():
        value = int(numbers[wrong].flat[0])
        what = f"classes are {first} to {last}, 255 is ignored"
        raise MaskError(f"has the value {value}, where {what}")
    if encoding.numbers:
        table = np.full(IGNORED + 1, IGNORED, "int32")
        table[: len(encoding.numbers)] = encoding.numbers
        return table[numbers]
    if first:
        return np.where((numbers == 0) | (numbers == IGNORED), IGNORED, numbers - 1)
    return numbers


def examine(image, mask, encoding):
    """Reads a pair to the end.

    Returns:
        `(problem, counts)`: `(path, reason)` or None, and the number of pixels of each value of the
        mask, int64 `(256,)`; None with a problem.
    """
    sizes = []

    def at_least(size):
        sizes.append(size)
        return 1, 1

    reason = why_bad(image, at_least)
    if reason is not None:
        return (image, reason), None
    reason, numbers = reading(mask, lambda: read_mask(mask, encoding))
    if reason is not None:
        return (mask, reason), None
    (width, height), (rows, columns) = sizes[0], numbers.shape
    orientation = read_orientation(image)
    if read_orientation(mask) != 1:
        return (mask, "has an EXIF orientation; a mask must be stored upright, without one"), None
    if (columns, rows) != (width, height):
        reason = f"is {columns} x {rows} pixels, its image {width} x {height}"
        if orientation >= 5 and (rows, columns) == (width, height):
            reason += ": the image is turned upright by its EXIF orientation, the mask is not"
        return (mask, reason), None
    if orientation != 1 and (orientation < 5 or width == height):
        # The sizes do not tell. Drawn on the pixels as they are stored, it would be upside down.
        reason = f"is turned by EXIF (orientation {orientation}), and nothing tells whether its "
        return (image, reason + "mask is for the upright image: store the image upright"), None
    return None, np.bincount(numbers.ravel(), minlength=256)
