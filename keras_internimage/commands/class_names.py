"""Whether the classes of some data are those of a model."""

from collections.abc import Callable, Sequence
from typing import Any

from keras_internimage.data.layout import FolderError


def check(
    where: Any,
    there: Sequence[str],
    classes: int,
    names: Sequence[str] | None,
    say: Callable[[str], object],
) -> None:
    """Raises FolderError unless the classes of data are as many as a model's, in their order.

    Args:
        where: the folder or file that has them.
        there: their names.
        classes: number of the model's classes.
        names: of the model's classes; None where they are not known.
        say: is given a remark where all names differ.
    """
    if len(there) != classes:
        raise FolderError(
            f"There must be as many classes as the model has, {classes}. "
            f"Received: {where} with {len(there)}"
        )
    if names is not None and tuple(names) != tuple(there):
        if set(names) == set(there):
            raise FolderError(
                "The classes must be in the order of the model's. "
                f"Received: {', '.join(there)} instead of {', '.join(names)}"
            )
        say("the classes have other names than the model's; they are compared by their numbers")
