"""Trains a small Mask R-CNN on shapes drawn over a photograph, and finds other ones over it.

    python examples/detect.py --out detector

needs no network, and takes a while. The photographs are scikit-learn's, one of a tower and one of a
flower. Circles, squares, triangles and stars of random colours, sizes and angles are drawn over
crops of the tower's photograph to train on. Average precision is that of other shapes, over the
tower and over the flower, which training never saw: there the model finds much less. The folder
then holds detection.jpg, and the model with its classes for `internimage-detect detector photo.jpg
--out detected`.
"""

import argparse
import math
import pathlib

import keras
import numpy as np
from PIL import Image, ImageDraw

import keras_internimage
from keras_internimage.data import Resizing, labels
from keras_internimage.detector import Detector, evaluate_batches
from keras_internimage.detector.drawing import Drawing

CLASSES = ("circle", "square", "triangle", "star")
SIDE = 128  # of crops
MOST = 3  # shapes in a crop
EVALUATED = 25  # batches
SMALLEST, LARGEST = 28, 70  # pixels
FINE = 4  # shapes are drawn so many times as large
# Of the photographs, at which the model sees them as they are.
RESOLUTION = 427


def outline(label, size, angle):
    """Corners of a shape within a square of `size` pixels, `(points, 2)`."""
    corners = (60, 4, 3, 10)[label]
    turns = angle + 2 * math.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if label == 3 else np.ones(corners)
    return (size / 2) * (1 + radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1))


def with_shapes(background, count, rng):
    """An image with shapes over it; their boxes, labels and masks.

    Of shapes that cover each other it is what is seen; one that is mostly hidden does not count.
    """
    pixels = np.array(background, "float32")
    height, width = pixels.shape[:2]
    drawn = []
    for _ in range(count):
        label, size = int(rng.integers(len(CLASSES))), int(rng.integers(SMALLEST, LARGEST))
        left, top = rng.integers(0, width - size + 1), rng.integers(0, height - size + 1)
        points = outline(label, size * FINE, rng.uniform(0, 2 * math.pi))
        alpha = Image.new("L", (size * FINE, size * FINE))
        ImageDraw.Draw(alpha).polygon([tuple(x) for x in points.tolist()], fill=255)
        alpha = np.array(alpha.resize((size, size), Image.Resampling.BOX), "float32") / 255
        colour = rng.uniform(0, 255, 3) + rng.normal(0, 12, (size, size, 1))
        place = slice(top, top + size), slice(left, left + size)
        pixels[place] += alpha[..., None] * (colour - pixels[place])
        mask = np.zeros((height, width), bool)
        mask[place] = alpha >= 0.5
        drawn = [(kind, seen & ~mask, whole) for kind, seen, whole in drawn]
        drawn.append((label, mask, mask.sum()))
    kept = [(label, seen) for label, seen, whole in drawn if seen.sum() > 0.6 * whole]
    boxes = np.zeros((len(kept), 4), "float32")
    for box, (_, seen) in zip(boxes, kept, strict=True):
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    masks = np.array([seen for _, seen in kept], bool).reshape(-1, height, width)
    image = np.uint8(np.clip(np.rint(pixels), 0, 255))
    return image, boxes, np.array([label for label, _ in kept], int), masks


class Shapes(keras.utils.PyDataset):
    """Batches of crops with shapes, other ones in each batch, as `fit` takes them."""

    def __init__(self, photograph, batches, batch_size=4, seed=0):
        super().__init__()
        self.photograph, self.batches = photograph, batches
        self.batch_size, self.seed = batch_size, seed

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        size = self.batch_size
        images = np.zeros((size, SIDE, SIDE, 3), "float32")
        boxes, found = np.zeros((size, MOST, 4), "float32"), np.full((size, MOST), -1)
        masks = np.zeros((size, MOST, SIDE, SIDE), bool)
        for place in range(size):
            x, y = (rng.integers(0, side - SIDE + 1) for side in self.photograph.size)
            crop = self.photograph.crop((x, y, x + SIDE, y + SIDE))
            image, *objects = with_shapes(crop, rng.integers(1, MOST + 1), rng)
            images[place] = keras_internimage.preprocess_input(image.astype("float32"))
            for target, values in zip((boxes, found, masks), objects, strict=True):
                target[place, : len(values)] = values
        return {"images": images}, {"boxes": boxes, "labels": found, "masks": masks}


def small_model(data):
    """Mask R-CNN on InternImage-T's design at half its width, trained on `Shapes`."""
    backbone = keras_internimage.InternImageBackbone(
        channels=32, depths=(1, 1, 2, 1), groups=(2, 4, 8, 16), image_shape=(None, None, 3)
    )
    model = keras_internimage.MaskRCNN(
        backbone,
        classes=len(CLASSES),
        channels=64,
        units=128,
        proposals=100,
        proposals_per_level=100,
        max_detections=50,
    )
    steps = len(data)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=1.5e-3, warmup_steps=steps // 10
    )
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=0.05, global_clipnorm=5.0))
    model.fit(data, verbose=2)
    return model


def figure(detector, photograph, rows=2, width=400):
    """The photograph with shapes over it, and what is detected; other shapes in each row."""
    drawing = Drawing(CLASSES)
    height = round(width * photograph.height / photograph.width)
    page = Image.new("RGB", (2 * width + 8, rows * (height + 8) - 8), "white")
    for row in range(rows):
        pixels, *_ = with_shapes(photograph, 9, np.random.default_rng(row))
        image = Image.fromarray(pixels)
        (found,) = detector.predict(image)
        for column, picture in enumerate((image, drawing.draw(image, found, letters=22))):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
            page.paste(picture, (column * (width + 8), row * (height + 8)))
    return page


def print_scores(model, name, photograph):
    """Average precision of shapes over crops of a photograph that are not those of training."""
    _, scores = evaluate_batches(model, Shapes(photograph, EVALUATED, seed=1))
    box, mask = scores.box.numbers, scores.mask.numbers
    print(
        f"{scores.objects.sum()} shapes over the {name}: box AP {box['AP']:.3f}, AP50 "
        f"{box['AP50']:.3f}; mask AP {mask['AP']:.3f}, AP50 {mask['AP50']:.3f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="of the training")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out must be a folder that is not there yet. Received: --out {options.out}")
    from sklearn import datasets

    keras.utils.set_random_seed(0)
    names = ("china.jpg", "flower.jpg")
    tower, flower = (Image.fromarray(datasets.load_sample_image(name)) for name in names)
    model = small_model(Shapes(tower, options.steps))
    print_scores(model, "tower", tower)
    print_scores(model, "flower", flower)
    options.out.mkdir(parents=True)
    model.save(options.out / "model.keras")
    labels.Labels(CLASSES, RESOLUTION).write(options.out)
    resizing = Resizing(RESOLUTION, 640)
    detector = Detector(model, CLASSES, resizing=resizing, threshold=0.5)
    figure(detector, tower).save(options.out / "detection.jpg", quality=85)
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
