"""Where JAX keeps what it compiled for the tests, so that a new clone does not start from nothing.

JAX knows its own entries by program and flags. The folder's name has what else decides whether
one can be used: other versions, or another processor on the same home, have a folder of their own.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import sys
import time

UNUSED = 30 * 24 * 3600  # seconds after which a folder is removed
PACKAGES = ("jax", "jaxlib", "keras", "numpy")


def processor():
    """The model and the instruction sets of this machine's processor, as far as it says."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        text = ""
    lines = re.findall(r"^(?:model name|flags|Features)\s*:.*$", text.split("\n\n")[0], re.M)
    return [platform.machine(), *lines]


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def folder():
    """The path of the folder, in the user's cache."""
    parts = [sys.version, *map(version, PACKAGES), *processor()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "keras_internimage" / "tests" / f"jax-{key}"


def prepare():
    """Returns the folder, after those that no run used for a month are removed."""
    current = folder()
    current.mkdir(parents=True, exist_ok=True)
    os.utime(current)
    for other in current.parent.glob("jax-" + "[0-9a-f]" * 16):
        if time.time() - other.stat().st_mtime > UNUSED:
            shutil.rmtree(other, ignore_errors=True)
    return str(current)
