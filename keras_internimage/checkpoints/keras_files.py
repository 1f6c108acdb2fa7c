"""Reading Keras' own weights files by variable path, without building a model.

Keras lays `.weights.h5` out by the classes of layers and notes each layer's name beside its
weights; names and the order of a layer's weights give the variables' paths back. A `.keras`
file holds the same file in an uncompressed zip archive.
"""

import contextlib
import dataclasses
import io
import os
import zipfile

import numpy as np

from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.names import RenameTable, families
from keras_internimage.checkpoints.tensors import DTYPES, Tensor, record_start

_WEIGHTS_RECORD = "model.weights.h5"
SUFFIXES = (".weights.h5", ".keras")
_OPTIMIZER = "/optimizer"


@dataclasses.dataclass(frozen=True)
class KerasFile:
    """What a Keras weights file holds of InternImage.

    Attributes:
        path: of the file.
        table: the `RenameTable` that says which variables are an InternImage's.
        tensors: `Tensor`s by variable path, as in the table.
        unknown: stored weights of other layers; random states and the optimizer's left out.
    """

    path: str
    table: RenameTable
    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the official tensors the weights are made of, by official name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, tensor in self.tensors.items():
            entry = self.table.known_entry(path)
            parts = entry.layout.official_shapes(tensor.shape)
            shapes.update(zip(entry.official, parts, strict=True))
        return shapes


class _Slice(io.RawIOBase):
    """A range of a file as a file."""

    def __init__(self, path, start, size):
        self._file, self._start, self._size, self._position = open(path, "rb"), start, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self):
        return self._position

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        received = self._file.readinto(memoryview(buffer)[:count])
        self._position += received
        return received

    def close(self):
        self._file.close()
        super().close()


@contextlib.contextmanager
def _opened(path):
    import h5py

    if not str(path).endswith(".keras"):
        with h5py.File(path, "r") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(_WEIGHTS_RECORD)
    with contextlib.closing(_Slice(path, record_start(path, info), info.file_size)) as part:
        with h5py.File(part, "r") as file:
            yield file


def read(path: str | os.PathLike, table: RenameTable | None = None) -> KerasFile:
    """What the Keras weights file at `path` holds of the models of a rename table.

    Args:
        path: of the file.
        table: None takes the one that has most of the file's weights.

    Raises:
        CheckpointError: it is no such file, damaged, or holds none of InternImage's weights.
    """
    import h5py

    path = os.fspath(path)
    if not os.path.exists(path):
        raise CheckpointError(
            "The file must be a complete Keras weights file; there is no such file. "
            f"Received: path={path}"
        )
    try:
        with _opened(path) as file:
            found: dict[str, tuple] = {}
            _walk(file, "", [], found, h5py)
    except CheckpointError:
        raise
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"The file must be a complete Keras weights file ({error}). Received: path={path}"
        ) from error
    if table is None:
        table = families.of_layers((layer, index) for layer, index, _, _ in found.values())
    tensors, unknown = {}, []
    for location, (layer, index, shape, dtype) in found.items():
        name = table.weight_path(layer, index)
        if name is not None:
            tensors[name] = Tensor(shape, dtype, _reader(path, location))
        elif "seed_generator" not in location:
            unknown.append(f"{layer}[{index}]" if layer else location)
    if not tensors:
        raise CheckpointError(
            "The file must hold weights of an InternImage, saved by Keras 3.15 or newer. "
            f"Received: path={path}"
        )
    return KerasFile(path, table, tensors, tuple(unknown))


def _walk(group, location, layers, found, h5py):
    """Collect the datasets below `group`: location -> (layer path, index, shape, dtype)."""
    own = _child(group, "vars", h5py)
    if own is not None:
        name = own.attrs.get("name")
        if location:  # the model's own name is no part of a variable's path
            layers = layers + [name] if name else layers
        for key, dataset in own.items():
            if not isinstance(dataset, h5py.Dataset) or not key.isdigit() or dataset.external:
                raise CheckpointError(f"{location}/vars/{key} must be a plain array.")
            dtype = str(dataset.attrs.get("dtype", dataset.dtype))
            if dtype not in DTYPES:
                raise CheckpointError(f"{location}/vars/{key} must hold numbers. Received: {dtype}")
            where = f"{location}/vars/{key}"
            found[where] = ("/".join(layers), int(key), tuple(dataset.shape), dtype)
    for key in group:
        child = _child(group, key, h5py)
        if child is not None and key != "vars" and f"{location}/{key}" != _OPTIMIZER:
            _walk(child, f"{location}/{key}", layers, found, h5py)


def _child(group, key, h5py):
    """The group `key` within a group; links, which may lead out of the file, are not followed."""
    link = group.get(key, getlink=True)
    if isinstance(link, h5py.HardLink) and isinstance(group[key], h5py.Group):
        return group[key]
    return None


def _reader(path, location):
    def read_dataset():
        with _opened(path) as file:
            dataset = file[location]
            numbers = dataset[()]
            dtype = str(dataset.attrs.get("dtype", dataset.dtype))
        # bfloat16 is stored as two anonymous bytes.
        return np.asarray(numbers).view(DTYPES[dtype])

    return read_dataset
