"""Reading and writing safetensors files, one tensor at a time.

The format: eight bytes with the length of a JSON header, the header (for each tensor its
type, shape and byte range), the numbers. Reading ranges keeps one tensor in memory; the
`safetensors` package maps the whole file, and its NumPy side does not know bfloat16.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable

import numpy as np

from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.tensors import DTYPES, Tensor, read_range

_TYPES = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 100_000_000

# Name, shape, type and what returns the numbers.
Written = tuple[str, tuple[int, ...], str, Callable[[], np.ndarray]]


def looks_like(path: str | os.PathLike) -> bool:
    """Whether a file begins as a safetensors file does."""
    with open(path, "rb") as file:
        start = file.read(_LENGTH.size + 1)
    return len(start) == _LENGTH.size + 1 and start.endswith(b"{")


def read(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors of a safetensors file, by name.

    Raises:
        CheckpointError: the file is not one, or is incomplete.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else size
        data = _LENGTH.size + length
        if length > _MAX_HEADER or data > size:
            raise CheckpointError(
                f"The file must be a complete safetensors file. Received: path={path}"
            )
        header = file.read(length)
    try:
        header = json.loads(header)
        header.pop("__metadata__", None)
        return {name: _tensor(path, data, size, row) for name, row in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"The safetensors header must be well formed ({type(error).__name__}: {error}). "
            f"Received: path={path}"
        ) from error


def _tensor(path, data, size, row):
    shape = tuple(int(n) for n in row["shape"])
    start, end = row["data_offsets"]
    if row["dtype"] not in _TYPES:
        raise CheckpointError(
            f"The tensors' type must be one of {', '.join(_TYPES)}. "
            f"Received: dtype={row['dtype']}, path={path}"
        )
    dtype = _TYPES[row["dtype"]]
    tensor = Tensor(shape, dtype, lambda: read_range(path, data + start, shape, DTYPES[dtype]))
    if not 0 <= start <= end or end - start != tensor.nbytes or min(shape, default=0) < 0:
        raise CheckpointError(
            f"A tensor's byte range must fit its shape. Received: {row}, path={path}"
        )
    if data + end > size:
        raise CheckpointError(
            f"The file is truncated: {size} bytes instead of at least {data + end}. "
            f"Received: path={path}"
        )
    return tensor


def write(path: str | os.PathLike, tensors: Iterable[Written]) -> None:
    """Write tensors, an iterable of `(name, shape, dtype, read)`, one after the other."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    tensors = list(tensors)
    for name, shape, dtype, _ in tensors:
        end = offset + int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
        row = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        header[name], offset = row, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for *_, dtype, read_numbers in tensors:
            numbers = np.ascontiguousarray(read_numbers(), DTYPES[dtype])
            file.write(numbers.reshape(-1).view(np.uint8).data)
