"""Files that are whole or absent, and folders that may be replaced without losing anything."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

# Beside the files of a folder that this package wrote: which ones these are.
MANIFEST = ".keras_internimage.json"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, durable: bool = False) -> Iterator[str]:
    """A temporary path beside `path`, renamed to it only if the block succeeds.

    Args:
        path: of the file. Its folder must exist.
        durable: whether the file must be on the disk before it takes the place of an older one:
            then either survives a power failure.

    Raises:
        ValueError: the folder does not exist, or `path` is a folder or a device.
    """
    path = os.path.abspath(os.fspath(path))
    check_file(path)
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise ValueError(f"The output's folder must exist. Received: path={path}")
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as temporary:
        # Keras decides on the format by the ending, so the name is kept.
        unfinished = os.path.join(temporary, name)
        yield unfinished
        if durable:
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
        os.replace(unfinished, path)


def write_manifest(folder: str | os.PathLike, planned: Iterable[str] = ()) -> None:
    """Notes in a folder that this package wrote which files it holds.

    Args:
        folder: path of the folder.
        planned: names of files in it that are about to be written, for an output that may be
            interrupted.
    """
    folder = pathlib.Path(folder)
    files = sorted({*_files(folder), *planned})
    content = {"written by": "keras_internimage", "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def check_file(path: str | os.PathLike, suffixes: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless `path` is free, or a file that an output may replace.

    Args:
        path: of the output.
        suffixes: endings of such files, in lower case; none for any.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):
        raise ValueError(
            f"The output must be a file. Received: path={path}, a folder or device that exists"
        )
    if suffixes and not path.lower().endswith(suffixes):
        raise ValueError(
            f"An existing file is replaced only if its name ends in {' or '.join(suffixes)}. "
            f"Received: path={path}"
        )


def check_folder(folder: str | os.PathLike) -> None:
    """Raises unless a folder may be written in the place of what is there.

    That is so where nothing is, or an empty folder, or a folder with the files of its
    `write_manifest` and no others: then nothing is lost that this package did not write.

    Raises:
        ValueError: there is a file, or a folder with other files.
    """
    folder = pathlib.Path(folder)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        kind = "link" if folder.is_symlink() else "file"
        raise ValueError(
            f"The output must be a folder of its own. Received: path={folder}, which is a {kind}"
        )
    found = _files(folder)
    try:
        known = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        others = sorted(set(found) - set(known))
    except (OSError, ValueError, KeyError, TypeError):
        others = found
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            "The output must be a new or empty folder, or one that this package wrote: nothing "
            f"else is replaced. Received: path={folder}, which holds {others[0]}{more}"
        )


def _files(folder: pathlib.Path) -> list[str]:
    # Empty folders count as well: somebody made them.
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    ]
    return sorted(name for name in found if name != MANIFEST)
