"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import os
import tempfile


@contextlib.contextmanager
def atomic_write(path, durable=False):
    """A temporary path beside `path`, renamed to it only if the block succeeds.

    Args:
        path: of the file. Its folder must exist.
        durable: whether the file must be on the disk, not only in memory, before it is renamed:
            then the old one survives a power failure as well.

    Raises:
        ValueError: the folder does not exist.
    """
    path = os.path.abspath(os.fspath(path))
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
