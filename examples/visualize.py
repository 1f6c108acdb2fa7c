"""Draws what an InternImage sees on a photograph: sampling points, receptive fields, Grad-CAM.

    python examples/visualize.py photo.jpg --variant B --at 120 80
    python examples/visualize.py --small

writes sampling_points.png, receptive_field.png and grad_cam.png. The first takes the official
weights, a download. The second needs no network: it trains a small InternImage for one to three
minutes, to tell apart crops of scikit-learn's two photographs, and draws what it sees on one.
"""

import argparse
import pathlib

import keras
import numpy as np

import keras_internimage
from keras_internimage import visualize
from keras_internimage.variants import VARIANTS, function_name

# Where crops of the photographs, 640 x 427 pixels, show one thing only: left, top, right, bottom.
PLACES = {
    "sky": [(0, 340, 0, 640, 190), (0, 0, 0, 95, 110)],
    "tower": [(0, 100, 70, 320, 340)],
    "trees": [(0, 0, 340, 190, 427), (0, 350, 325, 640, 427), (0, 560, 160, 640, 427)],
    "flower": [(1, 205, 120, 415, 325)],
    "leaves": [(1, 0, 0, 160, 427), (1, 455, 0, 640, 427)],
}
SIDE, SHOWN = 96, 256  # of crops, and of the photograph drawn on
NAMES = ("sampling_points", "receptive_field", "grad_cam")


def crops(photographs, count, rng):
    """Random crops and their labels: uint8 `(N, 96, 96, 3)`, ints `(N,)`."""
    from PIL import Image

    images, labels = [], rng.integers(len(PLACES), size=count)
    for label in labels:
        places = list(PLACES.values())[label]
        number, left, top, right, bottom = places[rng.integers(len(places))]
        side = rng.integers(56, min(160, right - left, bottom - top) + 1)
        x, y = rng.integers(left, right - side + 1), rng.integers(top, bottom - side + 1)
        crop = Image.fromarray(photographs[number]).crop((x, y, x + side, y + side))
        crop = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        crop = crop[:, :: rng.choice([-1, 1])] * rng.uniform(0.7, 1.2)
        images.append(np.uint8(np.clip(crop + rng.normal(0, 4, crop.shape), 0, 255)))
    return np.stack(images), labels


def small_model(photographs, steps, batch_size=16):
    """InternImage-T's design at half its width, trained on crops; its accuracy on new ones."""
    model = keras_internimage.InternImage(
        channels=32,
        depths=(2, 2, 4, 2),
        groups=(2, 4, 8, 16),
        input_shape=(None, None, 3),
        classes=len(PLACES),
        name="internimage_crops",
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=2e-3, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, global_clipnorm=5.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    rng = np.random.default_rng(0)
    images, labels = crops(photographs, steps * batch_size, rng)
    model.fit(keras_internimage.preprocess_input(images), labels, batch_size=batch_size, verbose=2)
    images, labels = crops(photographs, 200, rng)
    scores = model.predict(keras_internimage.preprocess_input(images), verbose=0)
    print(f"{np.mean(scores.argmax(-1) == labels):.1%} of 200 new crops right")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", nargs="?", help="an image file; its middle square is taken")
    parser.add_argument("--variant", choices=list(VARIANTS), default="T")
    parser.add_argument("--weights", default="imagenet", help="or the path of a weights file")
    parser.add_argument("--at", type=float, nargs=2, metavar=("X", "Y"), help="pixel of the square")
    parser.add_argument("--small", action="store_true", help="train a small model, without weights")
    parser.add_argument("--steps", type=int, default=100, help="of the small model's training")
    parser.add_argument("--side", type=int, default=300, help="of each picture, in pixels")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="a folder")
    options = parser.parse_args()
    if options.small == bool(options.photo):
        parser.error("give either a photo or --small")
    options.out.mkdir(parents=True, exist_ok=True)

    if options.small:
        from sklearn import datasets

        keras.utils.set_random_seed(0)
        photographs = datasets.load_sample_images().images
        model, labels = small_model(photographs, options.steps), list(PLACES)
        photo, classes, size = photographs[0][:, 20:447], [1, 2, 0], SHOWN
        at = options.at or (0.38 * SHOWN, 0.47 * SHOWN)
    else:
        model = getattr(keras_internimage, function_name(options.variant))(weights=options.weights)
        labels, classes, photo, size, at = None, None, options.photo, None, options.at

    common = {"size": size, "side": options.side}
    paths = {name: options.out / f"{name}.png" for name in NAMES}
    visualize.draw_sampling_points(model, photo, at=at, path=paths["sampling_points"], **common)
    visualize.draw_receptive_field(model, photo, path=paths["receptive_field"], **common)
    visualize.draw_grad_cam(model, photo, classes, 4, labels, path=paths["grad_cam"], **common)
    print("Wrote", *paths.values())


if __name__ == "__main__":
    main()
