"""A folder of images by class: what is in it, and what is wrong with it, before training starts."""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
import unicodedata
import warnings

import numpy as np

from keras_internimage.commands.progress import Progress
from keras_internimage.preprocessing import read_image

# What is taken for an image. Those of the second line Pillow does not read without a plug-in: they
# are refused by name, where leaving them out in silence would train on half of a folder.
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .avif .ppm .pgm .pbm .jp2 "
    ".heic .heif .jxl .cr2 .cr3 .nef .arw .dng .psd".split()
)
TRAINING = ("train", "training")
VALIDATION = ("val", "valid", "validation")
TEST = ("test", "testing")
# Files and folders that systems and archives leave behind, beside the hidden ones.
LEFT_BEHIND = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
SHOWN = 10


class FolderError(ValueError):
    """A folder cannot be trained on; the message lists all reasons."""


@dataclasses.dataclass(frozen=True)
class Images:
    """What `scan` found.

    Attributes:
        folder: the folder, as given.
        class_names: names of the classes, sorted.
        train, validation: `(path, label)` of each image; a label is an index into `class_names`.
        bad: `(path, reason)` of each file left out, with `skip_bad`.
        notes: sentences the user should read.
    """

    folder: pathlib.Path
    class_names: tuple[str, ...]
    train: tuple[tuple[pathlib.Path, int], ...]
    validation: tuple[tuple[pathlib.Path, int], ...]
    bad: tuple[tuple[pathlib.Path, str], ...] = ()
    notes: tuple[str, ...] = ()


def scan(folder, validation_split=0.2, seed=0, skip_bad=False, threads=None):
    """Finds the images of a folder, and reads every one of them to the end.

    The folder has one folder for each class, or `train/` and `val/` (also `valid/`, `validation/`)
    with these inside. Folders within a class belong to it; links are followed; hidden files are
    left out, and files that are no images by their suffix. Without a `val/`, a part of each class
    is kept for validation: `round(images * validation_split)`, but at least one, and never all.

    Args:
        folder: path of the folder.
        validation_split: share of the images for validation, more than 0 and less than 1.
        seed: integer; the same one gives the same split.
        skip_bad: whether to leave out files that cannot be read, instead of refusing them.
        threads: how many read at the same time; None takes one for each processor.

    Returns:
        `Images`.

    Raises:
        FolderError: what is wrong: all of it in one message, by name. It tells what `skip_bad`
            cannot help with.
        ValueError: an argument is out of range.
    """
    folder = pathlib.Path(folder)
    if not 0 < validation_split < 1:
        raise ValueError(
            "validation_split must be more than 0 and less than 1. "
            f"Received: validation_split={validation_split}"
        )
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing of that name"
        raise FolderError(f"There must be a folder of images. Received: {folder} ({what})")
    found = _Found(folder)
    train, validation = _parts(found)
    problems = _names(train, validation)
    files = sorted(set(itertools.chain(*train.values(), *validation.values())))
    bad = list(found.bad) + _unreadable(files, threads)
    left_out = {file for file, _ in bad}
    train, validation = (
        {name: [file for file in files if file not in left_out] for name, files in part.items()}
        for part in (train, validation)
    )
    if bad and not skip_bad:
        problems += [f"{_shown(file, folder)}: {reason}" for file, reason in bad]
    problems += _sizes(train, folder)
    if problems:
        raise FolderError(_message(folder, problems, bool(bad) and not skip_bad, len(bad)))
    if not validation:
        train, validation = _split(train, validation_split, seed)
        if not any(validation.values()):
            raise FolderError(
                "At least one class must have two images, one of them for validation. "
                f"Received: {folder} with {len(train)} classes of one image each"
            )
    notes = _notes(found, train, validation, bad)
    names = tuple(sorted(train))
    label = {name: index for index, name in enumerate(names)}
    train, validation = (
        tuple((file, label[name]) for name in names for file in part.get(name, ()))
        for part in (train, validation)
    )
    return Images(folder, names, train, validation, tuple(bad) if skip_bad else (), notes)


def images_below(folder):
    """Paths of all images in a folder and the folders in it, as `scan` finds them."""
    return _Found(folder).images(pathlib.Path(folder))


class _Found:
    """Walks through folders and notes what it leaves out."""

    def __init__(self, folder):
        self.folder = folder
        self.bad = []  # (path, reason)
        self.ignored = collections.Counter()  # suffix -> how many files
        self.loose = 0  # images that lie beside the classes' folders
        self.test = None

    def entries(self, folder):
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
            if is_folder:
                folders.append(path)
            elif path.suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                self.ignored[path.suffix.lower() or "without a suffix"] += 1
        return folders, files

    def images(self, folder, above=()):
        """All images below a folder."""
        here = os.path.realpath(folder)
        if here in above:  # a link to a folder that it lies in
            return []
        folders, files = self.entries(folder)
        for inner in folders:
            files += self.images(inner, (*above, here))
        return files

    def classes(self, folder):
        folders, files = self.entries(folder)
        self.loose += len(files)
        return {inner.name: self.images(inner) for inner in folders}


def _parts(found):
    """Images by class for training and for validation; the latter is empty where there is none."""
    folders, files = found.entries(found.folder)
    known = (*TRAINING, *VALIDATION, *TEST)
    if folders and all(inner.name.lower() in known for inner in folders):
        by_part = collections.defaultdict(list)
        for inner in folders:
            name = inner.name.lower()
            part = 0 if name in TRAINING else 1 if name in VALIDATION else 2
            by_part[part].append(inner)
        twice = [part for part in by_part.values() if len(part) > 1]
        if twice:
            names = " and ".join(inner.name for inner in twice[0])
            raise FolderError(f"There must be one folder of this kind. Received: {names}")
        if 0 not in by_part:
            raise FolderError(
                "There must be a folder `train`, or one folder for each class. "
                f"Received: {found.folder} with {', '.join(inner.name for inner in folders)}"
            )
        found.loose += len(files)
        found.test = by_part[2][0].name if 2 in by_part else None
        train = found.classes(by_part[0][0])
        validation = found.classes(by_part[1][0]) if 1 in by_part else {}
        if not train:
            raise FolderError(
                f"There must be one folder for each class in {by_part[0][0]}. "
                f"Received: {'images without one' if found.loose else 'an empty folder'}"
            )
        if 1 in by_part and not validation:
            raise FolderError(
                f"There must be one folder for each class in {by_part[1][0]}. "
                f"Received: {'images without one' if found.loose else 'an empty folder'}"
            )
        return train, validation
    found.loose += len(files)
    if not folders:
        what = f"{len(files)} images without one" if files else "no folder and no image"
        raise FolderError(
            f"There must be one folder for each class in {found.folder}. Received: {what}"
        )
    return {inner.name: found.images(inner) for inner in folders}, {}


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


def _sizes(train, folder):
    """What is wrong with the numbers of classes and images."""
    problems = [f"{printable(name)}/: has no image" for name, files in train.items() if not files]
    if len(train) == 1:
        (name,) = train
        problems.append(
            f"{printable(name)}/: is the only class, and there must be two or more (is one folder "
            f"for each class inside? then pass {folder / name})"
        )
    return problems


def _unreadable(files, threads):
    """`(path, reason)` of the files that are no whole images."""
    from PIL import Image

    threads = threads or os.cpu_count() or 1
    with (
        warnings.catch_warnings(),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
        Progress("Reading every image once", len(files)) as progress,
    ):
        # Sizes are judged below; what Pillow warns of else is not the user's to change.
        warnings.simplefilter("ignore")
        Image.init()
        bad = []
        for file, reason in zip(files, pool.map(why_bad, files, chunksize=1), strict=True):
            progress.advance()
            if reason is not None:
                bad.append((file, reason))
    return bad


def why_bad(path):
    """Why a file is no image to train on, or None if it is one. Reads all of it."""
    from PIL import Image

    def small(size):
        pixels = size[0] * size[1]
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(_too_large(size, Image.MAX_IMAGE_PIXELS))
        return 1, 1  # every byte is read, at the smallest scale that the format has

    if printable(path.name) != path.name:
        return "the name is no UTF-8"
    try:
        read_image(path, exif_orientation=True, at_least=small)
    except FileNotFoundError:
        return "is a link to nothing" if path.is_symlink() else "is not there any more"
    except MemoryError:
        return "does not fit into memory"
    except ValueError as error:
        return explain(path, error)
    return None


def explain(path, error):
    """A few words for what `read_image` raised for a file."""
    from PIL import Image, UnidentifiedImageError

    cause = error.__cause__
    if isinstance(cause, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(cause, UnidentifiedImageError):
        with open(path, "rb") as file:
            head = file.read(512)
        if not head:
            return "is empty"
        if b"\0" not in head and _is_text(head):
            return "is text, not an image"
        return "is no image that Pillow reads"
    if isinstance(cause, Image.DecompressionBombError):
        return f"is too large ({cause})"
    if cause is None:  # 32 bits per channel, which read_image refuses itself
        return str(error).partition(" Received: ")[0].rstrip(".")
    if isinstance(cause, ValueError) and str(cause).startswith("is "):
        return str(cause)
    return f"is damaged ({cause or type(cause).__name__})"


def _too_large(size, limit):
    return f"is too large ({size[0]} x {size[1]} pixels; at most {limit} in all)"


def _is_text(head):
    try:
        head[:-4].decode("utf-8") if len(head) == 512 else head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def printable(name):
    """A file's name as text that can be printed; bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if os.name == "posix" else name


def _shown(path, folder):
    return printable(str(path.relative_to(folder)))


def _message(folder, problems, skippable, bad):
    lines = [f"The folder must be fit to be trained on. Received: {folder} with"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more ({len(problems)} in all)")
    if skippable:
        others = len(problems) - bad
        only = f" Not with the other {count(others, 'problem')}." if others else ""
        files = "the file" if bad == 1 else f"the {bad} files"
        lines.append(f"--skip-bad leaves out {files} that cannot be read.{only}")
    return "\n".join(lines)


def count(number, noun):
    """`1 file`, `2 files`."""
    return f"{number} {noun}" + "s" * (number != 1)


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


def _notes(found, train, validation, bad):
    notes = []
    if bad:
        notes.append(f"{count(len(bad), 'file')} left out: unreadable.")
    if found.loose:
        loose = count(found.loose, "image")
        notes.append(f"{loose} left out: outside the folders of classes.")
    if found.ignored:
        kinds = ", ".join(sorted(found.ignored))
        others = count(sum(found.ignored.values()), "file")
        notes.append(f"{others} left out: no images by suffix ({kinds}).")
    if found.test:
        notes.append(f"{found.test}/ is not looked at.")
    unmeasured = [printable(name) for name in sorted(train) if not validation.get(name)]
    if unmeasured:
        shown = ", ".join(unmeasured[:SHOWN]) + (", ..." if len(unmeasured) > SHOWN else "")
        notes.append(f"Without an image for validation: {shown}.")
    return tuple(notes)
