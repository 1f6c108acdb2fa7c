"""COCO's annotation files, read without pycocotools: images, objects and classes."""

import collections
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from keras_internimage.data.check import count, refusal_for
from keras_internimage.data.coco_masks import Polygons, RunLengths, lengths

_LISTS = ("images", "annotations", "categories")
# Pixels from an image's corner to the furthest point of an outline, unless the image is larger.
# Drawing takes memory for each pixel that an outline passes, also outside of the image.
_FURTHEST = 1 << 17
# No image has so many pixels on a side.
_SIDES = 1 << 31


class CocoError(ValueError):
    """A file is not one of COCO's annotations; the message lists all reasons."""


@dataclasses.dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of the file.

    Attributes:
        id: its number in the file.
        file_name: path of the image, relative to the folder of images.
        width, height: in pixels, as the file says.
    """

    id: int
    file_name: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class CocoObject:
    """An object of an image: one of the file's annotations.

    Attributes:
        id: its number in the file.
        image_id: of the `CocoImage`.
        label: the class, an index of `class_names`.
        box: left, top, right and bottom in pixels, as the file says, also beyond the image.
        segmentation: outlines, a tuple of arrays `(points, 2)` of x and y; `RunLengths`; or None
            where the file has none. `draw_mask` draws them.
        crowd: whether this stands for a group of objects: it is neither learnt nor counted as
            missed, and what is found on it is no false alarm.
        area: in pixels, as the file says, which counts objects as small, medium or large by it;
            None where it does not say.
    """

    id: int
    image_id: int
    label: int
    box: tuple[float, float, float, float]
    segmentation: "Polygons | RunLengths | None" = None
    crowd: bool = False
    area: float | None = None

    def __eq__(self, other):
        if not isinstance(other, CocoObject):
            return NotImplemented
        parts = [
            (
                *(one.id, one.image_id, one.label, one.box, one.crowd, one.area),
                _comparable(one.segmentation),
            )
            for one in (self, other)
        ]
        return parts[0] == parts[1]

    def __hash__(self):
        return hash((self.id, self.image_id))


@dataclasses.dataclass(frozen=True)
class CocoDataset:
    """What `read_coco` read.

    Attributes:
        path: of the file.
        class_names: names of the classes, by label.
        category_ids: ids of the classes in the file, by label, in ascending order: label `l`
            stands for `category_ids[l]`, whatever gaps there are.
        images: a `CocoImage` for each image, those without an object as well.
        annotations: a `CocoObject` for each object.
        left_out: `(what, reason)` of what is in the file and not here.
        notes: sentences the user should read.
    """

    path: pathlib.Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]
    annotations: tuple[CocoObject, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def by_image(self) -> dict[int, tuple[CocoObject, ...]]:
        """The objects of each image by its id; an empty tuple where there is none."""
        found: dict[int, list[CocoObject]] = {image.id: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation.image_id].append(annotation)
        return {image: tuple(objects) for image, objects in found.items()}


def read_coco(path: str | os.PathLike, skip_bad: bool = False) -> CocoDataset:
    """Reads an annotation file of COCO's format for objects ("instances").

    The format: https://cocodataset.org/#format-data. Boxes are `[left, top, width, height]` in
    pixels; segmentations are lists of outlines, or run lengths, packed or not.

    A category without objects that others name as their supercategory, and whose own is "none", is
    no class: Roboflow puts it in front of the classes, with id 0. A note says so.

    Args:
        path: of a JSON file.
        skip_bad: whether to leave out objects that are damaged or refer to what is not there.

    Returns:
        `CocoDataset`.

    Raises:
        FileNotFoundError: there is no such file.
        CocoError (a ValueError): it is no such file; ids that occur twice; objects that are
            damaged or of unknown images or categories: all in one message.
    """
    path = pathlib.Path(path)
    content = _load(path)
    problems: list[str] = []
    images = _images(content["images"], problems)
    names = _categories(content["categories"], problems)
    known = {image.id: image for image in images}
    labels = {category: label for label, category in enumerate(sorted(names))}
    annotations, bad = _objects(content.pop("annotations"), known, labels)
    told = problems + ([] if skip_bad else [f"{what}: {why}" for what, why in bad])
    if not told and not names:
        told.append("there is no category")
    if told:
        raise CocoError(_refusal(path, told, 0 if skip_bad else len(bad)))
    notes = []
    root = _root(content["categories"], annotations, labels)
    if root is not None:
        notes.append(
            f"Category {root}, {names[root]!r}, is no class: it has no objects, and others name "
            "it as their supercategory."
        )
        gone = labels[root]
        del names[root]
        annotations = [
            dataclasses.replace(x, label=x.label - 1) if x.label > gone else x for x in annotations
        ]
    twice = [name for name, n in collections.Counter(names.values()).items() if n > 1]
    if twice:
        ids = " and ".join(str(i) for i in sorted(names) if names[i] == twice[0])
        raise CocoError(_refusal(path, [f"categories {ids} have the same name, {twice[0]!r}"]))
    order = tuple(sorted(names))
    return CocoDataset(
        path,
        tuple(names[category] for category in order),
        order,
        tuple(images),
        tuple(annotations),
        tuple(bad),
        tuple(notes),
    )


def _comparable(segmentation):
    """Outlines as bytes, which compare as a whole."""
    if isinstance(segmentation, tuple):
        return [outline.tobytes() for outline in segmentation]
    return segmentation


def holds_objects(path: pathlib.Path) -> bool:
    """Whether a JSON file looks like annotations of objects: it has the names of the lists."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return all(f'"{name}"'.encode() in content for name in _LISTS)


def _load(path):
    try:
        content = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"A file of annotations must exist. Received: {path}, no such file"
        ) from error
    except OSError as error:
        raise CocoError(
            f"Annotations must be a file that can be read. Received: {path} ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CocoError(
            f"{path} must be JSON, as COCO's annotations are. Received: {error}"
        ) from error
    if isinstance(content, list):
        what = "a list, as of detections, not of annotations"
    elif not isinstance(content, dict):
        what = type(content).__name__
    else:
        missing = [x for x in _LISTS if not isinstance(content.get(x), list)]
        if not missing:
            return content
        there = ", ".join(sorted(map(str, content))[:8]) or "nothing"
        what = f"no list {' and '.join(map(repr, missing))}, but {there}"
    raise CocoError(
        f"{path} must be an object with the lists 'images', 'annotations' and 'categories'. "
        f"Received: {what}"
    )


def _refusal(path, problems, skippable=0):
    required, what = "The annotations must be whole.", count(skippable, "object")
    return refusal_for(required, path, problems, skippable, what)


def _entry(entry, keys):
    """Why an entry of a list is none, or None: what is missing."""
    if not isinstance(entry, dict):
        return f"must be an object, not {type(entry).__name__}"
    missing = [key for key in keys if key not in entry]
    return f"has no {' and no '.join(missing)}" if missing else None


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _images(entries, problems):
    images, ids, names = [], set(), {}
    for index, entry in enumerate(entries):
        what = f"images[{index}]"
        wrong = _entry(entry, ("id", "file_name", "width", "height"))
        if wrong is None:
            what = f"image {entry['id']!r}"
            name, sides = entry["file_name"], (entry["width"], entry["height"])
            if not _is_int(entry["id"]):
                wrong = "has an id that is no integer"
            elif entry["id"] in ids:
                wrong = "is there twice"
            elif not isinstance(name, str) or not name or "\0" in name:
                wrong = f"has a file_name that is none, {name!r}"
            elif not all(_is_int(side) and 0 < side < _SIDES for side in sides):
                wrong = f"has the size {sides[0]!r} x {sides[1]!r}"
            elif name in names:
                wrong = f"is of the same file as image {names[name]}, {name}"
        if wrong is not None:
            problems.append(f"{what}: {wrong}")
            continue
        ids.add(entry["id"])
        names[name] = entry["id"]
        images.append(CocoImage(entry["id"], name, *sides))
    return images


def _categories(entries, problems):
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        what = f"categories[{index}]"
        wrong = _entry(entry, ("id", "name"))
        if wrong is None:
            what = f"category {entry['id']!r}"
            name = entry["name"]
            if not _is_int(entry["id"]):
                wrong = "has an id that is no integer"
            elif entry["id"] in names:
                wrong = "is there twice"
            elif not isinstance(name, str) or not name.strip() or not name.isprintable():
                wrong = f"has a name that is none, {name!r}"
        if wrong is not None:
            problems.append(f"{what}: {wrong}")
        else:
            names[entry["id"]] = name
    return names


def _root(categories, annotations, labels):
    """The id of a category that only groups others, or None."""
    used = {x.label for x in annotations}
    named = [x.get("supercategory") for x in categories]
    above = {name for name in named if isinstance(name, str) and name != "none"}
    for entry in categories:
        empty = labels[entry["id"]] not in used
        if empty and entry.get("supercategory") == "none" and entry["name"] in above:
            return entry["id"]
    return None


def _objects(entries, images, labels):
    """The objects, and `(what, reason)` of those that are none."""
    found, bad, ids = [], [], set()
    for index in range(len(entries)):
        # What is read is let go of: all outlines of COCO as Python's numbers take gigabytes.
        entry, entries[index] = entries[index], None
        what = f"annotations[{index}]"
        wrong = _entry(entry, ("image_id", "category_id", "bbox"))
        if wrong is None and "id" in entry:
            what = f"annotation {entry['id']!r}"
        if wrong is None:
            wrong = _why_no_object(entry, ids, images, labels)
        if wrong is None:
            try:
                segmentation = _segmentation(entry.get("segmentation"), images[entry["image_id"]])
            except ValueError as error:
                wrong = str(error)
        if wrong is not None:
            bad.append((what, wrong))
            continue
        number = entry.get("id", index)
        ids.add(number)
        left, top, width, height = (float(x) for x in entry["bbox"])
        box = (left, top, left + width, top + height)
        label, crowd = labels[entry["category_id"]], bool(entry.get("iscrowd", 0))
        area = float(entry["area"]) if _is_number(entry.get("area")) else None
        found.append(CocoObject(number, entry["image_id"], label, box, segmentation, crowd, area))
    return found, bad


def _why_no_object(entry, ids, images, labels):
    box, crowd = entry["bbox"], entry.get("iscrowd", 0)
    if "id" in entry and not _is_int(entry["id"]):
        return "has an id that is no integer"
    if entry.get("id") in ids:
        return "is there twice"
    if not _is_int(entry["image_id"]) or entry["image_id"] not in images:
        return f"is of image {entry['image_id']!r}, which is not in the file"
    if not _is_int(entry["category_id"]) or entry["category_id"] not in labels:
        return f"is of category {entry['category_id']!r}, which is not in the file"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has a bbox that is not four numbers, {box!r}"
    if crowd not in (0, 1):
        return f"has the iscrowd {crowd!r}, which is neither 0 nor 1"
    return None


def _is_number(value):
    """Whether a value is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's integers have any number of digits
        return False


def _segmentation(value: Any, image: CocoImage) -> "Polygons | RunLengths | None":
    """Outlines or run lengths; None where there is nothing that covers anything."""
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        return _run_lengths(value, image)
    if not isinstance(value, list):
        raise ValueError(f"has a segmentation that is none, {type(value).__name__}")
    # Some tools write a single outline without the list around it.
    outlines = [value] if _is_number(value[0]) else value
    found = []
    for outline in outlines:
        if not isinstance(outline, list) or len(outline) % 2 or not all(map(_is_number, outline)):
            raise ValueError("has an outline that is no list of pairs of numbers")
        furthest = max(map(abs, outline), default=0)
        if furthest > max(_FURTHEST, image.width, image.height):
            raise ValueError(f"has an outline that reaches to {furthest:g} pixels")
        if len(outline) >= 6:  # fewer than three points cover nothing
            found.append(np.array(outline, "float64").reshape(-1, 2))
    return tuple(found) or None


def _run_lengths(value, image):
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_int, size)) or min(size) < 1:
        raise ValueError(f"has run lengths of the size {size!r}, not [height, width]")
    if isinstance(counts, list) and all(map(_is_int, counts)):
        counts = tuple(counts)
    elif not isinstance(counts, str):
        raise ValueError("has run lengths whose counts are neither text nor integers")
    runs = RunLengths(*size, counts)
    lengths(runs, image.height, image.width)
    return runs
