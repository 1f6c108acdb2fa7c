"""How a folder of images and masks is laid out: pairs, in parts for training and validation."""

import dataclasses
import os
import pathlib

from keras_internimage.data import palette as palettes
from keras_internimage.data.check import count, printable, shown
from keras_internimage.data.layout import FolderError, Found, check_given, kind_of
from keras_internimage.data.mask_files import IGNORED, MaskEncoding
from keras_internimage.data.segmentation_classes import SEGMENTATION_CLASSES, segmentation_classes

IMAGES = frozenset({"images", "image", "imgs", "img_dir"})
MASKS = frozenset({"masks", "mask", "labels", "annotations", "ann_dir"})
# Folders of archives that are looked into.
_ADE, _VOC = "ADEChallengeData2016", "VOCdevkit"
_VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
# Of Cityscapes: where images and masks lie, and how their names end.
_CITY_FOLDERS = ("leftImg8bit", "gtFine")
_CITY_IMAGE, _CITY_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png"
_CITY_TRAIN_IDS = "_gtFine_labelTrainIds.png"
# The ids of the 19 classes that are evaluated, in the order of their train ids; the others of the
# 34 are ignored. Source: `cityscapesscripts.helpers.labels`.
_CITY_CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
Pair = tuple[pathlib.Path, pathlib.Path]


@dataclasses.dataclass
class MaskLayout:
    """What `mask_layout` found, before any image is opened.

    Attributes:
        folder: where images and masks lie; for archives, the folder in the one given.
        kind: "folders", "ade20k", "voc" or "cityscapes".
        train: pairs `(image, mask)`.
        validation: pairs for validation; None where the folder has no such part.
        validation_folders: what these lie in, with nothing else; empty where there is no such part.
        problems: `(path, reason)` of images without a mask and masks without an image.
        class_names: names of the classes, None where nothing tells them.
        palette: a colour for each class, where something tells them.
        encoding: how values of masks become class numbers.
        notes: sentences the user should read.
    """

    folder: pathlib.Path
    kind: str
    train: list[Pair]
    validation: list[Pair] | None
    problems: list[tuple[pathlib.Path, str]]
    class_names: tuple[str, ...] | None = None
    palette: tuple[palettes.Colour, ...] = ()
    encoding: MaskEncoding = MaskEncoding()
    notes: list[str] = dataclasses.field(default_factory=list)
    validation_folders: tuple[pathlib.Path, ...] = ()


def mask_layout(folder: str | os.PathLike, reduce_zero_label: bool | None = None) -> MaskLayout:
    """Finds images and their masks in a folder.

    It is one of these; a mask has its image's name, but for the suffix, and folders below are
    part of the name:

    - `images/` and `masks/` (or `annotations/`, `labels/`), each with `train/` and `val/` inside,
      or these two with `images/` and `masks/` inside, or without such parts;
    - ADE20K as downloaded (`ADEChallengeData2016`): 150 classes, 0 is ignored;
    - PASCAL VOC as downloaded (`VOC2012`, or `VOCdevkit` with one of them): 21 classes, the
      images that `ImageSets/Segmentation/train.txt` and `val.txt` list;
    - Cityscapes as downloaded (`leftImg8bit` and `gtFine`, each with `train/CITY/` and `val/CITY/`
      inside): 19 classes, from `*_labelIds.png` or, where there are none, `*_labelTrainIds.png`.

    A `classes.txt` in the folder names the classes, see `palette.read_classes`. Without one, those
    of ADE20K and Cityscapes are called as by `segmentation_classes`.

    Args:
        folder: path of the folder.
        reduce_zero_label: whether 0 is ignored and class `c` is stored as `c + 1`; None is False,
            but for ADE20K.

    Raises:
        FolderError: the folder is laid out in another way.
    """
    folder = check_given(folder)
    inner = folder
    for name in (_ADE, _VOC):
        if (inner / name).is_dir():
            inner = inner / name
    devkits = [path for path in _folders(inner) if _is_voc(path)]
    if len(devkits) > 1:
        names = " and ".join(path.name for path in devkits)
        raise FolderError(f"The folder must be one of {names}. Received: {inner} with both")
    if devkits:
        (inner,) = devkits
    found = Found(inner)
    if _is_voc(inner):
        layout = _voc(inner)
    else:
        layout = _cityscapes(found) if _is_cityscapes(inner) else _pairs_of_folders(found)
    layout.problems += found.bad
    # Of what lies beside the folders nobody expects anything.
    others = [p for paths in found.ignored.values() for p in paths if p.parent != inner]
    if others:
        kinds = ", ".join(sorted({path.suffix.lower() or "without a suffix" for path in others}))
        files = count(len(others), "file")
        layout.notes.append(f"{files} left out: no images by suffix ({kinds}).")
    _name_classes(layout, reduce_zero_label)
    return layout


def holds_masks(folder: str | os.PathLike) -> bool:
    """Whether a folder is laid out as `mask_layout` says, by the names of the folders in it."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return False
    inner = _folders(folder)
    archives = {_ADE, _VOC} & {path.name for path in inner}
    if archives or any(map(_is_voc, (folder, *inner))) or _is_cityscapes(folder):
        return True
    return any(names & IMAGES and names & MASKS for names in _names_beside(folder))


def without_masks(folder: str | os.PathLike) -> str | None:
    """What a folder has beside `images/`, where that is not as `mask_layout` says; or None.

    Such a folder is hardly one of classes.
    """
    for names in _names_beside(pathlib.Path(folder)):
        others = sorted(names - IMAGES)
        if names & IMAGES and others and not names & MASKS:
            return ", ".join(f"{name}/" for name in others[:3]) + (", ..." if others[3:] else "")
    return None


def _names_beside(folder):
    """Names of the folders that lie beside each other, in a folder and in the parts in it."""
    inner = _folders(folder) if folder.is_dir() else []
    return [
        {x.name.lower() for x in _folders(p)}
        for p in (folder, *inner)
        if p.is_dir() and (p == folder or kind_of(p.name))
    ]


def _name_classes(layout, reduce_zero_label):
    ignored, colours = (), ()
    if layout.kind == "cityscapes":
        if reduce_zero_label:
            raise FolderError(
                "Cityscapes has no label 0 to be ignored: reduce_zero_label must be left out. "
                f"Received: reduce_zero_label=True for {layout.folder}"
            )
        _name_by_table(layout)
        return
    if (layout.folder / palettes.FILE).is_file():
        try:
            read = palettes.read_classes(layout.folder / palettes.FILE)
        except ValueError as error:
            raise FolderError(str(error)) from error
        layout.class_names, layout.palette, ignored = read
        # VOC's files hold numbers, whatever their palette.
        colours = layout.palette if layout.kind != "voc" else ()
    elif layout.kind == "voc":
        layout.class_names, layout.palette = VOC_CLASSES, palettes.default_palette(len(VOC_CLASSES))
    elif layout.kind in SEGMENTATION_CLASSES:
        _name_by_table(layout)
    if reduce_zero_label is None:
        reduce_zero_label = layout.kind == "ade20k"
    classes = None if layout.class_names is None else len(layout.class_names)
    if classes == 255 and reduce_zero_label:
        raise FolderError("There must be at most 254 classes where 0 is ignored. Received: 255")
    layout.encoding = MaskEncoding(classes, bool(reduce_zero_label), colours, ignored)


def _name_by_table(layout):
    rows = segmentation_classes(layout.kind)
    layout.class_names = tuple(row.name for row in rows)
    layout.palette = tuple(row.color for row in rows)


def _folders(folder):
    return [path for path in sorted(folder.iterdir()) if path.is_dir()]


def _is_voc(folder):
    return all((folder / name).is_dir() for name in _VOC_FOLDERS)


def _voc(folder):
    images, masks, lists = (folder / name for name in _VOC_FOLDERS)
    parts, problems = [], []
    for name in ("train", "val"):
        path = lists / f"{name}.txt"
        if not path.is_file():
            raise FolderError(f"There must be a list of images. Received: {path}, no such file")
        pairs = []
        try:
            stems = path.read_text("utf-8-sig").split()
        except ValueError as error:
            raise FolderError(f"{path} must be UTF-8 text. Received: {error}") from error
        for stem in stems:
            if pathlib.PurePath(stem).name != stem:
                raise FolderError(f"{path} must list names of images. Received: {stem}")
            image, mask = images / f"{stem}.jpg", masks / f"{stem}.png"
            if not image.is_file():
                problems.append((image, f"is not there, but in {shown(path, folder)}"))
            elif not mask.is_file():
                problems.append((image, f"has no mask {shown(mask, folder)}"))
            else:
                pairs.append((image, mask))
        parts.append(pairs)
    return MaskLayout(folder, "voc", *parts, problems)


def _is_cityscapes(folder):
    return all((folder / name).is_dir() for name in _CITY_FOLDERS)


def _cityscapes(found):
    folder = found.folder
    images, masks = (folder / name for name in _CITY_FOLDERS)
    layout = MaskLayout(folder, "cityscapes", [], None, [])
    walk = Found(folder)  # what lies beside the masks, such as polygons, is no news
    files = {}
    for part in ("train", "val"):
        if (images / part).is_dir() or (masks / part).is_dir():
            files[part] = found.images(images / part), walk.images(masks / part)
    if not files:
        raise FolderError(f"There must be {images}/train or {images}/val. Received: neither")
    found.bad += walk.bad
    stored = {mask.name for _, there in files.values() for mask in there}
    by_ids = any(name.endswith(_CITY_IDS) for name in stored)
    ending = _CITY_IDS if by_ids else _CITY_TRAIN_IDS
    for part, (pictures, there) in files.items():
        of_mask = {_stem(mask, masks, ending): mask for mask in there}
        of_image = {_stem(image, images, _CITY_IMAGE): image for image in pictures}
        for of_file in (of_image, of_mask):
            of_file.pop(None, None)
        for name, image in of_image.items():
            if name not in of_mask:
                expected = shown(masks / f"{name}{ending}", folder)
                layout.problems.append((image, f"has no mask {expected}"))
        for name, mask in of_mask.items():
            if name not in of_image:
                layout.problems.append((mask, "is a mask without an image"))
        pairs = [(image, of_mask[name]) for name, image in of_image.items() if name in of_mask]
        if part == "train":
            layout.train = pairs
        else:
            layout.validation = pairs
            layout.validation_folders = (images / part, masks / part)
    numbers = [IGNORED] * 34
    for number, stored_id in enumerate(_CITY_CLASSES):
        numbers[stored_id] = number
    layout.encoding = MaskEncoding(len(_CITY_CLASSES), numbers=tuple(numbers) if by_ids else ())
    unused = [path for path in _folders(images) if path.name not in files]
    layout.notes += [f"{shown(path, folder)}/ is not looked at." for path in unused]
    return layout


def _stem(path, folder, ending):
    """A file's path below a folder without the ending, or None where it has another one."""
    if not path.name.endswith(ending):
        return None
    return path.relative_to(folder).as_posix().removesuffix(ending)


def _pairs_of_folders(found):
    folder = found.folder
    folders, files = found.entries(folder)
    images, masks = (_named(found, folders, names) for names in (IMAGES, MASKS))
    if images is not None and masks is not None:
        parts = [_parts(found, one) for one in (images, masks)]
        given = [part is not None for part in parts]
        if given == [False, False]:
            where = {"training": (images, masks)}
        elif given == [True, True]:
            where = {kind: tuple(part.get(kind) for part in parts) for kind in parts[0] | parts[1]}
        else:
            with_parts, without = (images, masks) if given[0] else (masks, images)
            raise FolderError(
                f"{images.name}/ and {masks.name}/ must have the same folders. "
                f"Received: {folder}, where {with_parts.name}/ has parts and {without.name}/ none"
            )
    else:
        by_kind = _by_kind(found, folders)
        where = {}
        for kind, part in by_kind.items():
            inside, _ = found.entries(part)
            where[kind] = tuple(_named(found, inside, names) for names in (IMAGES, MASKS))
        if "training" not in where or None in where["training"]:
            there = ", ".join(f"{printable(path.name)}/" for path in folders) or "no folder"
            raise FolderError(
                "There must be images/ and masks/, or train/ and val/ with these inside, or "
                f"ADE20K, PASCAL VOC or Cityscapes as downloaded. Received: {folder} with {there}"
            )
    for kind, (one, other) in where.items():
        if one is None or other is None:
            there, missing = (one, "masks") if other is None else (other, "images")
            raise FolderError(
                f"The part for {kind} must have images and masks. "
                f"Received: {there} without {missing}"
            )
    layout = MaskLayout(folder, "folders", [], None, [])
    for kind, (one, other) in where.items():
        pairs = _pairs(found, one, other, layout.problems)
        if kind == "training":
            layout.train = pairs
        else:
            layout.validation, layout.validation_folders = pairs, (one, other)
    if files:
        layout.notes.append(f"{count(len(files), 'image')} left out: outside of the folders.")
    layout.notes += [f"{printable(name)}/ is not looked at." for name in found.not_used]
    if masks is not None and masks.name == "annotations" and layout.validation:
        pairs = layout.train[:1] + layout.validation[:1]
        if pairs and all(image.name.startswith("ADE_") for image, _ in pairs):
            layout.kind = "ade20k"
    return layout


def _named(found, folders, names):
    """The one folder of such a name, or None."""
    those = [path for path in folders if path.name.lower() in names]
    if len(those) > 1:
        listed = " and ".join(f"{path.name}/" for path in those)
        raise FolderError(
            f"There must be one folder of each kind. Received: {those[0].parent} with {listed}"
        )
    return those[0] if those else None


def _by_kind(found, folders):
    """Folders by what they are for; those for tests and others are noted."""
    by_kind = {}
    for path in folders:
        kind = kind_of(path.name)
        if kind in by_kind:
            raise FolderError(
                f"There must be one folder for {kind}. "
                f"Received: {by_kind[kind].name} and {path.name}"
            )
        if kind in ("training", "validation"):
            by_kind[kind] = path
        else:
            found.not_used.append(shown(path, found.folder))
    return by_kind


def _parts(found, folder):
    """The folders for training and validation in a folder, or None where there are none."""
    folders, _ = found.entries(folder)
    if not any(kind_of(path.name) == "training" for path in folders):
        return None
    return _by_kind(found, folders)


def _pairs(found, images, masks, problems):
    """Pairs of two folders; what has no partner goes to the problems."""
    by_name = []
    for folder in (images, masks):
        here = {}
        for path in found.images(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in here:
                same = shown(here[name], found.folder)
                problems.append((path, f"has the name of {same}, but for the suffix"))
            else:
                here[name] = path
        by_name.append(here)
    of_image, of_mask = by_name
    expected = shown(masks, found.folder)
    for name, path in of_image.items():
        if name not in of_mask:
            problems.append((path, f"has no mask {expected}/{printable(name)}.png"))
    for name, path in of_mask.items():
        if name not in of_image:
            problems.append((path, "is a mask without an image"))
    return [(path, of_mask[name]) for name, path in of_image.items() if name in of_mask]
