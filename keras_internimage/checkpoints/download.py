"""Downloading published checkpoints and keeping them, converted, in Keras' cache."""

import contextlib
import os
import socket
import tempfile

import keras

from keras_internimage.checkpoints import convert, keras_files, load
from keras_internimage.checkpoints.errors import CheckpointError, DownloadError
from keras_internimage.checkpoints.read import open_checkpoint
from keras_internimage.files import atomic_write

# A connection that stays silent for so long is given up.
SECONDS_WITHOUT_DATA = 60


def cache_directory():
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


def cached_path(row):
    """Where the converted weights of a published checkpoint are kept."""
    return os.path.join(cache_directory(), f"{row.name}.weights.h5")


@contextlib.contextmanager
def _timeout(seconds):
    """A timeout for sockets opened in the block, which `get_file` has no argument for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def downloaded(row):
    """The official file of a published checkpoint, verified, until the block ends.

    Raises:
        DownloadError: it could not be had, or is not the published one. Nothing is left behind.
    """
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache_directory()) as folder:
        try:
            with _timeout(SECONDS_WITHOUT_DATA):
                path = keras.utils.get_file(
                    row.file,
                    origin=row.url,
                    cache_dir=folder,
                    cache_subdir="",
                    file_hash=row.sha256,
                    hash_algorithm="sha256",
                )
        except Exception as error:  # get_file wraps what it meets in plain Exceptions
            raise DownloadError(
                f"{row.name} could not be downloaded: {error} Without a connection: download "
                f"{row.url} elsewhere ({row.bytes} bytes, SHA-256 {row.sha256}) and pass the "
                f"file's path as `weights`. Received: weights={row.name!r}"
            ) from error
        yield path


def load_published(model, row, *, progress=None):
    """Load a published checkpoint from the cache, downloading and converting it the first time.

    The model is loaded straight from the official file. If it holds all of it, its weights
    become the cached file; otherwise a full model is made for that.

    Args:
        model: an InternImage.
        row: a `Published`.
        progress: as for `load_weights`.

    Returns:
        The `Report` of the load.

    Raises:
        DownloadError: the file could not be had.
        CheckpointError: it does not fit the model.
    """
    cached = cached_path(row)
    if os.path.exists(cached):
        return load.load_keras(model, read_cached(cached), progress=progress)
    with downloaded(row) as path:
        report = load.load_official(model, open_checkpoint(path), progress=progress)
        if _holds_everything(model, report):
            with atomic_write(cached) as unfinished:
                model.save_weights(unfinished)
        else:
            convert.convert(path, cached, variant=row.variant, progress=progress)
    return report


def fetch(row, progress=None):
    """Bring a published checkpoint into the cache, unless it is there; returns the file's path.

    Raises:
        DownloadError: the file could not be had.
    """
    cached = cached_path(row)
    if not os.path.exists(cached):
        with downloaded(row) as path:
            convert.convert(path, cached, variant=row.variant, progress=progress)
    return cached


def read_cached(path):
    """Open a converted file of the cache."""
    try:
        return keras_files.read(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"The cached file is damaged; delete it to download it again. {error}"
        ) from error


def _holds_everything(model, report):
    whole = not report.fresh and load.NO_HEAD not in report.excused
    return whole and all(
        keras.backend.standardize_dtype(variable.dtype) == "float32" for variable in model.weights
    )
