"""What goes wrong with weights files."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A weights file cannot be read, or does not fit the model it is loaded into."""


class MismatchError(CheckpointError):
    """Names or shapes of a file and a model differ.

    The message shows the first of each list, the attributes hold all.

    Attributes:
        missing: names the model needs and the file lacks.
        unused: names of the file that the model has no place for.
        wrong_shapes: names in both, with the two shapes.
    """

    def __init__(self, message, missing=(), unused=(), wrong_shapes=()):
        super().__init__(message)
        self.missing = tuple(missing)
        self.unused = tuple(unused)
        self.wrong_shapes = tuple(wrong_shapes)


class DownloadError(CheckpointError):
    """A published checkpoint could not be downloaded, or did not arrive intact."""


def listing(names: Iterable, limit: int = 20) -> str:
    """The first `limit` of `names`, comma-separated, and how many more there are."""
    names = list(names)
    text = ", ".join(str(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text}, ... ({len(names)} in all)"
