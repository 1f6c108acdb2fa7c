"""Room on the disk: how much a training needs, and what is said where it ends."""

import contextlib
import errno
import math
import pathlib
import shutil

# For logs, tables and the report with its pictures.
OTHER_FILES = 8 << 20
_FULL = (errno.ENOSPC, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else ()))


class DiskFull(OSError):
    """There is not enough room on the disk; the message names the file, and what is needed."""


def is_full(error):
    """Whether an `OSError` says that the disk, or the user's part of it, is full."""
    return error.errno in _FULL


@contextlib.contextmanager
def naming(path, size=None):
    """Turns the error of a full disk into a `DiskFull` that names a file.

    Args:
        path: of the file that the block writes.
        size: bytes that it needs, None where unknown.

    Raises:
        DiskFull: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFull) or not is_full(error):
            raise
        needed = "" if size is None else f"{megabytes(size)} needed, "
        raise DiskFull(
            f"There must be room on the disk to write {error.filename or path}. "
            f"Received: {needed}{megabytes(free(path))} free"
        ) from error


def check(folder, files):
    """Raise unless there is room for files in a folder.

    Args:
        folder: path; it need not exist yet.
        files: bytes by what they are for.

    Raises:
        DiskFull: it says how much each of them needs.
    """
    needed, left = sum(files.values()), free(folder)
    if left < needed:
        parts = ", ".join(f"{megabytes(size)} for {name}" for name, size in files.items())
        raise DiskFull(
            f"There must be room on the disk of {folder} for {megabytes(needed)} ({parts}). "
            f"Received: {megabytes(left)} free"
        )


def free(path):
    """Bytes that may be written to the disk of a path, which need not exist."""
    path = pathlib.Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def size_of(variables):
    """Bytes of Keras variables."""
    import ml_dtypes  # noqa: F401  (it tells NumPy of bfloat16)
    import numpy as np

    return sum(math.prod(v.shape) * np.dtype(str(v.dtype)).itemsize for v in variables)


def megabytes(size):
    """Bytes as text, rounded up: `12 MB`, `1.5 GB`."""
    if size < 1e9:
        return f"{math.ceil(size / 1e6)} MB"
    return f"{math.ceil(size / 1e8) / 10:.1f} GB"
