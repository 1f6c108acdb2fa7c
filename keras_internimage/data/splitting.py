"""Images for training and for validation: apart from each other, copies included."""

import pathlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from keras_internimage.data import duplicates
from keras_internimage.data.check import shown


def on_both_sides(
    train: Sequence[pathlib.Path], validation: Sequence[pathlib.Path], folder: pathlib.Path
) -> list[tuple[pathlib.Path, str]]:
    """`(path, reason)` of images to train on that are for validation, too.

    The same file by any kind of link, or a copy of its content.
    """
    twin = {one: other for one, other in duplicates.same_files(list(train), list(validation))}
    held_out = set(validation)
    readable = [image for image in dict.fromkeys([*train, *validation]) if image.is_file()]
    for group in duplicates.copies(readable):
        other = next((image for image in group if image in held_out), None)
        if other is not None:
            twin |= {one: other for one in group if one not in held_out}
    problems = []
    for image in train:
        other = twin.get(image, image if image in held_out else None)
        if other is not None:
            problems.append((image, f"is for validation, too, as {shown(other, folder)}"))
    return problems


def split(
    items: Sequence[Any],
    share: float,
    seed: int | tuple[int, ...],
    same: Callable[[pathlib.Path], Hashable] = lambda path: path,
) -> tuple[list, list]:
    """Keeps a part of the items for validation: `round(items * share)`, at least one, never all.

    Args:
        items: tuples whose first element is the path of an image. What copies of one image are in
            stays on one side.
        share: of the items, for validation.
        seed: integer, or several; the same gives the same split.
        same: images of which this function is equal stay on one side, too.

    Returns:
        `(for training, for validation)`, each in the order of `items`.
    """
    groups: dict[Hashable, list] = {}
    for item in items:
        groups.setdefault(same(item[0]), []).append(item)
    key_of = {item[0]: key for key, group in groups.items() for item in group}
    for copies in duplicates.copies(list(key_of)):
        first = key_of[copies[0]]
        for image in copies[1:]:
            other = key_of[image]
            if other != first:
                moved = groups.pop(other)
                groups[first] += moved
                key_of |= {item[0]: first for item in moved}
    units = list(groups.values())
    wanted = min(max(1, round(len(items) * share)), len(items) - 1)
    kept: set[pathlib.Path] = set()
    for index in np.random.default_rng(seed).permutation(len(units)):
        if len(kept) + len(units[index]) <= wanted:
            kept.update(item[0] for item in units[index])
    train = [item for item in items if item[0] not in kept]
    return train, [item for item in items if item[0] in kept]
