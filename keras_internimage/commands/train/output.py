"""The output folder of a training: what is in it, and which process works in it."""

import contextlib
import csv
import enum
import io
import json
import os
import pathlib
import shutil

import filelock

from keras_internimage.commands.train import disk
from keras_internimage.files import atomic_write

SETTINGS = "run.json"
IMAGES = "images.csv"
HISTORY = "history.csv"
LAST = "last.keras"
BEST = "best.keras"
MODEL = "model.keras"
LOGS = "logs"
REPORT = "report.html"
# The lock, and the number of the process that holds it: Windows lets no other read a locked file.
_LOCK, _OWNER = ".lock", ".lock-owner"
# How Python keeps bytes of file names that are no UTF-8.
BYTES = "surrogateescape"
PARTS = ("train", "validation")
# Columns of files in `images.csv`, and those of their sizes.
FILES = {"file": "bytes", "mask": "mask bytes"}


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
    if not _is_empty(folder):
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


def check_writable(folder):
    """Raise unless an output folder, or what is missing on the path to it, can be made.

    Raises:
        OutputError: it cannot.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            "--output must be a folder that can be written. "
            f"Received: --output {folder}, and {existing} "
            + ("is read-only for this user" if existing.is_dir() else "is a file")
        )


@contextlib.contextmanager
def locked(folder):
    """Makes the folder, and keeps other processes out until the block, or the process, ends.

    Raises:
        OutputError: another process works in it.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = filelock.FileLock(folder / _LOCK), folder / _OWNER
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        try:
            by = f"process {owner.read_text('ascii')}"
        except (OSError, ValueError):
            by = "another process"
        raise OutputError(
            f"--output must not be in use. Received: --output {folder}, in use by {by}"
        ) from None
    try:
        owner.write_text(str(os.getpid()), "ascii")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
        if new and _is_empty(folder):
            shutil.rmtree(folder)  # nothing was written into it


def _is_empty(folder):
    return all(path.name in (_LOCK, _OWNER) for path in folder.iterdir())


@contextlib.contextmanager
def durable_write(path, size=None):
    """`atomic_write` that survives a power failure, and names the file where the disk is full.

    Args:
        path: of the file.
        size: bytes that it needs, for the message about a full disk; None where unknown.

    Raises:
        DiskFull: there is no room; the old file is kept.
    """
    with disk.naming(path, size), atomic_write(path, durable=True) as unfinished:
        yield unfinished


def remove_unfinished(folder):
    """Removes what a killed process was writing."""
    for path in folder.glob(".unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)


def entry(path, folder, file="file", size="bytes"):
    """What `images.csv` says of a file: its size in bytes, and its path below a folder."""
    return {size: path.stat().st_size, file: path.relative_to(folder).as_posix()}


def write_images(folder, rows):
    """Writes `images.csv`: dicts of a part of the data, files (`entry`), and what else is known."""
    with durable_write(folder / IMAGES) as unfinished:
        # Paths may hold bytes that are no UTF-8: they are written as they are.
        with open(unfinished, "w", encoding="utf-8", errors=BYTES, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def read_images(folder, data, skip_bad):
    """The rows of `images.csv`, which a training started with; files as paths.

    Raises:
        OutputError: files are gone or have another size, unless `skip_bad`.
    """
    found, changed = [], []
    with open(folder / IMAGES, encoding="utf-8", errors=BYTES, newline="") as file:
        for row in csv.DictReader(file):
            for name in FILES.keys() & row:
                path = pathlib.Path(data, row[name])
                try:
                    if path.stat().st_size != int(row[FILES[name]]):
                        changed.append(f"{row[name]}: has another size")
                except OSError:
                    changed.append(f"{row[name]}: is not there any more")
                row[name] = path
            found.append(row)
    if changed and not skip_bad:
        shown = "\n  ".join(changed[:10])
        if len(changed) > 10:
            shown += f"\n  and {len(changed) - 10} more ({len(changed)} in all)"
        raise OutputError(
            f"The images must be those that the training started with. Received: {data} with\n"
            f"  {shown}\n--skip-bad resumes all the same, and leaves out unreadable images."
        )
    return found


def read_history(folder, epochs):
    """The first rows of `history.csv` as lists by name; the file is cut after them.

    A killed process may have written a row whose epoch is not in `last.keras`, or half a row.
    """
    path = folder / HISTORY
    if not path.exists():
        return {}
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = lines[: epochs + 1] if epochs else []
    if kept != lines:
        with durable_write(path) as unfinished:
            pathlib.Path(unfinished).write_text("".join(kept), "utf-8")
    rows = list(csv.DictReader(io.StringIO("".join(kept))))
    return {key: [float(row[key]) for row in rows] for key in (rows[0] if rows else ())}
