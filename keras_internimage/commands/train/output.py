"""The folder of a training: what is in it, who works in it, and files that are whole or absent."""

import contextlib
import csv
import enum
import io
import json
import os
import pathlib
import shutil

from keras_internimage.files import atomic_write

SETTINGS = "run.json"
IMAGES = "images.csv"
HISTORY = "history.csv"
LAST = "last.keras"
BEST = "best.keras"
MODEL = "model.keras"
LOGS = "logs"
REPORT = "report.html"
_LOCK = ".lock"
_PARTS = ("train", "validation")


class State(enum.Enum):
    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


class OutputError(ValueError):
    """The output folder cannot be used as asked."""


def state(folder):
    """The `State` of an output folder.

    Raises:
        OutputError: it is no folder, or holds something else.
    """
    if not folder.exists():
        return State.NEW
    if not folder.is_dir():
        raise OutputError(f"--output must be a folder. Received: --output {folder}, a file")
    if (folder / SETTINGS).is_file():
        content = read_settings(folder)
        return State.FINISHED if content.get("finished") else State.UNFINISHED
    if any(path.name != _LOCK for path in folder.iterdir()):
        raise OutputError(
            "--output must be a new or empty folder, or one of internimage-train. "
            f"Received: --output {folder}, which holds other files"
        )
    return State.NEW


def read_settings(folder):
    """The content of `run.json`.

    Raises:
        OutputError: it is damaged.
    """
    try:
        return json.loads((folder / SETTINGS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder / SETTINGS} must be readable. Received: {error}") from error


@contextlib.contextmanager
def locked(folder):
    """Makes the folder, and keeps other processes out until the block, or the process, ends.

    Raises:
        OutputError: another process works in it.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor):
            owner = os.read(descriptor, 100).decode("ascii", "replace").strip()
            by = f"process {owner}" if owner else "another process"
            raise OutputError(
                f"--output must not be in use. Received: --output {folder}, in use by {by}"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)
        if new and [path.name for path in folder.iterdir()] == [_LOCK]:
            shutil.rmtree(folder)  # nothing came of it


def _lock(descriptor):
    """Whether the lock could be had. It ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            # A byte far behind the process' number, which others may read.
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def replaced(path):
    """As `atomic_write`, and on the disk before the old file goes."""
    with atomic_write(path) as unfinished:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())


def clean(folder):
    """Removes what a killed process was writing."""
    for path in folder.glob(".unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.unfinished"):
        path.unlink()


def write_images(folder, images):
    """Writes `images.csv`: part, class, size in bytes and path of each image."""
    # Paths may hold bytes that are no UTF-8.
    with replaced(folder / IMAGES) as unfinished:
        with open(unfinished, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("part", "class", "bytes", "file"))
            for part in _PARTS:
                for path, label in getattr(images, part):
                    name = path.relative_to(images.folder).as_posix()
                    writer.writerow((part, images.class_names[label], path.stat().st_size, name))


def read_images(folder, data, class_names, skip_bad):
    """The images that a training began with, `(train, validation)` as in `scan`'s `Images`.

    Raises:
        OutputError: files are gone or have another size, unless `skip_bad`.
    """
    label = {name: index for index, name in enumerate(class_names)}
    parts = {part: [] for part in _PARTS}
    changed = []
    with open(folder / IMAGES, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = pathlib.Path(data, row["file"])
            try:
                if path.stat().st_size != int(row["bytes"]):
                    changed.append(f"{row['file']}: has another size")
            except OSError:
                changed.append(f"{row['file']}: is not there any more")
            parts[row["part"]].append((path, label[row["class"]]))
    if changed and not skip_bad:
        shown = "\n  ".join(changed[:10])
        more = f"\n  and {len(changed) - 10} more ({len(changed)} in all)" * (len(changed) > 10)
        raise OutputError(
            f"The images must be those that the training began with. Received: {data} with\n"
            f"  {shown}{more}\n--skip-bad goes on all the same: unreadable ones are left out."
        )
    return tuple(map(tuple, parts.values()))


def read_history(folder, epochs):
    """The first rows of `history.csv` as lists by name; the file is cut after them.

    A process that was killed may have written a row whose epoch is not in `last.keras`, or half a
    row.
    """
    path = folder / HISTORY
    if not path.exists():
        return {}
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = lines[: epochs + 1] if epochs else []
    if kept != lines:
        with replaced(path) as unfinished:
            pathlib.Path(unfinished).write_text("".join(kept), "utf-8")
    rows = list(csv.DictReader(io.StringIO("".join(kept))))
    return {key: [float(row[key]) for row in rows] for key in (rows[0] if rows else ())}
