"""Types of the public functions' arguments, and what can be checked before a model is called."""

import importlib.util
import os
import typing
from collections.abc import Sequence

import numpy as np

from keras_internimage.visualize.images import check_png

if typing.TYPE_CHECKING:
    from PIL import Image

# Pillow is imported only where it is used, so its class is named, which `|` does not take.
ImageLike: typing.TypeAlias = typing.Union[str, os.PathLike[str], "Image.Image", np.ndarray]  # noqa: UP007
Path: typing.TypeAlias = str | os.PathLike[str]
SMALLEST_SIDE = 32  # pixels


def check_drawing(side: int, path: Path | None = None, labels: Sequence[str] | None = None) -> None:
    """Refuses what a drawing cannot be made of.

    Args:
        side: side of each picture in pixels.
        path: where to save the drawing, None for nowhere.
        labels: names of classes, None for none.

    Raises:
        ValueError: `side` is no int, or less than 32; `path` does not end in .png.
        FileNotFoundError: the folder of `path` does not exist.
        ModuleNotFoundError: names need fonts of matplotlib, and it is not installed.
    """
    if isinstance(side, bool) or not isinstance(side, int) or side < SMALLEST_SIDE:
        raise ValueError(
            f"`side` must be an int, at least {SMALLEST_SIDE} pixels. Received: side={side!r}"
        )
    if path is not None:
        check_png(path)
    # Pillow's own font has ASCII alone.
    other = [str(name) for name in labels if not str(name).isascii()] if labels is not None else []
    if other and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "matplotlib must be installed to find fonts for names that are not ASCII: "
            f"pip install 'keras-internimage[report]'. Received: labels with {other[0]!r}"
        )
