"""How a folder of images with COCO's annotations is laid out, as downloaded or exported."""

import dataclasses
import os
import pathlib

from keras_internimage.data.check import count, printable, shown
from keras_internimage.data.coco import CocoDataset, holds_objects, read_coco
from keras_internimage.data.layout import FolderError, Found, check_given, is_output, kind_of

# Folders of annotation files beside those of images.
ANNOTATIONS = frozenset({"annotations", "labels", "annotation"})
# What COCO calls its annotations of objects; others are captions and key points.
_OBJECTS = "instances"
# So many names of images are looked for, to tell which folder they are of.
_SAMPLE = 100


@dataclasses.dataclass(frozen=True)
class Part:
    """An annotation file and the folder that its images are in."""

    annotations: pathlib.Path
    images: pathlib.Path
    data: CocoDataset

    def path(self, file_name: str) -> pathlib.Path:
        """The path of an image."""
        return self.images / file_name.replace("\\", "/")


@dataclasses.dataclass
class CocoLayout:
    """What `coco_layout` found, before any image is opened.

    Attributes:
        folder: the folder that was given.
        train: `Part` for training; None where there is none, and `validation` alone was asked for.
        validation: `Part` for validation; None where the folder has no such part.
        notes: sentences the user should read.
    """

    folder: pathlib.Path
    train: Part | None
    validation: Part | None
    notes: list[str] = dataclasses.field(default_factory=list)


def holds_coco(folder: str | os.PathLike) -> bool:
    """Whether a folder has annotation files where `coco_layout` looks for them."""
    folder = pathlib.Path(folder)
    if not folder.is_dir() or is_output(folder):
        return False
    try:
        return any(any(map(holds_objects, _json_files(place))) for place in _places(folder))
    except OSError:
        return False


def coco_layout(
    folder: str | os.PathLike, part: str | None = None, skip_bad: bool = False
) -> CocoLayout:
    """Finds annotation files and their images in a folder, and reads the files.

    It is one of these:

    - COCO as downloaded: `annotations/instances_train2017.json` and `instances_val2017.json`, with
      the images in `train2017/` and `val2017/`, or in these below `images/`. The year is any, and
      names that hold `train` and `val` suffice. Captions and key points beside them are left out;
    - as Roboflow exports: `train/_annotations.coco.json` with the images beside it, and `valid/`;
      `test/` is left out;
    - one annotation file, in the folder or in `annotations/`, with the images beside it or in a
      folder such as `images/`: CVAT, Label Studio and FiftyOne export so.

    Args:
        folder: path of the folder.
        part: "validation" reads the part for validation alone, and all where there is no such part.
        skip_bad: as for `read_coco`.

    Raises:
        FolderError: the folder is laid out in another way, or an annotation file cannot be read.
    """
    folder = check_given(folder)
    layout = CocoLayout(folder, None, None)
    found = _in_parts(folder, layout) or _in_one_place(folder, layout)
    if "training" not in found and (part is None or "validation" not in found):
        there = ", ".join(shown(path, folder) for path in found.values()) or "none"
        raise FolderError(
            "There must be annotations of COCO's format for training: annotations/instances_"
            "train2017.json, train/_annotations.coco.json as Roboflow exports them, or one JSON "
            f"file with the images beside it. Received: {folder} with {there}"
        )
    names: tuple[str, ...] = ("training", "validation")
    if part is not None:
        names = ("validation",) if "validation" in found else ("training",)
    parts = {name: _part(folder, found[name], skip_bad) for name in names if name in found}
    layout.train, layout.validation = (parts.get(name) for name in ("training", "validation"))
    if len(parts) == 2:
        _refuse_unlike(*parts.values())
    for one in parts.values():
        layout.notes += [note for note in one.data.notes if note not in layout.notes]
    return layout


def _places(folder):
    """Folders in which annotation files may lie."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    inner = [path for path in inner if not path.name.startswith(".") and not is_output(path)]
    beside = [path for path in inner if path.name.lower() in ANNOTATIONS]
    return [folder, *beside, *(path for path in inner if kind_of(path.name))]


def _json_files(folder):
    files = (path for path in folder.iterdir() if path.suffix.lower() == ".json")
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def _in_parts(folder, layout):
    """Annotation files in folders `train/`, `valid/` and so on, by what these are for; or {}."""
    found = {}
    for place in _places(folder)[1:]:
        kind = kind_of(place.name)
        files = [path for path in _json_files(place) if holds_objects(path)] if kind else []
        if kind == "test" and files:
            layout.notes.append(f"{printable(place.name)}/ is not looked at.")
        elif files:
            _only(folder, found, kind, files)
    if not found:
        layout.notes.clear()
    return found


def _in_one_place(folder, layout):
    """Annotation files by what their names say that they are for."""
    files = []
    for place in _places(folder):
        if place == folder or place.name.lower() in ANNOTATIONS:
            files += [path for path in _json_files(place) if holds_objects(path)]
    if any(path.stem.lower().startswith(_OBJECTS) for path in files):
        others = [path for path in files if not path.stem.lower().startswith(_OBJECTS)]
        files = [path for path in files if path not in others]
        layout.notes += [f"{shown(path, folder)} is not looked at." for path in others]
    by_kind = {}
    for path in files:
        by_kind.setdefault(kind_of(path.stem), []).append(path)
    unused = by_kind.pop("test", [])
    if "training" in by_kind or "validation" in by_kind:
        unused += by_kind.pop(None, [])
    layout.notes += [f"{shown(path, folder)} is not looked at." for path in unused]
    found = {}
    for kind, those in by_kind.items():
        _only(folder, found, kind or "training", those)
    return found


def _only(folder, found, kind, files):
    """Notes the one annotation file of a kind."""
    files = [*([found[kind]] if kind in found else []), *files]
    if len(files) > 1:
        names = " and ".join(shown(path, folder) for path in files)
        raise FolderError(
            f"There must be one annotation file for {kind}. Received: {folder} with {names}"
        )
    found[kind] = files[0]


def _part(folder, annotations, skip_bad):
    try:
        data = read_coco(annotations, skip_bad)
    except (OSError, ValueError) as error:
        raise FolderError(str(error)) from error
    outside = [image for image in data.images if _leads_out(image.file_name)]
    if outside:
        raise FolderError(
            "Names of images must be paths within their folder. "
            f"Received: {annotations} with {outside[0].file_name!r}"
        )
    return Part(annotations, _folder_of_images(folder, annotations, data), data)


def _leads_out(name):
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def _folder_of_images(folder, annotations, data):
    """The folder that has the most of the images that an annotation file names."""
    if not data.images:
        raise FolderError(f"There must be images. Received: {annotations} without any")
    if annotations.parent != folder and annotations.parent.name.lower() not in ANNOTATIONS:
        candidates = [annotations.parent, *_inner(annotations.parent)]
    else:
        first, second = [folder, *_inner(folder)], []
        for place in first[1:]:
            second += _inner(place)
        # Of folders that have the same names, the one for the same purpose, or called the same.
        name = annotations.stem.removeprefix(f"{_OBJECTS}_")
        candidates = sorted(
            [*first, *second],
            key=lambda path: (
                path.name != name,
                path == folder or kind_of(path.name) != kind_of(annotations.stem),
            ),
        )
    names = data.images[:: max(1, len(data.images) // _SAMPLE)]
    there = [sum(Part(annotations, c, data).path(x.file_name).is_file() for x in names)
             for c in candidates]  # fmt: skip
    if not any(there):
        looked = ", ".join(f"{shown(path, folder)}/" for path in candidates[:5])
        raise FolderError(
            f"The images of {shown(annotations, folder)} must be in the folder. Received: {folder}"
            f" without {printable(data.images[0].file_name)}, and {count(len(names) - 1, 'other')}"
            f" looked for in {looked}{', ...' if len(candidates) > 5 else ''}"
        )
    return candidates[there.index(max(there))]


def _inner(folder):
    return Found(folder).entries(folder)[0]


def _refuse_unlike(train, validation):
    """Labels of both parts must mean the same."""
    sides = [
        dict(zip(part.data.category_ids, part.data.class_names, strict=True))
        for part in (train, validation)
    ]
    if sides[0] != sides[1]:
        first, second = (set(side.items()) for side in sides)
        odd = min(first ^ second)
        where = train if odd in first else validation
        raise FolderError(
            f"{train.annotations} and {validation.annotations} must have the same categories. "
            f"Received: category {odd[0]}, {odd[1]!r}, in {where.annotations.name} of "
            f"{where.annotations.parent.name}/ alone"
        )
