"""Folders of small photographs with masks: bright pixels are class 1, others class 0."""

import numpy as np
import photographs
from PIL import Image


def pair(index, side=48, width=64):
    """An image and its mask."""
    image = photographs.piece("china", index, width).crop((0, 0, width, side))
    return image, bright(image)


def bright(image):
    """The mask of an image: 1 where it is bright, 255 in the first row, 0 elsewhere."""
    mask = (np.asarray(image.convert("L")) > 127).astype("uint8")
    mask[0] = 255
    return mask


def write(images, masks, indices):
    """Writes pairs into two folders; returns the paths of the masks."""
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in indices:
        image, mask = pair(index)
        image.save(images / f"{index:03}.png")
        paths.append(masks / f"{index:03}.png")
        Image.fromarray(mask).save(paths[-1])
    return paths


def folder(root, images=6, validation=None):
    """`images/` and `masks/`, or with both numbers `images/train`, `images/val` and so on."""
    if validation is None:
        write(root / "images", root / "masks", range(images))
    else:
        write(root / "images" / "train", root / "masks" / "train", range(images))
        held_out = range(100, 100 + validation)
        write(root / "images" / "val", root / "masks" / "val", held_out)
    (root / "classes.txt").write_text("dark\nbright thing\n")
    return root


def ade20k(root, train=2, validation=2):
    """As ADEChallengeData2016: 0 is ignored, 1 to 150 are the classes."""
    for part, start, number in (("training", 0, train), ("validation", 50, validation)):
        for place in ("images", "annotations"):
            (root / place / part).mkdir(parents=True)
        for index in range(start, start + number):
            image, mask = pair(index)
            name = f"ADE_{part[:5]}_{index:08}"
            image.save(root / "images" / part / f"{name}.jpg")
            stored = np.where(mask == 255, 0, mask + 1).astype("uint8")
            Image.fromarray(stored).save(root / "annotations" / part / f"{name}.png")
    return root


def cityscapes(root, train=2, validation=2, train_ids=False):
    """As Cityscapes: 2 (ignored), 33 (bicycle) and 7 (road), or train ids; polygons beside them."""
    for part, start, number in (("train", 0, train), ("val", 50, validation)):
        for index in range(start, start + number):
            city = ("bochum", "ulm")[index % 2]
            image, mask = pair(index)
            places = [root / kind / part / city for kind in ("leftImg8bit", "gtFine")]
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
            name = f"{city}_{index:06}_000019"
            image.save(places[0] / f"{name}_leftImg8bit.png")
            values = (255, 18, 0) if train_ids else (2, 33, 7)
            stored = np.select([mask == 255, mask == 1], values[:2], values[2]).astype("uint8")
            kind = "labelTrainIds" if train_ids else "labelIds"
            Image.fromarray(stored).save(places[1] / f"{name}_gtFine_{kind}.png")
            image.save(places[1] / f"{name}_gtFine_color.png")
            (places[1] / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


def voc(root, train=2, validation=2):
    """As VOC2012: palette files, the border 255, lists of names; two images are in no list."""
    from keras_internimage.data.palette import default_palette

    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    names = [f"2007_{index:06}" for index in range(train + validation + 2)]
    for index, name in enumerate(names):
        image, mask = pair(index)
        image.save(root / "JPEGImages" / f"{name}.jpg")
        if index < train + validation:
            stored = Image.fromarray(np.where(mask == 1, 20, mask).astype("uint8"))
            stored.putpalette(np.array(default_palette(256), "uint8").tobytes())
            stored.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("\n".join(names[:train]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[train : train + validation]) + "\n")
    return root
