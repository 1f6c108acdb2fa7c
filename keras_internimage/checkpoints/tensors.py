"""Tensors of a file: shape and type known at once, numbers read when asked for."""

import dataclasses
import math
import os
import struct
import zipfile
from collections.abc import Callable

import ml_dtypes
import numpy as np
import numpy.typing

DTYPES = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
        shape: tuple of ints.
        dtype: name of the stored type, a key of `DTYPES`.
        read: returns the numbers as a new array of that type.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize

    def float32(self) -> np.ndarray:
        """The numbers as a new float32 array, exactly where the stored type is not wider."""
        return self.read().astype(np.float32, copy=False)

    def __setstate__(self, state):
        raise TypeError("A tensor must not be changed by the file it comes from.")


_LOCAL_HEADER = struct.Struct("<26xHH")


def record_start(path: str | os.PathLike, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed record of a zip archive begin.

    Raises:
        zipfile.BadZipFile: the record is compressed.
    """
    if info.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"record {info.filename!r} is compressed")
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        return (
            info.header_offset
            + _LOCAL_HEADER.size
            + sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
        )


def read_range(
    path: str | os.PathLike, offset: int, shape: tuple[int, ...], dtype: np.typing.DTypeLike
) -> np.ndarray:
    """Read an array at a byte offset of a file.

    A plain read rather than a memory map: mapped pages would count as this process's memory,
    a second copy of the model while it is converted.
    """
    out = np.empty(shape, dtype)
    with open(path, "rb") as file:
        file.seek(offset)
        received = file.readinto(out.reshape(-1).view(np.uint8).data) if out.size else 0
    if received != out.nbytes:
        raise EOFError(f"{path} ends within a tensor: {received} of {out.nbytes} bytes")
    return out


def all_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor infinity.

    A float64 sum of float32 numbers cannot overflow, and both pass through it; unlike
    `isfinite` it needs no temporary of the array's size.
    """
    return bool(np.isfinite(np.add.reduce(array, axis=None, dtype=np.float64)))


def not_finite(tensor: Tensor) -> int:
    """How many of a tensor's numbers are NaN or infinite; reads them."""
    values = tensor.read()
    # bfloat16 has no sum of its own in NumPy; half types are exact in float32.
    values = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
    return 0 if all_finite(values) else values.size - int(np.isfinite(values).sum())
