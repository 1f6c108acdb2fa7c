"""Images that are there twice: the same file by links, or copies of one content."""

import collections
import hashlib
import pathlib


def same_files(
    first: list[pathlib.Path], second: list[pathlib.Path]
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Pairs `(of first, of second)` of paths that lead to one file, by any kind of link."""
    known = {_identity(path): path for path in first}
    known.pop(None, None)
    pairs = [(known.get(_identity(path)), path) for path in second]
    return [(one, other) for one, other in pairs if one is not None]


def copies(files: list[pathlib.Path]) -> list[list[pathlib.Path]]:
    """Groups of two and more files of the same content, in the order of `files`.

    Only files of one size are compared, by their SHA-256.
    """
    by_size = collections.defaultdict(list)
    for path in files:
        by_size[path.stat().st_size].append(path)
    by_content = collections.defaultdict(list)
    for size, group in by_size.items():
        if len(group) > 1:
            for path in group:
                with open(path, "rb") as file:
                    by_content[size, hashlib.file_digest(file, "sha256").digest()].append(path)
    return [group for group in by_content.values() if len(group) > 1]


def _identity(path):
    try:
        status = path.stat()
    except OSError:  # a link to nothing
        return None
    return status.st_dev, status.st_ino
