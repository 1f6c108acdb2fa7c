"""From a Keras file back to the official names and layout."""

import os

import numpy as np

from keras_internimage.checkpoints import keras_files, safetensors_files
from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.names import BATCH_COUNTER, families
from keras_internimage.checkpoints.tensors import all_finite
from keras_internimage.files import atomic_write


def export(path: str | os.PathLike, target: str | os.PathLike) -> int:
    """Write a Keras file's weights under the official names and in the official layout.

    A `.safetensors` file is written tensor by tensor; a `.pth` file needs PyTorch, which
    collects all tensors, `{"model": ...}`, in memory. Of segmentation models and detectors they
    are in `{"state_dict": ...}`, the backbone's below `backbone.`, as the official code has them.

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
    file = keras_files.read(path)
    if target.endswith(".pth"):
        torch = _torch(target)
        with atomic_write(target) as unfinished:
            state = {name: torch.from_numpy(read()) for name, _, _, read in _official_tensors(file)}
            torch.save({_container(file): state}, unfinished)
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


def _is_dense(file):
    return file.table is not families.TABLES["classifier"]


def _container(file):
    return "state_dict" if _is_dense(file) else "model"


def _official_tensors(file):
    """`(name, shape, dtype, read)` of the official tensors a Keras file's weights make up."""
    for variable, tensor in file.tensors.items():
        entry = file.table.known_entry(variable)
        dense = _is_dense(file) and not file.table.is_head(entry.official[0])
        prefix = "backbone." if dense else ""
        shapes = entry.layout.official_shapes(tensor.shape)
        for name, shape in zip(entry.official, shapes, strict=True):
            read = _part_reader(file.table, variable, tensor, name)
            yield prefix + name, shape, "float32", read
        if variable.endswith("/moving_variance"):
            name = f"{entry.official[0].rpartition('.')[0]}.{BATCH_COUNTER}"
            yield name, (), "int64", lambda: np.zeros((), np.int64)


def _part_reader(table, variable, tensor, name):
    def read():
        value = tensor.float32()
        if not all_finite(value):
            raise CheckpointError(f"All weights must be finite numbers. Received: {variable}")
        return table.to_official(variable, value)[name]

    return read
