"""How a folder of images is laid out: classes, or parts with classes in them."""

import collections
import os
import pathlib
import re

from keras_internimage.data.check import printable

# What is taken for an image. Some of them Pillow does not read without a plug-in (HEIC, raw files):
# they are refused by name, where leaving them out in silence would train on half of a folder.
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".avif", ".ppm", ".pgm", ".pbm", ".jp2"),
        *(".heic", ".heif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".psd"),
    )
)
# Words that tell what a folder beside others is for: `train`, `training_set`, `seg_train`, `dev`.
TRAINING = frozenset({"train", "training", "trainset"})
VALIDATION = frozenset({"val", "valid", "validation", "dev", "valset", "eval"})
TEST = frozenset({"test", "testing", "testset", "pred"})
# Files and folders that systems and archives leave behind, beside the hidden ones.
LEFT_BEHIND = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
# An output folder of internimage-train has the first of these and one of the others.
_RUN, _OF_A_RUN = "run.json", ("images.csv", "history.csv", "last.keras", "model.keras")


class FolderError(ValueError):
    """A folder cannot be trained on; the message lists all reasons."""


class Found:
    """Walks through folders and notes what it leaves out.

    Attributes:
        folder: where it starts.
        bad: `(path, reason)` of what cannot be opened.
        ignored: files that are no images by their suffix: paths by the suffix.
        loose: number of images that lie beside the folders of the classes.
        outputs: output folders of trainings.
        not_used: names of folders that are neither for training nor for validation.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.bad: list[tuple[pathlib.Path, str]] = []
        self.ignored: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
        self.loose = 0
        self.outputs: list[pathlib.Path] = []
        self.not_used: list[str] = []

    def entries(self, folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
        """The visible folders and images of a folder, sorted."""
        try:
            inside = sorted(folder.iterdir())
        except OSError as error:
            self.bad.append((folder, f"cannot be opened ({error.strerror})"))
            return [], []
        folders, files = [], []
        for path in inside:
            if path.name.startswith(".") or path.name.lower() in LEFT_BEHIND:
                continue
            try:
                is_folder = path.is_dir()
            except OSError as error:
                self.bad.append((path, f"cannot be opened ({error.strerror})"))
                continue
            if is_folder and is_output(path):
                self.outputs.append(path)
            elif is_folder:
                folders.append(path)
            elif path.suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                self.ignored[path.suffix.lower() or "without a suffix"].append(path)
        return folders, files

    def images(self, folder: pathlib.Path, above: tuple[str, ...] = ()) -> list[pathlib.Path]:
        """All images below a folder."""
        here = os.path.realpath(folder)
        if here in above:  # a link to a folder that it lies in
            return []
        folders, files = self.entries(folder)
        for inner in folders:
            files += self.images(inner, (*above, here))
        return files

    def classes(self, folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
        """Images by the names of the folders in a folder."""
        folders, files = self.entries(folder)
        self.loose += len(files)
        return {inner.name: self.images(inner) for inner in folders}


def check_given(folder: str | os.PathLike) -> pathlib.Path:
    """The path of a folder to be trained on.

    Raises:
        FolderError: there is no folder, or one that cannot be trained on.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing of that name"
        raise FolderError(f"There must be a folder of images. Received: {folder} ({what})")
    if printable(str(folder)) != str(folder):
        raise FolderError(
            "The path of the folder must be UTF-8, which the output is written in. "
            f"Received: {printable(str(folder))}"
        )
    if is_output(folder):
        raise FolderError(
            f"There must be a folder of images. Received: {folder}, the output of a training"
        )
    return folder


def is_output(folder: pathlib.Path) -> bool:
    """Whether a folder is the output of internimage-train."""
    return (folder / _RUN).is_file() and any((folder / name).exists() for name in _OF_A_RUN)


def parts(found: Found) -> tuple[dict, dict]:
    """Images by class for training and for validation; the latter is empty where there is none.

    Raises:
        FolderError: the folder is laid out in a way that cannot be told from others.
    """
    folders, files = found.entries(found.folder)
    kinds = {inner: kind_of(inner.name) for inner in folders}
    inside = {inner: _classes_inside(inner) for inner in folders}
    training = [x for x in folders if kinds[x] == "training" and inside[x] is not None]
    # A class may be called `train`: a part is told by folders in it, or by the parts beside it.
    found_kinds = list(kinds.values())
    if training or (folders and all(found_kinds) and len(set(found_kinds)) == len(found_kinds)):
        return _by_part(found, folders, files, kinds, inside)
    found.loose += len(files)
    if not folders:
        what = f"{len(files)} images without one" if files else "no folder and no image"
        raise FolderError(
            f"There must be one folder for each class in {found.folder}. Received: {what}"
        )
    _refuse_same_folders(found.folder, inside)
    return {inner.name: found.images(inner) for inner in folders}, {}


def _by_part(found, folders, files, kinds, inside):
    by_kind = collections.defaultdict(list)
    for inner in folders:
        by_kind[kinds[inner]].append(inner)
    for kind in ("training", "validation"):
        if len(by_kind[kind]) > 1:
            names = " and ".join(inner.name for inner in by_kind[kind])
            raise FolderError(f"There must be one folder for {kind}. Received: {names}")
    if not by_kind["training"]:
        raise FolderError(
            "There must be a folder `train`, or one folder for each class. "
            f"Received: {found.folder} with {', '.join(inner.name for inner in folders)}"
        )
    unknown = [x for x in by_kind[None] if Found(x).images(x)]
    if unknown:
        (train,) = by_kind["training"]
        names = ", ".join(f"{inner.name}/" for inner in unknown)
        raise FolderError(
            f"Beside {train.name}/ there may be a folder for validation (`val`) and one for tests "
            f"(`test`), and no others with images. Received: {found.folder} with {names}. "
            f"To train on {train.name}/ alone, pass {train}"
        )
    found.loose += len(files)
    found.not_used += [inner.name for inner in (*by_kind["test"], *by_kind[None])]
    classes = []
    for kind in ("training", "validation"):
        here = found.classes(by_kind[kind][0]) if by_kind[kind] else {}
        if by_kind[kind] and not here:
            raise FolderError(
                f"There must be one folder for each class in {by_kind[kind][0]}. "
                f"Received: {'images without one' if found.loose else 'an empty folder'}"
            )
        classes.append(here)
    return tuple(classes)


def kind_of(name: str) -> str | None:
    """What a folder is for by its name: "training", "validation", "test" or None."""
    # Also in one word with others: `TrainImages`, `train2017`.
    words = {x.lower() for x in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    for kind, known in (("test", TEST), ("validation", VALIDATION), ("training", TRAINING)):
        if words & known:
            return kind
    return None


def _classes_inside(folder):
    """Names of the folders with images in a folder; None where images lie in it directly."""
    here = Found(folder)
    folders, files = here.entries(folder)
    if files:
        return None
    return {inner.name for inner in folders if here.images(inner)} or None


def _refuse_same_folders(folder, inside):
    """Parts of unknown names must not be taken for classes: their classes have the same names."""
    if len(inside) < 2 or None in inside.values():
        return
    shared = set.intersection(*inside.values())
    if len(shared) < 2 or 2 * len(shared) <= len(set.union(*inside.values())):
        return
    names = ", ".join(f"{inner.name}/" for inner in inside)
    same = ", ".join(f"{name}/" for name in sorted(shared)[:3]) + (
        ", ..." if len(shared) > 3 else ""
    )
    raise FolderError(
        f"There must be one folder for each class in {folder}. Received: {names}, which all hold "
        f"{same}. If these are the classes, call the folders around them `train` and `val`, or "
        "pass one of them; if they are not, put their images into one folder for each class"
    )
