"""Comparing a Keras file with an official checkpoint."""

import os

import numpy as np

from keras_internimage.checkpoints import keras_files
from keras_internimage.checkpoints.read import open_checkpoint

Differences = dict[str, float | None]


def verify(
    path: str | os.PathLike, against: str | os.PathLike, container: str | None = None
) -> tuple[Differences, list[str], list[str]]:
    """Compare a Keras file with a checkpoint, tensor by tensor.

    Args:
        path: `.weights.h5` or `.keras`.
        against: path for `open_checkpoint`.
        container: as for `open_checkpoint`.

    Returns:
        A dict of largest absolute differences by variable path (0.0 where bit-exact, None for
        another shape), and the sorted names that only the checkpoint has and that it lacks.
    """
    file, checkpoint = keras_files.read(path), open_checkpoint(against, container)
    table = file.table
    differences: Differences = {}
    lacking: list[str] = []
    used: set[str] = set()
    for variable, tensor in file.tensors.items():
        official = table.known_entry(variable).official
        used.update(official)
        absent = [name for name in official if name not in checkpoint.tensors]
        if absent:
            lacking.extend(absent)
            continue
        parts = {name: checkpoint.tensors[name].float32() for name in official}
        try:
            expected = table.to_keras(variable, parts)
        except ValueError:
            expected = None
        if expected is None or expected.shape != tensor.shape:
            differences[variable] = None
            continue
        stored = tensor.float32()
        same = np.array_equal(stored.view(np.uint32), expected.view(np.uint32))
        differences[variable] = 0.0 if same else _largest_difference(stored, expected)
    extra = sorted(name for name in checkpoint.tensors if name not in used)
    return differences, extra, sorted(lacking)


def _largest_difference(a, b):
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(a - b).max())
    # Equal numbers of unlike bits (the two zeros) are still no exact copy; nor is NaN.
    return largest or float(np.finfo(np.float32).smallest_subnormal)
