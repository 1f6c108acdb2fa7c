"""Images for the evaluation of a classifier, and the class of each."""

import dataclasses
import pathlib
import re

from keras_internimage.data.check import printable
from keras_internimage.data.imagenet_ids import classes_of_ids
from keras_internimage.data.layout import FolderError, Found, check_given, kind_of, parts

# Files of ImageNet's validation labels that are found beside the images, or one folder above.
LABEL_FILES = (
    "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
    "imagenet_2012_validation_synset_labels.txt",
)
IMAGENET_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images and what they show.

    Attributes:
        files: paths of the images.
        classes: for each image, its class: the name of its folder, or a number from 0.
        names: names of the folders, sorted; None where the classes are numbers.
        source: where the classes are from, for people.
    """

    files: list[pathlib.Path]
    classes: list
    names: list[str] | None
    source: str


def find(folder, ground_truth=None) -> Labelled:
    """The images of a folder by class, or of a flat folder with a file of labels.

    Raises:
        FolderError: the folder is neither, or the file does not fit it.
    """
    folder = check_given(folder)
    found = Found(folder)
    folders, files = found.entries(folder)
    if ground_truth is None and folders:
        return _by_folder(found, folders)
    if ground_truth is None:
        if not files:
            raise FolderError(f"There must be images. Received: {folder} with none")
        places = (place / name for place in (folder, folder.parent) for name in LABEL_FILES)
        ground_truth = next((path for path in places if path.is_file()), None)
        if ground_truth is None:
            raise FolderError(
                "There must be one folder for each class, or a file of labels (--ground-truth). "
                f"Received: {folder} with {len(files)} images without one"
            )
    path = pathlib.Path(ground_truth)
    if not path.is_file():
        raise FolderError(f"The labels must be a file. Received: {path}, no such file")
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except ValueError as error:
        raise FolderError(f"{path} must be UTF-8 text. Received: {error}") from error
    return _of_lines([line.split() for line in lines if line.strip()], path, files, folder)


def _by_folder(found, folders):
    if any(kind_of(path.name) == "training" for path in folders):
        train, validation = parts(found)
        chosen, part = (validation, "validation") if validation else (train, "training")
        source = f"one folder for each class, the part for {part}"
    else:
        # Not `parts`: one class alone can be evaluated.
        chosen = {path.name: found.images(path) for path in folders}
        source = "one folder for each class"
    if found.bad:
        path, reason = found.bad[0]
        raise FolderError(f"Each folder must be readable. Received: {path} {reason}")
    chosen = {name: files for name, files in chosen.items() if files}
    if not chosen:
        raise FolderError(f"There must be images. Received: {found.folder} with none")
    names = sorted(chosen)
    files = [file for name in names for file in chosen[name]]
    return Labelled(files, [name for name in names for _ in chosen[name]], names, source)


def _of_lines(rows, path, files, folder):
    """Labels of a file: `name number` lines, or a number or WordNet id for each image in order."""
    widths = {len(row) for row in rows}
    if widths == {2}:
        wanted = {row[0]: row[1] for row in rows}
        if len(wanted) < len(rows):
            raise FolderError(f"{path} must name each image once. Received: a name twice")
        by_name = {file.name: file for file in files}
        missing = [name for name in wanted if pathlib.PurePath(name).name not in by_name]
        if missing:
            raise FolderError(
                f"The images of {path} must be in {folder}. "
                f"Received: {missing[0]}, not there ({len(missing)} in all)"
            )
        unnamed = set(by_name) - {pathlib.PurePath(name).name for name in wanted}
        if unnamed:
            raise FolderError(
                f"{path} must name all images of {folder}. "
                f"Received: no line for {min(unnamed)} ({len(unnamed)} in all)"
            )
        files = [by_name[pathlib.PurePath(name).name] for name in wanted]
        return Labelled(files, _numbers(wanted.values(), path), None, str(path))
    if widths != {1}:
        raise FolderError(
            f"{path} must have lines `name number`, or one number or WordNet id for each image. "
            f"Received: lines of {', '.join(map(str, sorted(widths))) or 'no'} words"
        )
    values = [row[0] for row in rows]
    if len(values) != len(files):
        raise FolderError(
            f"{path} must have a line for each image of {folder}, in the order of their names. "
            f"Received: {len(values)} lines for {len(files)} images"
        )
    if all(_WORDNET_ID.fullmatch(value) for value in values):
        return Labelled(files, values, sorted(set(values)), str(path))
    numbers = _numbers(values, path)
    if "ILSVRC2012" in path.name and "ground_truth" in path.name:
        # The development kit's own numbers, from 1, in an order of their own.
        if min(numbers) < 1 or max(numbers) > IMAGENET_CLASSES:
            raise FolderError(
                f"{path} must hold ILSVRC2012_IDs, 1 to {IMAGENET_CLASSES}. "
                f"Received: {min(numbers)} to {max(numbers)}"
            )
        of_id = classes_of_ids()
        numbers = [of_id[number - 1] for number in numbers]
        return Labelled(files, numbers, None, f"{path} (ILSVRC2012_IDs)")
    return Labelled(files, numbers, None, str(path))


def _numbers(values, path):
    values = list(values)
    wrong = next((value for value in values if not value.isdecimal()), None)
    if wrong is not None:
        raise FolderError(f"{path} must number the classes. Received: {wrong}")
    return [int(value) for value in values]


def numbered(labelled, labels, classes, wordnet_ids):
    """The output of the model that stands for each image's class.

    Args:
        labelled: `Labelled`.
        labels: names of the model's classes, or None where they are not known.
        classes: number of the model's classes.
        wordnet_ids: function that gives ImageNet's 1000 WordNet ids in order.

    Raises:
        FolderError: the classes are not those of the model.
    """
    if labelled.names is None:
        highest, lowest = max(labelled.classes), min(labelled.classes)
        if highest >= classes:
            raise FolderError(
                f"The labels must be those of the model, which has {classes} classes, numbered "
                f"from 0. Received: {labelled.source} with numbers from {lowest} to {highest}"
            )
        return list(labelled.classes)
    names = labelled.names
    if labels is not None and set(names) <= set(labels):
        order = list(labels)
    elif classes == IMAGENET_CLASSES and all(_WORDNET_ID.fullmatch(name) for name in names):
        order = names if len(names) == classes else list(wordnet_ids())
    elif labels is None and len(names) == classes:
        order = names
    elif labels is None:
        raise FolderError(
            f"There must be as many folders as the model has classes, {classes}. "
            f"Received: {len(names)}"
        )
    else:
        order = list(labels)
    unknown = [printable(name) for name in names if name not in set(order)]
    if unknown:
        more = ", ..." if len(unknown) > _SHOWN else ""
        known = ", ".join(order[:_SHOWN]) + (", ..." if len(order) > _SHOWN else "")
        raise FolderError(
            f"The folders must be classes of the model, which has {classes} ({known}). "
            f"Received: {', '.join(unknown[:_SHOWN])}{more}, {len(unknown)} that it does not know"
        )
    number = {name: index for index, name in enumerate(order)}
    return [number[name] for name in labelled.classes]
