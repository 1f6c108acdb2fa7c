"""What the commands share that take images and write a folder of results."""

import csv
import functools
import io
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from keras_internimage import files
from keras_internimage.data.check import printable, reading
from keras_internimage.data.folders import images_below


def find(
    given: Sequence[str], out: pathlib.Path
) -> tuple[dict[str, pathlib.Path], list[tuple[pathlib.Path, str]]]:
    """Images by the name of their results, and `(path, reason)` of what is none.

    Args:
        given: paths of images and folders.
        out: folder of the results; what lies in it is no image.

    Raises:
        ValueError: there are no images.
    """
    paths, bad = [], []
    for path in map(pathlib.Path, given):
        if path.is_dir():
            # The results of an earlier run are no images.
            inside = out.resolve()
            below = images_below(path)
            paths += [p for p in below if not p.resolve().is_relative_to(inside)]
        elif path.exists():
            paths.append(path)
        else:
            bad.append((path, "no such file"))
    unreadable = [path for path in dict.fromkeys(paths) if shown(path.name) != path.name]
    bad += [(path, "the name is no UTF-8") for path in unreadable]
    found = distinct_names(path for path in paths if shown(path.name) == path.name)
    check_found(found, bad, given)
    return found, bad


def distinct_names(paths: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Paths by their names without endings; `name-2` for the second of one name."""
    found: dict[str, pathlib.Path] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        name, number = path.stem, 1
        while name.casefold() in taken:  # the same name in another folder, or of another format
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        found[name] = path
    return found


def check_found(
    found: dict[str, pathlib.Path], bad: list[tuple[pathlib.Path, str]], given: Sequence[str]
) -> None:
    """Raises ValueError where there are no images: before a model is loaded in vain."""
    if found:
        return
    reasons = "; ".join(f"{shown(path)}: {reason}" for path, reason in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    what = reasons + more if bad else f"{', '.join(map(shown, given))} with none"
    raise ValueError(f"There must be images. Received: {what}")


def read(path: pathlib.Path):
    """`(reason, None)` why an image cannot be read, or `(None, image)`, upright, of Pillow."""
    from keras_internimage.preprocessing import read_image

    return reading(path, functools.partial(read_image, path))


def shown(file: Any) -> str:
    """The name of a file, printable."""
    return printable(str(file))


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_csv(path: pathlib.Path, heads: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file of text, whole or not at all."""
    with files.atomic_write(path) as unfinished:
        pathlib.Path(unfinished).write_text(text, "utf-8", newline="")
