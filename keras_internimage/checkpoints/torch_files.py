"""Reading PyTorch files without running what they hold.

A `.pth` file is a zip archive: a pickle that describes the objects and one raw record per
tensor storage. The pickle is read by an unpickler that knows a fixed list of names, all of
them tensors, plain containers, or inert stand-ins; any other name refuses the file, so
nothing in it is ever called. Tensors stay in the file until asked for, and PyTorch is not
needed. Only the format that PyTorch wrote before version 1.6, a bare stream, is left to
`torch.load(weights_only=True)`.

No library serves: `torch.load` needs PyTorch, which users of the other backends do not have, and
holds the whole file in memory where one tensor at a time is enough; its safe mode refuses the
official files, whose pickle names a configuration class.
"""

import collections
import io
import math
import os
import pickle
import warnings
import zipfile
import zlib

import numpy as np

from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.tensors import DTYPES, Tensor, read_range, record_start

# The first bytes of the old format: a pickled magic number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

_STORAGES = {
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
}
# Objects that trainers keep beside the weights: the official one a yacs configuration, others
# their command line and NumPy numbers. They are replaced by an object that ignores everything.
_IGNORED = frozenset(
    {
        "yacs.config.CfgNode",
        "argparse.Namespace",
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "torch.Size",
        "torch.device",
    }
    | {f"torch.{name}" for name in ("float16", "float32", "float64", "bfloat16", "int64")}
)


class Ignored:
    """Stands for an object that is none of a checkpoint's weights."""

    __slots__ = ()

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _Refused(Exception):
    """The pickle names something that is not on the list."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, archive):
        super().__init__(stream)
        # Bound methods: unlike functions and classes, a pickle cannot set attributes on them.
        self._known = {
            "torch._utils._rebuild_tensor": archive.tensor,
            "torch._utils._rebuild_tensor_v2": archive.tensor,
            "torch._utils._rebuild_parameter": archive.parameter,
            "collections.OrderedDict": collections.OrderedDict,
            "builtins.set": set,
            "__builtin__.set": set,
        }
        self._storage = archive.storage

    def find_class(self, module, name):
        full = f"{module}.{name}"
        if full in self._known:
            return self._known[full]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if full in _IGNORED:
            return Ignored
        raise _Refused(full)

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise _Refused("an object outside the file")
        return self._storage(*pid[1:5])


class _Archive:
    """The records of a zip archive written by PyTorch."""

    def __init__(self, path, archive):
        self.path = path
        self.records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(
                f"The zip archive must hold one PyTorch checkpoint. Received: path={path}"
            )
        self.root = pickles[0][: -len("data.pkl")]
        if any(name.startswith(f"{self.root}code/") for name in self.records):
            raise CheckpointError(
                "The file must hold weights; this one is a TorchScript program, which is not run. "
                f"Received: path={path}"
            )
        self.pickle = self.record(pickles[0])
        order = f"{self.root}byteorder"
        big = order in self.records and self.record(order).strip() == b"big"
        self.byteorder = ">" if big else "<"

    def storage(self, dtype, key, location, size):
        info = self.records.get(f"{self.root}data/{key}")
        if info is None or not isinstance(dtype, str) or not isinstance(size, int):
            raise CheckpointError(
                f"The checkpoint's tensor data must be complete: record {key!r} is missing. "
                f"Received: path={self.path}"
            )
        if size < 0 or size * DTYPES[dtype].itemsize > info.file_size:
            raise CheckpointError(
                f"The checkpoint's tensor data must be complete: record {key!r} holds "
                f"{info.file_size} bytes, {size} {dtype} are needed. Received: path={self.path}"
            )
        return _Storage(info, dtype, size)

    def tensor(self, storage, offset, size, stride, *unused):
        """Stands for PyTorch's functions that make a tensor of a storage."""
        size, stride = tuple(size), tuple(stride)
        numbers = (offset, *size, *stride)
        if (
            not isinstance(storage, _Storage)
            or len(size) != len(stride)
            or not all(isinstance(n, int) and n >= 0 for n in numbers)
        ):
            raise CheckpointError(f"A tensor must be well formed. Received: path={self.path}")
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if count and (offset + last >= storage.size or count > storage.size):
            raise CheckpointError(
                "A tensor must lie within its storage. "
                f"Received: path={self.path}, size={size}, stride={stride}, offset={offset}"
            )
        return Tensor(size, storage.dtype, lambda: self.read(storage, offset, size, stride))

    def parameter(self, data, *unused):
        return data

    def read(self, storage, offset, size, stride):
        dtype = DTYPES[storage.dtype]
        if not math.prod(size):
            return np.empty(size, dtype)
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        data = self.bytes(storage.info, offset * dtype.itemsize, (last + 1) * dtype.itemsize)
        if self.byteorder == ">":
            data = data.reshape(-1, dtype.itemsize)[:, ::-1].reshape(-1)
        flat = np.ascontiguousarray(data).view(dtype)
        strides = tuple(step * dtype.itemsize for step in stride)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, size, strides))

    def record(self, name):
        info = self.records[name]
        return self.bytes(info, 0, info.file_size).tobytes()

    def bytes(self, info, start, length):
        """Part of a record."""
        out = read_range(self.path, record_start(self.path, info) + start, (length,), np.uint8)
        # Writers may leave the checksum out, as 0.
        if length == info.file_size and info.CRC and zlib.crc32(out) != info.CRC:
            raise CheckpointError(
                f"The file is damaged: record {info.filename!r} does not have its checksum. "
                f"Received: path={self.path}"
            )
        return out


class _Storage:
    __slots__ = ("info", "dtype", "size")

    def __init__(self, info, dtype, size):
        self.info, self.dtype, self.size = info, dtype, size

    def __setstate__(self, state):
        raise TypeError("A storage must not be changed by the file it comes from.")


def read_zip(path: str | os.PathLike) -> object:
    """The object in a `.pth` file: containers of plain Python, tensors as `Tensor`.

    Raises:
        CheckpointError: not a checkpoint, damaged, or its pickle names anything that is
            neither a tensor nor a plain container. Nothing of it has run.
    """
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(path, file)
        return _Unpickler(io.BytesIO(archive.pickle), archive).load()
    except _Refused as error:
        raise refusal(path, str(error)) from None
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"The file is truncated or damaged ({error}). Received: path={path}"
        ) from error
    except Exception as error:  # whatever a malformed pickle makes the unpickler raise
        raise CheckpointError(
            f"The file must hold a PyTorch checkpoint ({type(error).__name__}: {error}). "
            f"Received: path={path}"
        ) from error


def refusal(path: str | os.PathLike, what: str) -> CheckpointError:
    """The error for a pickle that wants more than tensors."""
    return CheckpointError(
        "The checkpoint must hold tensors and plain containers only. It refers to "
        f"{what}, so reading it could run code; it was refused and nothing was run. (If you trust "
        "the file, load it in PyTorch and save its tensors alone.) "
        f"Received: path={path}"
    )


def read_legacy(path: str | os.PathLike) -> object:
    """The same as `read_zip` for the format before PyTorch 1.6, which needs PyTorch.

    Raises:
        CheckpointError: as `read_zip`, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "A .pth in the format before PyTorch 1.6 needs PyTorch: "
            f"pip install keras-internimage[convert]. Received: path={path}"
        ) from error
    ignored: list = [(Ignored, name) for name in sorted(_IGNORED) if not name.startswith("torch.")]
    try:
        with torch.serialization.safe_globals(ignored), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refusal(path, f"something else ({str(error).splitlines()[0]})") from error
    except Exception as error:  # torch.load raises many kinds on malformed files
        raise CheckpointError(
            f"The file is truncated or damaged ({type(error).__name__}: {error}). "
            f"Received: path={path}"
        ) from error
    return _replace_tensors(content, torch)


def _replace_tensors(content, torch):
    if isinstance(content, torch.Tensor):
        tensor = content.detach()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            return Ignored()
        return Tensor(tuple(tensor.shape), dtype, lambda: _numpy(tensor, dtype, torch))
    if isinstance(content, dict):
        return {key: _replace_tensors(value, torch) for key, value in content.items()}
    return content


def _numpy(tensor, dtype, torch):
    if dtype == "bfloat16":  # unknown to NumPy: the same bits as another type
        return tensor.contiguous().view(torch.int16).numpy().view(DTYPES[dtype]).copy()
    return tensor.contiguous().numpy().copy()
