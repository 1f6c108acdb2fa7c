"""A folder of images and masks: what is in it, and what is wrong with it, before training."""

import dataclasses
import os
import pathlib

import numpy as np

from keras_internimage.data.check import check_share, count, examined, refusal, shown
from keras_internimage.data.layout import FolderError
from keras_internimage.data.mask_files import IGNORED, MaskEncoding, examine
from keras_internimage.data.mask_layout import MaskLayout, Pair, mask_layout
from keras_internimage.data.palette import Colour, default_palette
from keras_internimage.data.splitting import on_both_sides, split

# How often a random split is drawn that leaves one side without a pixel that counts.
_DRAWINGS = 100
_WHITE = (
    "255 stands for ignored pixels: if it is a class here, number it 1, or give classes.txt the "
    "lines `background 0 0 0` and `name 255 255 255`"
)


@dataclasses.dataclass(frozen=True)
class SegmentationImages:
    """What `scan_segmentation` found.

    Attributes:
        folder: the folder of images and masks.
        class_names: names of the classes, by their number.
        palette: a colour `(R, G, B)` for each class.
        train, validation: `(image, mask)` paths of each pair.
        encoding: how values of the mask files become class numbers; `read_mask` takes it.
        train_pixels, validation_pixels: the number of pixels of each class.
        bad: `(path, reason)` of each image or mask left out, with `skip_bad`.
        notes: sentences the user should read.
        ignore_value: the number of pixels that count nowhere, 255.
    """

    folder: pathlib.Path
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...]
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    encoding: MaskEncoding
    train_pixels: tuple[int, ...] = ()
    validation_pixels: tuple[int, ...] = ()
    bad: tuple[tuple[pathlib.Path, str], ...] = ()
    notes: tuple[str, ...] = ()
    ignore_value: int = IGNORED

    @property
    def reduce_zero_label(self) -> bool:
        """Whether 0 is ignored in the files, and class `c` is stored as `c + 1`."""
        return self.encoding.reduce_zero_label


def scan_segmentation(
    folder: "str | os.PathLike | MaskLayout",
    validation_split: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    threads: int | None = None,
    *,
    reduce_zero_label: bool | None = None,
    classes: int | None = None,
    part: str | None = None,
) -> SegmentationImages:
    """Finds the images and masks of a folder, and reads every one of them to the end.

    `mask_layout` says how the folder may be laid out. Without a part for validation,
    `round(images * validation_split)` images are kept for it, at least one and never all; copies
    of one image stay on the same side. Where the pixels of one side are all ignored, the split is
    drawn again.

    Refused are: an image without a mask and a mask without an image; what cannot be read; a
    mask whose size is not that of its upright image, or which may be meant for an image that
    EXIF turns; a value or colour that is no class; an image for validation that is trained on, too.

    Args:
        folder: path of the folder, or what `mask_layout` found in it.
        validation_split: share of the images for validation, more than 0 and less than 1.
        seed: integer; the same one gives the same split.
        skip_bad: whether to leave such pairs out instead of refusing them. Of an image that is on
            both sides, the copy for training is left out.
        threads: how many read at the same time; None takes one for each processor.
        reduce_zero_label: as for `mask_layout`.
        classes: number of classes, at most 255, where the folder does not tell; None takes the
            numbers up to the highest in a mask.
        part: "validation" looks at the part for validation alone, and at all pairs where there is
            no such part.

    Returns:
        `SegmentationImages`.

    Raises:
        FolderError: what is wrong: all of it in one message, by name. It tells what `skip_bad`
            cannot help with.
        ValueError: an argument is out of range.
    """
    check_share("validation_split", validation_split)
    if part not in (None, "validation"):
        raise ValueError(f"part must be 'validation' or None. Received: part={part!r}")
    if classes is not None and (type(classes) is not int or not 1 <= classes <= IGNORED):
        raise ValueError(
            f"classes must be an int of 1 to {IGNORED}, or None: {IGNORED} stands for ignored "
            f"pixels. Received: classes={classes!r}"
        )
    layout = folder
    if not isinstance(layout, MaskLayout):
        layout = mask_layout(layout, reduce_zero_label)
    encoding = layout.encoding
    if encoding.classes is None and classes is not None:
        encoding = dataclasses.replace(encoding, classes=classes)
    train: list[Pair] = layout.train
    validation: list[Pair] | None = layout.validation
    bad = list(layout.problems)
    if part is not None:
        validation = train if validation is None else validation
        train = []
        bad = _of_part(bad, layout.validation_folders)
    elif validation is not None:
        one, other = ([image for image, _ in side] for side in (train, validation))
        bad += on_both_sides(one, other, layout.folder)
    pixels = {}
    known = {path for path, _ in bad}
    pairs = [pair for pair in dict.fromkeys([*train, *(validation or [])]) if pair[0] not in known]
    found = examined(
        "Reading every image and mask once",
        lambda pair: examine(pair[0], pair[1], encoding),
        pairs,
        threads,
    )
    for pair, (problem, counts) in zip(pairs, found, strict=True):
        if problem is None:
            pixels[pair] = counts
        else:
            bad.append(problem)
    # Where nothing is left, the reasons are told.
    told = [] if skip_bad and pixels else bad
    problems = [f"{_shown(file, layout.folder)}: {why}" for file, why in told]
    train = [pair for pair in train if pair in pixels]
    if validation is not None:
        validation = [pair for pair in validation if pair in pixels]
    total = _sum(pixels, pixels)
    names = layout.class_names or _numbered(total, encoding)
    problems += _classes_seen(total, names, encoding, bool(pixels) and part is None)
    if not pixels and not problems:
        problems.append("there is no image with a mask")
    if problems:
        skippable = 0 if skip_bad else len(bad)
        what = "this pair" if skippable == 1 else f"these {skippable}"
        use = "trained" if part is None else "evaluated"
        raise FolderError(refusal(layout.folder, problems, skippable, what, use))
    drawn = validation is None
    if validation is None:
        train, validation = _split(train, validation_split, seed, pixels)
    sums = [_sum(pixels, side)[: len(names)] for side in (train, validation)]
    sides = (train, sums[0], "to train on"), (validation, sums[1], "for validation")
    for side, counts, what in sides:
        if not side and (part is None or side is validation):
            raise FolderError(
                f"There must be an image {what}. Received: {layout.folder} with "
                f"{count(len(pixels), 'image')} that can be used"
            )
        if part is None and not counts.any():
            raise FolderError(
                f"The masks {what} must have a pixel that counts. Received: {layout.folder} with "
                f"{count(len(side), 'mask')} {what}, whose pixels are all ignored{_advice(drawn)}"
            )
    return SegmentationImages(
        layout.folder,
        names,
        layout.palette or default_palette(len(names)),
        tuple(train),
        tuple(validation),
        dataclasses.replace(encoding, classes=len(names)),
        train_pixels=tuple(sums[0].tolist()),
        validation_pixels=tuple(sums[1].tolist()),
        bad=tuple(bad) if skip_bad else (),
        notes=tuple(_notes(layout, train, bad if skip_bad else [], pixels, total, names)),
    )


def _split(pairs, share, seed, pixels):
    """A random split; drawn again, always in the same way, while all of a side is ignored."""
    counting = sum(1 for pair in pairs if pixels[pair][:IGNORED].any())
    for attempt in range(_DRAWINGS if counting > 1 else 1):
        sides = split(pairs, share, seed if attempt == 0 else (seed, attempt))
        if all(_sum(pixels, side)[:IGNORED].any() for side in sides):
            break
    return sides


def _advice(drawn):
    if not drawn:
        return ""
    return (
        ", however they were drawn: more masks need pixels that count, or the folder a part of its "
        "own for validation (images/val and masks/val)"
    )


def _of_part(problems, folders):
    """The problems below some folders; all where there is none."""
    return [
        (path, why)
        for path, why in problems
        if not folders or any(path.is_relative_to(folder) for folder in folders)
    ]


def _sum(pixels, pairs):
    """The number of pixels of each value, in the masks of some pairs."""
    return sum((pixels[pair] for pair in pairs), np.zeros(256, "int64"))


def _numbered(total, encoding):
    """Names of classes that nothing names: their numbers."""
    seen = np.flatnonzero(total[:IGNORED])
    highest = int(seen.max()) + 1 if len(seen) else 0
    return tuple(str(number) for number in range(encoding.classes or highest))


def _classes_seen(total, names, encoding, for_training):
    """What is wrong with the classes of all masks together."""
    seen = np.flatnonzero(total[:IGNORED])
    if not for_training or len(seen) > 1:
        return []
    if not len(seen):
        return ["all pixels of all masks are ignored"]
    problem = f"all masks hold one class alone, {names[seen[0]]}, and there must be two or more"
    if _only_zero(total, encoding):
        problem += f"; {_WHITE}"
    return [problem]


def _only_zero(total, encoding):
    """Whether all masks hold 0 and 255 alone, as black and white pictures of one class do."""
    seen = np.flatnonzero(total).tolist()
    as_stored = not (encoding.reduce_zero_label or encoding.palette or encoding.numbers)
    return seen == [0, IGNORED] and as_stored


def _shown(path, folder):
    return shown(path, folder) if path.is_relative_to(folder) else str(path)


def _notes(layout, train, bad, pixels, total, names):
    notes = list(layout.notes)
    if bad:
        notes.insert(0, f"{count(len(bad), 'image')} or masks left out.")
    if layout.class_names is None:
        notes.append(f"No classes.txt: the classes are numbered 0 to {len(names) - 1}.")
    empty = sum(1 for counts in pixels.values() if not counts[:IGNORED].any())
    if empty:
        notes.append(f"{count(empty, 'mask')} without a pixel that counts.")
    used = _sum(pixels, train) if train else total
    absent = [name for name, pixels in zip(names, used, strict=False) if not pixels]
    if absent:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        listed = ", ".join(absent[:10]) + more
        notes.append(f"Without a pixel{' to train on' if train else ''}: {listed}.")
    if _only_zero(total, layout.encoding):
        notes.append(f"All masks hold 0 and 255 alone; {_WHITE}.")
    return notes
