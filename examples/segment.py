"""Trains a small UperNet on parts of one photograph, and draws the class of each of its pixels.

    python examples/segment.py --out segmenter

needs no network and some minutes. The photograph is scikit-learn's of a tower. Polygons below say
what is sky, tower, trees and water; edges and all that lies in no polygon are ignored. A strip of
the photograph is held out: no crop for training touches it, and the accuracy is that of its
pixels. The folder then holds segmentation.jpg, and the model with its classes for
`internimage-segment segmenter photo.jpg --out segmented`.
"""

import argparse
import pathlib

import keras
import numpy as np
from PIL import Image, ImageDraw

import keras_internimage
from keras_internimage import training
from keras_internimage.data import palette
from keras_internimage.segmenter import Segmenter, drawing

# Names, colours, and polygons on the photograph of 640 x 427 pixels: x, y, x, y, ...
CLASSES = {
    "sky": ((110, 190, 255), [
        "0 0 640 0 640 120 600 126 568 150 548 192 345 190 338 165 325 150 300 145 300 135 325 122"
        " 325 112 290 92 255 75 222 48 220 25 191 25 189 48 160 75 120 92 90 102 88 130 112 145"
        " 112 155 85 158 78 175 78 195 50 190 45 185 22 172 8 150 3 130 0 120",
    ]),
    "tower": ((225, 60, 50), [
        "205 35 196 40 199 60 190 72 165 92 125 105 100 112 102 122 122 128 124 155 118 166 90 172"
        " 92 182 102 186 102 228 97 243 70 262 70 272 84 280 84 318 82 334 118 328 150 328 168 340"
        " 200 358 222 375 245 383 290 378 302 362 325 362 335 350 358 338 345 325 345 312 338 300"
        " 336 275 345 262 345 255 325 248 322 235 316 225 316 190 325 178 318 172 295 165 290 155"
        " 290 135 312 122 300 117 270 108 235 85 216 62 212 45 212 36",
    ]),
    "trees": ((40, 170, 60), [
        "0 300 18 300 30 325 50 345 80 350 120 340 155 345 190 368 205 385 240 398 280 400 285 415"
        " 280 427 0 427",
        "0 190 30 195 50 215 68 228 60 240 30 255 0 265",
        "375 345 400 330 430 315 450 305 480 298 520 290 540 280 558 285 562 270 556 240 552 225"
        " 575 190 585 160 605 145 620 160 635 180 640 190 640 427 350 427 345 400 360 370",
    ]),
    "water": ((250, 215, 70), [
        "350 262 365 247 420 248 500 247 545 242 546 262 540 268 515 274 480 286 440 298 420 306"
        " 395 316 378 322 354 312 350 290",
        "22 287 50 282 72 286 74 303 40 312 24 300",
    ]),
}  # fmt: skip
IGNORED = 255
HELD_OUT = (230, 390)  # columns
SIDE = 128  # of crops


def drawn_mask(size, classes=CLASSES):
    """The polygons as a mask, uint8 `(H, W)`."""
    mask = Image.new("L", size, IGNORED)
    draw = ImageDraw.Draw(mask)
    for number, (_, polygons) in enumerate(classes.values()):
        for polygon in polygons:
            draw.polygon([int(part) for part in polygon.split()], fill=number)
    return np.array(mask)


def crops(photograph, mask, count, rng):
    """Random crops beside the strip, and their masks: uint8, 128 pixels square."""
    height, width = mask.shape
    images, masks = [], []
    for _ in range(count):
        left, right = ((0, HELD_OUT[0]), (HELD_OUT[1], width))[rng.integers(2)]
        side = int(rng.integers(80, right - left + 1))
        x, y = rng.integers(left, right - side + 1), rng.integers(0, height - side + 1)
        box, step = (x, y, x + side, y + side), rng.choice([-1, 1])
        crop = photograph.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        crop = np.asarray(crop)[:, ::step] * rng.uniform(0.75, 1.2)
        images.append(np.uint8(np.clip(crop + rng.normal(0, 4, crop.shape), 0, 255)))
        crop = Image.fromarray(mask).crop(box).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        masks.append(np.asarray(crop)[:, ::step])
    return np.stack(images), np.stack(masks)


def small_model(photograph, mask, steps, batch_size=8):
    """UperNet on InternImage-T's design at half its width, trained on crops."""
    backbone = keras_internimage.InternImageBackbone(
        channels=32, depths=(2, 2, 4, 2), groups=(2, 4, 8, 16), image_shape=(None, None, 3)
    )
    model = keras_internimage.UperNet(backbone, classes=len(CLASSES), channels=64)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=2e-3, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, global_clipnorm=5.0)
    model.compile(optimizer, training.SegmentationLoss())
    images, masks = crops(photograph, mask, steps * batch_size, np.random.default_rng(0))
    images = keras_internimage.preprocess_input(images)
    model.fit(images, masks, batch_size=batch_size, verbose=2)
    return model


def figure(photograph, mask, labels, colours, width=400):
    """The photograph, the polygons, the prediction and its legend, two in a row."""
    grey = Image.blend(photograph.convert("L").convert("RGB"), photograph, 0.2)
    shown = np.where((mask == IGNORED)[..., None], grey, drawing.overlay(photograph, mask, colours))
    pictures = [
        photograph,
        Image.fromarray(np.uint8(shown)),
        drawing.overlay(photograph, labels, colours),
    ]
    height = round(width * photograph.height / photograph.width)
    page = Image.new("RGB", (2 * width + 8, 2 * height + 8), "white")
    for number, picture in enumerate(pictures):
        place = (number % 2 * (width + 8), number // 2 * (height + 8))
        page.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
        draw = ImageDraw.Draw(page)
        for column in HELD_OUT:
            x = place[0] + round(column * width / photograph.width)
            draw.line((x, place[1], x, place[1] + height - 1), fill="white", width=2)
    shares = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    legend = drawing.legend(list(zip(CLASSES, colours, map(float, shares), strict=True)))
    page.paste(legend, (width + 40, height + (height - legend.height) // 2))
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of the training")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out must be a folder that is not there yet. Received: --out {options.out}")
    from sklearn import datasets

    keras.utils.set_random_seed(0)
    photograph = Image.fromarray(datasets.load_sample_image("china.jpg"))
    mask = drawn_mask(photograph.size)
    model = small_model(photograph, mask, options.steps)
    colours = [colour for colour, _ in CLASSES.values()]
    labels = Segmenter(model, list(CLASSES), palette=colours).label_map(photograph)
    strip = slice(*HELD_OUT)
    known = mask[:, strip] != IGNORED
    right = labels[:, strip][known] == mask[:, strip][known]
    print(f"{right.mean():.1%} of {known.sum()} pixels in the strip that was held out are right")

    options.out.mkdir(parents=True)
    model.save(options.out / "model.keras")
    rows = (f"{name} {r} {g} {b}\n" for name, ((r, g, b), _) in CLASSES.items())
    (options.out / palette.FILE).write_text("".join(rows))
    picture = figure(photograph, mask, labels, colours)
    picture.save(options.out / "segmentation.jpg", quality=85)
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
