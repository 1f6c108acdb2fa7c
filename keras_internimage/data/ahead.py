"""Images are read in threads while a model looks at those before them."""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

# Batches that are read while one is predicted.
AHEAD = 2


def batches(
    images: Sequence, read: Callable[[Any], Any], batch_size: int
) -> Iterator[list[tuple[Any, Any]]]:
    """Yields lists of `(image, read(image))`, in order, `batch_size` at a time."""
    given = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        waiting = collections.deque([pool.submit(read, x) for x in some] for some in given[:AHEAD])
        for number, batch in enumerate(given):
            done = [future.result() for future in waiting.popleft()]
            if number + AHEAD < len(given):
                waiting.append([pool.submit(read, x) for x in given[number + AHEAD]])
            yield list(zip(batch, done, strict=True))


def sequence(images: Any) -> list:
    """What a user gives as images, as a list: paths, arrays, images of Pillow.

    One of them becomes a list of one, an array `(N, H, W, 3)` its N images; a folder stands for
    all images below it.
    """
    from keras_internimage.data.folders import images_below

    one = isinstance(images, (str, os.PathLike)) or not hasattr(images, "__iter__")
    if one or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    found: list = []
    for image in images:
        if isinstance(image, (str, os.PathLike)):
            path = pathlib.Path(image)
            found += images_below(path) if path.is_dir() else [path]
        else:
            found.append(image)
    return found
