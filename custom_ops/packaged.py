"""The libraries that come with installed wheels: nothing is compiled where they are.

A wheel for a platform has those for processors in the folder `binaries` beside this file. Those for
NVIDIA GPUs are in packages of their own, one for each major version of CUDA. Such a folder has all
that a process loads, and a manifest that tells which sources it was made of. There is none in the
repository or in a wheel for any platform.
"""

import importlib.util
import json
import os
import pathlib

from . import libraries, toolchain
from .toolchain import KernelsUnavailable

FOLDER = libraries.SOURCES / "binaries"
MANIFEST = "manifest.json"
# In the order of preference: a driver that serves the later one serves the earlier one, too.
CUDA_PACKAGES = ("keras_internimage_cu12", "keras_internimage_cu13")


def find(backend, cuda=False, refused=()):
    """The path of a backend's library in a wheel, None where there is none that will do.

    Args:
        backend: one of `libraries.BACKENDS`, or None for the core.
        cuda: whether it also computes on NVIDIA GPUs.
        refused: folders that are not looked into.

    Raises:
        KernelsUnavailable: the framework is not installed, or too old.
    """
    name = _name(backend, cuda)
    for folder in _folders(cuda):
        if folder not in refused and _why_not(folder, backend, name, cuda) is None:
            return folder / name
    return None


def explain(backend, cuda=False):
    """Sentences on why the wheels' libraries cannot be used; nothing where there is no wheel."""
    try:
        name = _name(backend, cuda)
    except KernelsUnavailable:
        return ""  # what is raised elsewhere says more
    reasons = (_why_not(folder, backend, name, cuda) for folder in _folders(cuda))
    return "".join(f" {reason}" for reason in reasons if reason)


def wheel_of(path):
    """The name of the wheel for GPUs that a library is in, "" for that of this package, or None."""
    if path.parent == FOLDER:
        return ""
    return path.parent.name.replace("_", "-") if path.parent in _folders(True) else None


def _folders(cuda):
    if not cuda:
        return [FOLDER]
    specs = map(importlib.util.find_spec, CUDA_PACKAGES)
    return [pathlib.Path(spec.origin).parent for spec in specs if spec and spec.origin]


def _name(backend, cuda):
    if not backend:
        return libraries.CORE
    return libraries.packaged_name(toolchain.framework(backend), cuda)


def _why_not(folder, backend, name, cuda):
    """None if the library of this name can be used, or else a sentence; "": no wheel."""
    try:
        key = json.loads((folder / MANIFEST).read_text())["key"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"The manifest of the wheel's libraries must be readable. Received: {error!r}."
    if key != libraries.packaged_key():
        beside = "of the installed keras-internimage" if cuda else "beside them"
        return (
            f"The libraries of the installed wheel must be made of the sources {beside}. "
            f"Received: {folder}, made of others."
        )
    names = dict.fromkeys([*libraries.needed_names(cuda), name])
    missing = [file for file in names if not os.path.isfile(folder / file)]
    if missing:
        version = toolchain.framework(backend).version if backend else ""
        return (
            f"The installed wheel has no {', '.join(missing)}, for {backend} {version}. "
            f"Found there: {', '.join(libraries.found_in(folder)) or 'none'}."
        )
    return None
