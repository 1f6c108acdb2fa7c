"""The folder that keeps what was built: its place, its lock, and the failures it remembers."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile

from .toolchain import COMMAND, KernelsUnavailable

VARIABLE = "KERAS_INTERNIMAGE_CACHE"
SECONDS_OF_SILENCE = 5
_PREFIX = "dcnv3-"
_UNFINISHED = ".unfinished-"


def root():
    """`$KERAS_INTERNIMAGE_CACHE`, else `keras_internimage/kernels` in the user's cache folder.

    There is no falling back to a folder for temporary files: a library found there could be
    anybody's.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return pathlib.Path(os.path.abspath(os.path.expanduser(chosen)))
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not os.path.isabs(base):
        raise KernelsUnavailable(
            f"DCNv3's native kernels need a folder to be kept in: set {VARIABLE}. "
            f"Received: no home folder, XDG_CACHE_HOME={os.environ.get('XDG_CACHE_HOME')}"
        )
    return pathlib.Path(base, "keras_internimage", "kernels")


def folder(sources, tools):
    """Where the libraries lie that given tools make of given sources (two hashes)."""
    return root() / f"{_PREFIX}{sources}-{tools}"


def folders(sources="*"):
    """The folders there are for given sources, the latest first."""
    with writable(root()):
        found = [path for path in root().glob(f"{_PREFIX}{sources}-*") if path.is_dir()]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


@contextlib.contextmanager
def writable(path, advice=f"The variable {VARIABLE} names another one."):
    """Turns the system's errors of the block into one that says which folder must be writable."""
    try:
        yield
    except OSError as error:
        raise KernelsUnavailable(
            f"The folder for DCNv3's native kernels must be writable. {advice} "
            f"Received: {path} ({error})"
        ) from error


@contextlib.contextmanager
def locked(log):
    """One build at a time in the whole cache. The lock ends with its process, however that ends."""
    # Here, for what was built already is found without it.
    import filelock

    with writable(root()):
        root().mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root() / ".lock")
        try:
            lock.acquire(timeout=SECONDS_OF_SILENCE)
        except filelock.Timeout:
            log("keras_internimage: waiting for another process that builds the DCNv3 kernels ...")
            lock.acquire()
        except NotImplementedError as error:  # some network file systems have no locks
            raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def unfinished(path):
    """A new folder in `path`, gone after the block. Call it with the lock held.

    Those that killed builds left are removed first: no other build is running.
    """
    with writable(path):
        path.mkdir(parents=True, exist_ok=True)
        for left in root().glob(f"{_PREFIX}*/{_UNFINISHED}*"):
            # A compiler that outlived its build may still write there: the next build tries again.
            shutil.rmtree(left, ignore_errors=True)
        temporary = tempfile.mkdtemp(prefix=_UNFINISHED, dir=path)
    try:
        yield pathlib.Path(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _record(path, library):
    return path / f"{library.name}.{library.version}.failed.json"


def remember_failure(path, library, message, temporary):
    """Keep in the folder `path` why a library could not be built; `temporary`: of `unfinished`."""
    with writable(path):
        whole = temporary / "failed.json"
        whole.write_text(json.dumps({"message": message}))
        os.replace(whole, _record(path, library))


def forget_failure(path, library):
    with writable(path):
        _record(path, library).unlink(missing_ok=True)


def remembered_failure(path, library, cuda=False):
    """The message of an earlier attempt to build a library, or None."""
    try:
        message = json.loads(_record(path, library).read_text())["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is none, or it is unreadable: building will tell
    again = f"{COMMAND} build{' --cuda' if cuda else ''}"
    return f"{message}\nThis is remembered from an earlier attempt; `{again}` tries again."


def clean():
    """Remove every library of the cache; returns the folders that were removed."""
    if not root().is_dir():
        return []
    with locked(lambda line: None), writable(root()):
        removed = folders()
        for path in removed:
            shutil.rmtree(path)
    return removed
