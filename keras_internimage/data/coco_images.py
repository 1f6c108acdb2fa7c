"""A folder of images with annotated objects: what is in it, and what is wrong with it."""

import collections
import dataclasses
import os
import pathlib
from typing import NamedTuple

from keras_internimage.data.check import (
    check_share,
    count,
    examined,
    printable,
    refusal,
    shown,
    why_bad,
)
from keras_internimage.data.coco import CocoDataset, CocoObject, read_coco
from keras_internimage.data.coco_layout import CocoLayout, Part, coco_layout
from keras_internimage.data.layout import FolderError, Found
from keras_internimage.data.splitting import on_both_sides, split
from keras_internimage.preprocessing import read_orientation

# Whether masks are learnt: those of the file; where it has none the box's rectangle; or not at all.
MASKS = ("annotated", "rectangles", "none")
# Objects that are narrower are left out, as by the official program.
LEAST_SIDE = 1.0


class AnnotatedImage(NamedTuple):
    """An image and the objects in it.

    Attributes:
        path: of the image.
        id: its number in the annotation file.
        height, width: of the upright image in pixels.
        objects: those that are learnt, their boxes within the image.
        crowds: those that stand for groups of objects.
    """

    path: pathlib.Path
    id: int
    height: int
    width: int
    objects: tuple[CocoObject, ...]
    crowds: tuple[CocoObject, ...] = ()


@dataclasses.dataclass(frozen=True)
class DetectionImages:
    """What `scan_detection` found.

    Attributes:
        folder: the folder that was given.
        class_names: names of the classes, by label.
        category_ids: their ids in the annotation files, by label.
        train, validation: an `AnnotatedImage` for each image.
        annotations: paths of the annotation files that the two are of, which may be the same;
            None for what was not looked at.
        folders: of the images that the two annotation files name, in the same way.
        masks: "annotated" where all objects have a mask, "rectangles" where the box's rectangle
            stands for what is missing, "none" where there are none to be learnt.
        bad: `(path, reason)` of each image or object left out, with `skip_bad`.
        notes: sentences the user should read.
    """

    folder: pathlib.Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    train: tuple[AnnotatedImage, ...]
    validation: tuple[AnnotatedImage, ...]
    annotations: tuple[pathlib.Path | None, pathlib.Path]
    folders: tuple[pathlib.Path | None, pathlib.Path]
    masks: str = "annotated"
    bad: tuple[tuple[pathlib.Path, str], ...] = ()
    notes: tuple[str, ...] = ()

    def validation_data(self) -> CocoDataset:
        """The annotations of the validation images, with nothing clipped or left out.

        Read anew from the file: average precision is measured by what it says. Without
        segmentations where `masks` is not "annotated".
        """
        data = read_coco(self.annotations[1], skip_bad=True)
        kept = {image.id for image in self.validation}
        objects = [one for one in data.annotations if one.image_id in kept]
        if self.masks != "annotated":
            objects = [dataclasses.replace(one, segmentation=None) for one in objects]
        return dataclasses.replace(
            data,
            images=tuple(image for image in data.images if image.id in kept),
            annotations=tuple(objects),
        )


def scan_detection(
    folder: "str | os.PathLike | CocoLayout",
    validation_split: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    threads: int | None = None,
    *,
    masks: str | None = None,
    part: str | None = None,
) -> DetectionImages:
    """Finds the images and objects of a folder, and reads every image to the end.

    `coco_layout` says how the folder may be laid out. Without a part for validation,
    `round(images * validation_split)` images are kept for it, at least one and never all; copies
    of one image, and what Roboflow made of one, stay on the same side.

    Refused are: an image that is missing, cannot be read, or has another size than the annotations
    say; a box outside of its image, or of negative sides; objects without a segmentation beside
    others with one; an image for validation that is trained on, too.

    Not refused, but counted in `notes`: images without an object, which are kept; boxes that reach
    beyond their image, which are clipped; objects less than a pixel wide or high, which are left
    out; crowds, which are not learnt.

    Args:
        folder: path of the folder, or what `coco_layout` found in it.
        validation_split: share of the images for validation, more than 0 and less than 1.
        seed: integer; the same one gives the same split.
        skip_bad: whether to leave out what is refused instead: images, and objects whose boxes
            are outside. Of an image that is on both sides, the copy for training is left out.
        threads: how many read at the same time; None takes one for each processor.
        masks: "annotated" takes the segmentations; "rectangles" takes the box's rectangle where
            an object has none; "none" leaves masks alone, and boxes are learnt only. None takes
            the segmentations, and leaves masks alone where no object at all has one.
        part: "validation" looks at the part for validation alone, and at all images where there is
            no such part.

    Returns:
        `DetectionImages`.

    Raises:
        FolderError: what is wrong: all of it in one message, by name.
        ValueError: an argument is out of range.
    """
    check_share("validation_split", validation_split)
    if part not in (None, "validation"):
        raise ValueError(f"part must be 'validation' or None. Received: part={part!r}")
    if masks not in (None, *MASKS):
        raise ValueError(f"masks must be one of {', '.join(MASKS)} or None. Received: {masks!r}")
    layout = folder
    if not isinstance(layout, CocoLayout):
        layout = coco_layout(layout, part, skip_bad)
    found = [(side, one) for side, one in zip(_SIDES, (layout.train, layout.validation)) if one]  # noqa: B905
    chosen = masks or _masks_of([one for _, one in found])
    tally: collections.Counter[str] = collections.Counter()
    bad: list[tuple[pathlib.Path, str]] = []
    sides: dict[str, list[AnnotatedImage]] = {}
    for side, one in found:
        bad += [(one.annotations / what, why) for what, why in one.data.left_out]
        sides[side] = _images(one, chosen, tally, bad, skip_bad)
    if len(sides) == 2:
        one_side, other_side = ([image.path for image in sides[side]] for side in _SIDES)
        bad += on_both_sides(one_side, other_side, layout.folder)
    known = {path for path, _ in bad}
    every = {image.path: image for images in sides.values() for image in images}
    to_read = [image for path, image in every.items() if path not in known]
    reasons = examined("Reading every image once", _why_bad, to_read, threads)
    bad += [(x.path, why) for x, why in zip(to_read, reasons, strict=True) if why is not None]
    gone = {path for path, _ in bad}
    sides = {side: [x for x in images if x.path not in gone] for side, images in sides.items()}
    problems = [f"{_shown(path, layout.folder)}: {why}" for path, why in bad]
    left = any(image.objects for images in sides.values() for image in images)
    if not left and not problems:
        few = f", but {tally['small']} less than a pixel wide or high" if tally["small"] else ""
        problems.append(f"there is no object{few}; boxes are in pixels, not relative to the image")
    if problems and not (skip_bad and left):
        skippable = 0 if skip_bad else len(bad)
        what = "it" if skippable == 1 else f"these {skippable}"
        use = "trained" if part is None else "evaluated"
        raise FolderError(refusal(layout.folder, problems, skippable, what, use))
    parts = [one for _, one in found]
    train, validation = sides.get("train", []), sides.get("validation")
    if validation is None and part is None:
        train, validation = split(train, validation_split, seed, _origin)
    elif validation is None:
        train, validation = [], train
    used = [(validation, "for validation")]
    used += [(train, "to train on")] if part is None else []
    for images, what in used:
        if not any(image.objects for image in images):
            raise FolderError(
                f"There must be an object {what}. Received: {layout.folder} with "
                f"{count(len(images), 'image')} {what}, without any object"
            )
    return DetectionImages(
        layout.folder,
        parts[0].data.class_names,
        parts[0].data.category_ids,
        tuple(train),
        tuple(validation),
        (parts[0].annotations if part is None else None, parts[-1].annotations),
        (parts[0].images if part is None else None, parts[-1].images),
        chosen,
        tuple(bad) if skip_bad else (),
        tuple(_notes(layout, parts, train, validation, tally, bad, chosen, masks, part)),
    )


_SIDES = ("train", "validation")


def annotated(part: Part, chosen: str) -> list[AnnotatedImage]:
    """The images of an annotation file, as `scan_detection` gave them; nothing is examined."""
    return _images(part, chosen, collections.Counter(), [], True)


def _masks_of(parts):
    """ "annotated", or "none" where no object has a segmentation."""
    objects = (x for part in parts for x in part.data.annotations if not x.crowd)
    return "annotated" if any(x.segmentation is not None for x in objects) else "none"


def _images(part, chosen, tally, bad, skip_bad):
    """The images with what is learnt of their objects; counts and problems are noted."""
    images, by_image = [], part.data.by_image()
    for image in part.data.images:
        path = part.path(image.file_name)
        objects, crowds = [], []
        for one in by_image[image.id]:
            if one.crowd:
                tally["crowd"] += 1
                crowds.append(one)
                continue
            kept, why = _clipped(one, image, tally)
            if why is not None:
                bad.append((part.annotations / f"annotation {one.id}", why))
            elif kept is not None:
                objects.append(kept)
        if chosen == "annotated" and any(x.segmentation is None for x in objects):
            without = [x for x in objects if x.segmentation is None]
            reason = f"has {count(len(without), 'object')} without a segmentation, such as "
            reason += f"annotation {without[0].id}, where others have one: --masks rectangles "
            bad.append((path, reason + "takes their boxes, --masks none learns boxes alone"))
            if skip_bad:
                continue
        tally["empty"] += not objects
        images.append(
            AnnotatedImage(path, image.id, image.height, image.width, tuple(objects), tuple(crowds))
        )
    return images


def _clipped(one, image, tally):
    """`(object, None)`, `(None, None)` for one that is left out, or `(None, why it is refused)`."""
    left, top, right, bottom = one.box
    if right < left or bottom < top:
        return None, f"has a box of negative sides, {right - left:g} x {bottom - top:g}"
    if min(right - left, bottom - top) < LEAST_SIDE:
        tally["small"] += 1
        return None, None
    box = max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height)
    if box[0] >= box[2] or box[1] >= box[3]:
        where = f"{left:g} {top:g} to {right:g} {bottom:g}"
        return None, f"has a box outside of its image of {image.width} x {image.height}, {where}"
    beyond = max(abs(a - b) for a, b in zip(box, one.box, strict=True))
    tally["beyond"] += beyond > 1
    return (one if beyond == 0 else dataclasses.replace(one, box=box)), None


def _why_bad(image):
    """Why an image cannot be used, or None. Reads all of it."""
    path, sizes = image.path, []

    def at_least(size):
        sizes.append(size)
        return 1, 1

    if not path.is_file() and not path.is_symlink():
        return "is in the annotations, and not there"
    reason = why_bad(path, at_least)
    if reason is not None:
        return reason
    size, said = sizes[0], (image.width, image.height)
    orientation = read_orientation(path)
    if size != said:
        reason = f"is {size[0]} x {size[1]} pixels, {said[0]} x {said[1]} by the annotations"
        if orientation >= 5 and size == said[::-1]:
            reason += ": it is turned upright by its EXIF orientation, the annotations are not"
        return reason
    if orientation != 1 and (orientation < 5 or size[0] == size[1]):
        # The sizes do not tell. Drawn on the pixels as they are stored, it would be upside down.
        reason = f"is turned by EXIF (orientation {orientation}), and nothing tells whether its "
        return reason + "annotations are for the upright image: store the image upright"
    return None


def _origin(path):
    """What Roboflow made of one image has its name up to `.rf.`."""
    return path.parent / path.name.partition(".rf.")[0] if ".rf." in path.name else path


def _shown(path, folder):
    return shown(path, folder) if path.is_relative_to(folder) else printable(str(path))


def _notes(layout, parts, train, validation, tally, bad, chosen, asked, part):
    notes = list(layout.notes)
    if bad:
        notes.insert(0, f"{count(len(bad), 'image')} or objects left out.")
    if tally["empty"]:
        notes.append(f"{count(tally['empty'], 'image')} without an object, which are kept.")
    if tally["beyond"]:
        boxes = count(tally["beyond"], "box").replace("boxs", "boxes")
        notes.append(f"{boxes} beyond the image by more than a pixel: clipped.")
    if tally["small"]:
        notes.append(f"{count(tally['small'], 'object')} less than a pixel wide or high: left out.")
    if tally["crowd"]:
        crowds = count(tally["crowd"], "crowd")
        notes.append(f"{crowds} (iscrowd): not learnt, and neither right nor wrong in validation.")
    if chosen == "none" and asked is None:
        notes.append(
            "No object has a segmentation: boxes are learnt alone, and the model's masks will be "
            "empty. --masks rectangles has it learn the boxes' rectangles as masks."
        )
    for one in parts:
        known = {one.path(image.file_name) for image in one.data.images}
        inside = [] if one.images == layout.folder else Found(one.images).images(one.images)
        unused = sum(path not in known for path in inside)
        if unused and not _shared(parts, one):
            where = shown(one.images, layout.folder)
            notes.append(f"{count(unused, 'image')} in {where}/ left out: not in the annotations.")
    side, what = (train, "to train on") if part is None else (validation, "to evaluate on")
    used = {x.label for image in side for x in image.objects}
    absent = [name for label, name in enumerate(parts[0].data.class_names) if label not in used]
    if absent:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        notes.append(f"Without an object {what}: {', '.join(absent[:10])}{more}.")
    return notes


def _shared(parts, one):
    """Whether another annotation file has images in the same folder."""
    return any(other is not one and other.images == one.images for other in parts)
