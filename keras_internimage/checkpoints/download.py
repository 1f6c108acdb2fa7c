"""Downloading published checkpoints and keeping them, verified, in Keras' cache.

The cache holds the official file itself. A stamp beside it remembers that the file of this size
and modification time was verified: hashing 6 GB takes longer than loading it.
"""

import contextlib
import json
import os
import socket
import tempfile
import urllib.error

import keras

from keras_internimage.checkpoints import published
from keras_internimage.checkpoints.errors import CheckpointError, DownloadError
from keras_internimage.checkpoints.published import Published
from keras_internimage.checkpoints.read import open_checkpoint
from keras_internimage.files import atomic_write

# A connection that stays silent for so long is given up.
SECONDS_WITHOUT_DATA = 60


def cache_directory() -> str:
    """The folder for models in Keras' cache: `$KERAS_HOME/models` or `~/.keras/models`.

    As for `keras.utils.get_file`, a folder for temporary files takes its place where that one
    cannot be written.
    """
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    for base in (home, os.path.join(tempfile.gettempdir(), ".keras")):
        folder = os.path.join(os.path.expanduser(base), "models")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise DownloadError(f"Keras' cache must be writable. Received: KERAS_HOME={home}")


def cached_path(row: Published) -> str:
    """Where the official file of a published checkpoint is kept."""
    return os.path.join(cache_directory(), row.file)


def is_cached(row: Published) -> bool:
    """Whether the official file of a published checkpoint is in the cache, verified."""
    return _is_stamped(cached_path(row), row)


def fetch(row: Published) -> str:
    """Bring the official file of a published checkpoint into the cache, unless it is there.

    Processes that want the same file at once wait for the one that downloads it.

    Returns:
        The path of the file, verified by size and SHA-256. Where no SHA-256 is known, by its size,
        if that is, and by its being a checkpoint that can be opened; the file's own SHA-256 is
        printed and kept, and from then on it is verified by that.

    Raises:
        DownloadError: the file could not be had, or is not the published one.
    """
    import filelock

    path = cached_path(row)
    if _is_stamped(path, row):
        return path
    folder, name = os.path.split(path)
    lock = filelock.FileLock(os.path.join(folder, f".{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Another process is downloading {row.name}; waiting for it.")
        lock.acquire()
    try:
        if not _is_stamped(path, row) and not _verify_cached(path, row):
            _download(path, row)
    finally:
        lock.release()
    return path


def _stamp_path(path):
    return f"{path}.verified.json"


def _stamp(path, digest):
    status = os.stat(path)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}


def _write_stamp(path, row):
    """Remembers a verified file; where no SHA-256 is known, from now on it is this file's."""
    digest = _expected_digest(path, row)
    if digest is None:
        digest = published.sha256(path)
        print(
            f"{row.name}: no published SHA-256 is known. This file of {os.path.getsize(path)} "
            f"bytes has {digest}; a later change will be noticed by it."
        )
    with atomic_write(_stamp_path(path)) as unfinished:
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(_stamp(path, digest), file)


def _read_stamp(path):
    try:
        with open(_stamp_path(path), encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _expected_digest(path, row):
    """The published SHA-256; where it is not known that of the first file here, or None."""
    return row.sha256 or _read_stamp(path).get("sha256")


def _is_stamped(path, row):
    """Whether the file is the one that was verified: nothing of it is read."""
    digest = _expected_digest(path, row)
    try:
        return digest is not None and _read_stamp(path) == _stamp(path, digest)
    except OSError:
        return False


def _difference(path, row, expected):
    """What tells a file from the published one, None if nothing does.

    Args:
        path, row: the file, and what it should be.
        expected: the SHA-256 that it must have, None where none is known.
    """
    size = os.path.getsize(path)
    if row.bytes not in (None, size):
        return f"{size} bytes instead of {row.bytes}"
    if expected is None:
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            return f"no checkpoint in it ({error})"
        return None
    digest = published.sha256(path)
    return None if digest == expected else f"another SHA-256: {digest}"


def _verify_cached(path, row):
    """Verify a file of the cache that has no valid stamp; False: it is to be downloaded."""
    if not os.path.exists(path):
        return False
    difference = _difference(path, row, _expected_digest(path, row))
    if difference is None:
        _write_stamp(path, row)
        return True
    # Only what this package put there is replaced.
    if not os.path.exists(_stamp_path(path)):
        raise DownloadError(
            f"The file in the place of {row.name} in the cache must be the published one; it has "
            f"{difference}. Move it away to download the published one. Received: path={path}"
        )
    print(f"{path} was changed ({difference}); {row.name} is downloaded again.")
    return False


@contextlib.contextmanager
def timeout():
    """A timeout for sockets opened in the block, which `get_file` has no argument for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or SECONDS_WITHOUT_DATA)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(path, row):
    with tempfile.TemporaryDirectory(prefix=".download-", dir=os.path.dirname(path)) as folder:
        try:
            with timeout():
                # No library for downloads would do more: this one shows Keras' progress bar, obeys
                # the proxy's environment variables, and every user of Keras has it.
                arrived = keras.utils.get_file(
                    row.file, origin=row.url, cache_dir=folder, cache_subdir=""
                )
        except Exception as error:  # get_file wraps what it meets in plain Exceptions
            raise _failure(row, path, reason(error)) from error
        difference = _difference(arrived, row, _expected_digest(path, row))
        if difference is not None:
            raise _failure(row, path, f"what arrived has {difference}")
        os.replace(arrived, path)
    _write_stamp(path, row)


def reason(error: Exception) -> str:
    """What happened in `get_file`, without the URL and the numbers that it puts around it."""
    cause = _cause(error)
    if isinstance(cause, urllib.error.HTTPError):
        return f"HTTP {cause.code} {cause.msg}"
    if isinstance(cause, urllib.error.URLError):
        return str(cause.reason)
    return str(cause) or type(cause).__name__


def http_status(error: Exception) -> int | None:
    """The status code of the server's refusal in `get_file`, None if it was something else."""
    return getattr(_cause(error), "code", None)


def _cause(error):
    context = error.__context__
    return context if isinstance(context, urllib.error.URLError) else error


def _failure(row, path, what):
    size = f"{row.bytes} bytes" if row.bytes else "of a size that is not known"
    digest = f"SHA-256 {row.sha256}" if row.sha256 else "SHA-256 not known"
    return DownloadError(
        f"{row.name} could not be downloaded ({what.rstrip('.')}). Without a connection, get "
        f"{row.url} on another machine ({size}, {digest}) and save it as "
        f"{path}, or pass its path as `weights`. Received: weights={row.name!r}"
    )
