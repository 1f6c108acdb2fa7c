"""What the examples of the tutorials are given: folders as one's own, made without network."""

import importlib.util
import pathlib

import numpy as np
from PIL import Image

from website.places import ROOT


def digits(folder: pathlib.Path, of_each: int = 40) -> None:
    """`digits/`: scikit-learn's handwritten digits, 32 pixels square, a folder for each class."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    for label in range(10):
        place = folder / "digits" / str(label)
        place.mkdir(parents=True)
        for number, row in enumerate(pixels[labels == label][:of_each]):
            image = Image.fromarray(np.uint8(255 - row.reshape(8, 8) * 255 / 16))
            image.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{number:03}.png")


def tower(folder: pathlib.Path, count: int = 24) -> None:
    """`tower/`: images and masks, crops of scikit-learn's photograph of a tower."""
    from sklearn import datasets

    spec = importlib.util.spec_from_file_location("segment", ROOT / "examples" / "segment.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    photograph = Image.fromarray(datasets.load_sample_image("china.jpg"))
    mask = example.drawn_mask(photograph.size)
    pairs = example.crops(photograph, mask, count, np.random.default_rng(0))
    for name, arrays in zip(("images", "masks"), pairs, strict=True):
        (folder / "tower" / name).mkdir(parents=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(folder / "tower" / name / f"{number:02}.png")
    (folder / "tower" / "classes.txt").write_text("\n".join(example.CLASSES) + "\n", "utf-8")
