"""A folder of images by class: what is in it, and what is wrong with it, before training starts."""

import collections
import dataclasses
import itertools
import os
import pathlib
import unicodedata

import numpy as np

from keras_internimage.data import duplicates
from keras_internimage.data.check import (
    SHOWN,
    check_share,
    count,
    printable,
    refusal,
    shown,
    unreadable,
)
from keras_internimage.data.layout import FolderError, Found, check_given, parts

# From this ratio of the largest class to the smallest on, a note says how to balance them.
IMBALANCE = 5


@dataclasses.dataclass(frozen=True)
class Images:
    """What `scan` found.

    Attributes:
        folder: the folder, as given.
        class_names: names of the classes, sorted.
        train, validation: `(path, label)` of each image; a label is an index into `class_names`.
        bad: `(path, reason)` of each file left out, with `skip_bad`.
        notes: sentences the user should read.

    `counts()` gives the numbers of images by class.
    """

    folder: pathlib.Path
    class_names: tuple[str, ...]
    train: tuple[tuple[pathlib.Path, int], ...]
    validation: tuple[tuple[pathlib.Path, int], ...]
    bad: tuple[tuple[pathlib.Path, str], ...] = ()
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, tuple[int, int]]:
        """`(train, validation)` numbers of images by the name of the class."""
        numbers = [
            collections.Counter(label for _, label in part)
            for part in (self.train, self.validation)
        ]
        return {
            name: (numbers[0][label], numbers[1][label])
            for label, name in enumerate(self.class_names)
        }


def scan(
    folder: str | os.PathLike,
    validation_split: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    threads: int | None = None,
) -> Images:
    """Finds the images of a folder, and reads every one of them to the end.

    The folder has one folder for each class, or one for training (`train/`, `training_set/`,
    `seg_train/`, ...) and one for validation (`val/`, `valid/`, `dev/`, ...) with these inside; one
    for tests is not looked at. Folders within a class belong to it; links are followed; left out
    are hidden files, files that are no images by their suffix, and output folders of
    `internimage-train`. Without a folder for validation, a part of each class is kept for it:
    `round(images * validation_split)`, but at least one, and never all.

    Args:
        folder: path of the folder.
        validation_split: share of the images for validation, more than 0 and less than 1.
        seed: integer; the same one gives the same split.
        skip_bad: whether to leave out files that cannot be read and classes without an image,
            instead of refusing them.
        threads: how many read at the same time; None takes one for each processor.

    Returns:
        `Images`.

    Raises:
        FolderError: what is wrong: all of it in one message, by name. It tells what `skip_bad`
            cannot help with.
        ValueError: an argument is out of range.
    """
    check_share("validation_split", validation_split)
    folder = check_given(folder)
    found = Found(folder)
    train, validation = parts(found)
    problems = _names(train, validation) + _same_files(train, validation, folder)
    files = sorted(set(itertools.chain(*train.values(), *validation.values())))
    bad = list(found.bad) + unreadable(files, folder, threads)
    left_out = {file for file, _ in bad}
    train, validation = (
        {name: [file for file in files if file not in left_out] for name, files in part.items()}
        for part in (train, validation)
    )
    if bad and not skip_bad:
        problems += [f"{shown(file, folder)}: {reason}" for file, reason in bad]
    empty = [name for name, files in train.items() if not files]
    if skip_bad:
        train = {name: files for name, files in train.items() if files}
        validation = {name: files for name, files in validation.items() if name not in empty}
    else:
        problems += [f"{printable(name)}/: {_why_empty(folder, name, found)}" for name in empty]
    problems += _number_of_classes(train, folder)
    if problems:
        skippable = (0, 0) if skip_bad else (len(bad), len(empty))
        raise FolderError(_message(folder, problems, *skippable))
    if not validation:
        train, validation = _split(train, validation_split, seed)
        if not any(validation.values()):
            raise FolderError(
                "At least one class must have two images, one of them for validation. "
                f"Received: {folder} with {len(train)} classes of one image each"
            )
    notes = _notes(found, train, validation, bad, empty if skip_bad else [])
    names = tuple(sorted(train))
    label = {name: index for index, name in enumerate(names)}
    labelled_train, labelled_validation = (
        tuple((file, label[name]) for name in names for file in part.get(name, ()))
        for part in (train, validation)
    )
    left_out_bad = tuple(bad) if skip_bad else ()
    return Images(folder, names, labelled_train, labelled_validation, left_out_bad, notes)


def images_below(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Paths of all images in a folder and the folders in it, as `scan` finds them."""
    return Found(pathlib.Path(folder)).images(pathlib.Path(folder))


def _names(train, validation):
    """What is wrong with the names of the classes."""
    problems = []
    for where, part in (("", train), ("validation: ", validation)):
        same = collections.defaultdict(list)
        for name in part:
            same[unicodedata.normalize("NFC", name).casefold()].append(name)
        for names in same.values():
            if len(names) > 1:
                listed = ", ".join(f"{printable(name)}/" for name in names)
                problems.append(f"{where}{listed}: the names of classes differ in case only")
        for name in part:
            if printable(name) != name:
                problems.append(f"{where}{printable(name)}/: the name is no UTF-8")
    for name in validation:
        if name not in train:
            problems.append(f"{printable(name)}/: a class for validation that is not trained")
    return problems


def _same_files(train, validation, folder):
    """Files that would be trained on and validated with."""
    pairs = duplicates.same_files(
        list(itertools.chain(*train.values())), list(itertools.chain(*validation.values()))
    )
    return [
        f"{shown(other, folder)}: for validation, is the same file as {shown(one, folder)}"
        for one, other in pairs
    ]


def _why_empty(folder, name, found):
    """Why a class has no image: which files are in its folder, and why they are none."""
    kinds = {}
    for suffix, paths in found.ignored.items():
        own = [x for x in paths if name in x.relative_to(folder).parts[:-1]]
        if own:
            kinds[suffix] = own
    if not kinds:
        return "has no image"
    listed = ", ".join(f"{len(own)} {suffix}" for suffix, own in sorted(kinds.items()))
    example = printable(next(iter(kinds.values()))[0].name)
    return (
        f"has no image; images are told by a suffix such as .jpg or .png, and its files have "
        f"others ({listed}; for example {example})"
    )


def _number_of_classes(train, folder):
    if len(train) != 1:
        return [] if train else ["there is no class with an image"]
    (name,) = train
    return [
        f"{printable(name)}/: is the only class, and there must be two or more (is one folder "
        f"for each class inside? then pass {folder / name})"
    ]


def _message(folder, problems, bad, empty):
    what = []
    if bad:
        what.append(f"{'the file' if bad == 1 else f'the {bad} files'} that cannot be read")
    if empty:
        what.append("the empty class" if empty == 1 else f"the {empty} empty classes")
    return refusal(folder, problems, bad + empty, " and ".join(what))


def _split(classes, share, seed):
    """Keeps a part of each class for validation."""
    train, validation = {}, {}
    for index, (name, files) in enumerate(sorted(classes.items())):
        count = min(max(1, round(len(files) * share)), len(files) - 1)
        order = np.random.default_rng((seed, index)).permutation(len(files))
        kept = set(order[:count].tolist())
        train[name] = [file for i, file in enumerate(files) if i not in kept]
        validation[name] = [file for i, file in enumerate(files) if i in kept]
    return train, validation


def _notes(found, train, validation, bad, empty):
    notes = []
    if bad:
        notes.append(f"{count(len(bad), 'file')} left out: unreadable.")
    if empty:
        notes.append(f"Left out, having no image: {_some(sorted(empty))}.")
    if found.loose:
        loose = count(found.loose, "image")
        notes.append(f"{loose} left out: outside the folders of classes.")
    if found.ignored:
        kinds = ", ".join(sorted(found.ignored))
        others = count(sum(map(len, found.ignored.values())), "file")
        notes.append(f"{others} left out: no images by suffix ({kinds}).")
    if found.outputs:
        names = sorted({path.name for path in found.outputs})
        notes.append(f"Left out, being the output of a training: {_some(names)}.")
    for name in found.not_used:
        notes.append(f"{printable(name)}/ is not looked at.")
    unmeasured = [name for name in sorted(train) if not validation.get(name)]
    if unmeasured:
        notes.append(f"Without an image for validation: {_some(unmeasured)}.")
    notes += _copies(found.folder, train, validation)
    sizes = {name: len(files) for name, files in train.items()}
    most, least = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
    if sizes[most] >= IMBALANCE * sizes[least]:
        notes.append(
            f"The classes differ much in size: {sizes[most]} images of {printable(most)} to train "
            f"on, {sizes[least]} of {printable(least)}. --class-weights balanced or --sampling "
            "balanced has them count alike."
        )
    return tuple(notes)


def _copies(folder, train, validation):
    """Notes of images whose content is there twice where it matters."""
    places = collections.defaultdict(list)  # path -> (class, whether for validation)
    for held_out, part in ((False, train), (True, validation)):
        for name, files in part.items():
            for file in files:
                places[file].append((name, held_out))
    leaked, contradicting = [], []
    for group in duplicates.copies(list(places)):
        of = {file: places[file][0] for file in group}
        trained = [file for file in group if not of[file][1]]
        leaked += [(file, trained[0]) for file in group if of[file][1] and trained]
        other = next((file for file in group if of[file][0] != of[group[0]][0]), None)
        if other is not None:
            contradicting.append((group[0], other))
    notes = []
    if leaked:
        whole = sum(map(len, validation.values()))
        notes.append(
            f"{len(leaked)} of {count(whole, 'image')} for validation are copies of images to "
            f"train on, so that validation looks too good. {_pair(leaked[0], folder)}."
        )
    if contradicting:
        notes.append(
            f"{count(len(contradicting), 'image')} in more than one class. "
            f"{_pair(contradicting[0], folder)}."
        )
    return notes


def _pair(files, folder):
    one, other = (shown(file, folder) for file in files)
    return f"For example {one} has the content of {other}"


def _some(names):
    shown = ", ".join(map(printable, names[:SHOWN]))
    return shown + (", ..." if len(names) > SHOWN else "")
