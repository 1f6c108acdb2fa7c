"""From a Keras file back to the official names and layout."""

import os

import numpy as np

from keras_internimage.checkpoints import keras_files, safetensors_files
from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.names import BATCH_COUNTER
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.checkpoints.tensors import all_finite
from keras_internimage.files import atomic_write


def export(path: str | os.PathLike, target: str | os.PathLike) -> int:
    """Write a Keras file's weights under the official names and in the official layout.

    A `.safetensors` file is written tensor by tensor; a `.pth` file needs PyTorch, which
    collects all tensors, `{"model": ...}`, in memory.

    Args:
        path: `.weights.h5` or `.keras`.
        target: path ending in `.pth` or `.safetensors`.

    Returns:
        The number of tensors written.

    Raises:
        CheckpointError: the file cannot be read, holds numbers that are not finite, or PyTorch
            is missing. There is no output then.
    """
    target = os.fspath(target)
    if not target.endswith((".pth", ".safetensors")):
        raise CheckpointError(
            f"The output must end in .pth or .safetensors. Received: path={target}"
        )
    file = keras_files.read(path, TABLE)
    if target.endswith(".pth"):
        torch = _torch(target)
        with atomic_write(target) as unfinished:
            state = {name: torch.from_numpy(read()) for name, _, _, read in _official_tensors(file)}
            torch.save({"model": state}, unfinished)
        return len(state)
    tensors = list(_official_tensors(file))
    with atomic_write(target) as unfinished:
        safetensors_files.write(unfinished, tensors)
    return len(tensors)


def _torch(target):
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "Writing a .pth needs PyTorch (a .safetensors does not): "
            f"pip install keras-internimage[convert]. Received: path={target}"
        ) from error
    return torch


def _official_tensors(file):
    """`(name, shape, dtype, read)` of the official tensors a Keras file's weights make up."""
    for variable, tensor in file.tensors.items():
        entry = TABLE.known_entry(variable)
        shapes = entry.layout.official_shapes(tensor.shape)
        for name, shape in zip(entry.official, shapes, strict=True):
            yield name, shape, "float32", _part_reader(variable, tensor, name)
        if variable == "head_norm/moving_variance":
            name = f"{entry.official[0].rpartition('.')[0]}.{BATCH_COUNTER}"
            yield name, (), "int64", lambda: np.zeros((), np.int64)


def _part_reader(variable, tensor, name):
    def read():
        value = tensor.float32()
        if not all_finite(value):
            raise CheckpointError(f"All weights must be finite numbers. Received: {variable}")
        return TABLE.to_official(variable, value)[name]

    return read
