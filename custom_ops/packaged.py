"""The libraries that come with an installed wheel: nothing is compiled where they are.

A wheel for a platform has them in the folder `binaries` beside this file, and with them a manifest
that tells which sources they were made of. Neither is in the repository nor in a wheel for any
platform.
"""

import json
import os

from . import libraries, toolchain
from .toolchain import KernelsUnavailable

FOLDER = libraries.SOURCES / "binaries"
MANIFEST = "manifest.json"


def find(backend):
    """The path of a backend's library in the wheel, None where it has none that will do.

    Args:
        backend: one of `libraries.BACKENDS`, or None for the core.

    Raises:
        KernelsUnavailable: the framework is not installed, or too old.
    """
    name = _name(backend)
    return FOLDER / name if _why_not(backend, name) is None else None


def explain(backend):
    """A sentence on why the wheel's libraries cannot be used; nothing where there is no wheel."""
    try:
        reason = _why_not(backend, _name(backend))
    except KernelsUnavailable:
        return ""  # what is raised elsewhere says more
    return f" {reason}" if reason else ""


def _name(backend):
    return libraries.packaged_name(toolchain.framework(backend)) if backend else libraries.CORE


def _why_not(backend, name):
    """None if the wheel's library of this name can be used, or else a sentence; "": no wheel."""
    try:
        key = json.loads((FOLDER / MANIFEST).read_text())["key"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"The manifest of the wheel's libraries must be readable. Received: {error!r}."
    if key != libraries.packaged_key():
        return (
            "The libraries of the installed wheel must be made of the sources beside them. "
            f"Received: {FOLDER}, made of others."
        )
    missing = [file for file in (libraries.CORE, name) if not os.path.isfile(FOLDER / file)]
    if missing:
        version = toolchain.framework(backend).version if backend else ""
        return (
            f"The installed wheel has no {', '.join(missing)}, for {backend} {version}. "
            f"Found there: {', '.join(libraries.found_in(FOLDER)) or 'none'}."
        )
    return None
