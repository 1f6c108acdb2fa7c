"""Trains a small InternImage on handwritten digits, start to finish; `make demo` runs it.

The data are scikit-learn's 1797 handwritten digits, enlarged to 64x64 RGB. A third is held out.
Writes curves.png, confusion.png and model.keras, checks that the saved model predicts the same
after reloading, writes and checks it as SavedModel, LiteRT and ONNX, and names what is on two
photographs with the official InternImage-T, if its weights can be had. Exits with 1 where the
accuracy on the held-out third is below --minimum.
"""

import argparse
import os
import pathlib
import sys
import time

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn import datasets, model_selection

import keras_internimage
from keras_internimage.checkpoints import DownloadError

SIZE = 64
CLASSES = 10


def load_digits(samples):
    """Digits as the models expect images: float32 (N, 64, 64, 3), normalised; and their labels."""
    digits = datasets.load_digits()
    images = [
        Image.fromarray(np.uint8(np.round(image * (255 / 16)))).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        for image in digits.images[:samples]
    ]
    images = np.repeat(np.stack(images)[..., None], 3, axis=-1)
    labels = digits.target[:samples]
    return model_selection.train_test_split(
        keras_internimage.preprocess_input(images),
        labels,
        test_size=1 / 3,
        stratify=labels,
        random_state=0,
    )


def build_model():
    """InternImage-T's design at half its width and a seventh of its depth."""
    return keras_internimage.InternImage(
        channels=32,
        depths=(1, 1, 2, 1),
        groups=(2, 4, 8, 16),
        input_shape=(SIZE, SIZE, 3),
        classes=CLASSES,
        name="internimage_digits",
    )


def train(model, x, y, held_out, epochs, batch_size=64):
    """AdamW with a warm-up and a cosine schedule; returns Keras' history."""
    steps = epochs * -(-len(x) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=2e-3,
        warmup_steps=max(1, steps // 10),
        decay_steps=steps,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=held_out,
        verbose=1 if sys.stdout.isatty() else 2,  # a progress bar, or one line per epoch
    ).history


def draw_curves(history, path):
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle("Small InternImage on handwritten digits, 64x64")
    epochs = range(1, len(history["loss"]) + 1)
    for axes, (key, label) in zip(
        figure.subplots(1, 2), [("loss", "cross-entropy"), ("accuracy", "accuracy")], strict=True
    ):
        axes.plot(epochs, history[key], "o-", label="training")
        axes.plot(epochs, history[f"val_{key}"], "s-", label="held-out third")
        axes.set(xlabel="epoch", ylabel=label, xticks=epochs)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def draw_confusion(labels, predicted, path):
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (labels, predicted), 1)
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(column, row, count, ha="center", va="center", color=colour)
    right = np.trace(counts)
    axes.set(
        title=f"Held-out digits: {right} of {len(labels)} right ({right / len(labels):.1%})",
        xlabel="predicted digit",
        ylabel="true digit",
        xticks=range(CLASSES),
        yticks=range(CLASSES),
    )
    figure.colorbar(shown, label="images")
    figure.savefig(path, dpi=120)


def save_and_reload(model, path):
    """Writes the whole file under another name first, so a broken run leaves no broken model."""
    unfinished = path.with_name(f"unfinished-{os.getpid()}.keras")
    try:
        model.save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return keras.saving.load_model(path)


def write_exports(model, folder):
    """The trained model for TensorFlow Serving, LiteRT and ONNX Runtime, each run and compared."""
    print("\nFor other programs:", flush=True)
    for name in ("served", "model.tflite", "model.onnx"):
        keras_internimage.export(model, folder / name)


def name_photographs():
    """Classifies scikit-learn's two sample photographs with the official InternImage-T."""
    print("\nTwo photographs, with the official InternImage-T (a 120 MB download, once):")
    try:
        model = keras_internimage.InternImageT(weights="imagenet")
        samples = datasets.load_sample_images()
        images = [keras_internimage.preprocessing.load_image(x, 224) for x in samples.images]
        named = keras_internimage.decode_predictions(model.predict(np.stack(images), verbose=0), 3)
    except (DownloadError, RuntimeError) as error:
        print("  left out: the weights or the class names are not in Keras' cache, and could not")
        print(f"  be downloaded: {error.__cause__ or error}")
        return
    for path, best in zip(samples.filenames, named, strict=True):
        names = ", ".join(f"{name} {score:.0%}" for _, name, score in best)
        print(f"  {os.path.basename(path)}: {names}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="demo", help="folder for the results")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=1797, help="use the first so many digits")
    parser.add_argument("--minimum", type=float, default=0.97, help="smaller accuracy is a failure")
    parser.add_argument("--no-exports", action="store_true")
    parser.add_argument("--no-photographs", action="store_true")
    options = parser.parse_args()
    start = time.monotonic()
    keras.utils.set_random_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)

    x, x_held_out, y, y_held_out = load_digits(options.samples)
    model = build_model()
    print(
        f"InternImage with {model.count_params():,} parameters, Keras {keras.__version__} on "
        f"{keras.config.backend()}.\n{len(x)} digits to learn from, {len(x_held_out)} held out; "
        f"the first step takes longest.",
        flush=True,
    )
    history = train(model, x, y, (x_held_out, y_held_out), options.epochs)
    scores = model.predict(x_held_out, batch_size=64, verbose=0)
    accuracy = float(np.mean(scores.argmax(-1) == y_held_out))
    draw_curves(history, options.out / "curves.png")
    draw_confusion(y_held_out, scores.argmax(-1), options.out / "confusion.png")

    again = save_and_reload(model, options.out / "model.keras")
    difference = float(np.abs(again.predict(x_held_out, batch_size=64, verbose=0) - scores).max())
    print(f"\nAccuracy on the held-out third: {accuracy:.2%}")
    print(f"Saved and reloaded: the largest difference of a probability is {difference:.1e}")
    print(f"Wrote curves.png, confusion.png and model.keras to {options.out}/")
    print(f"Took {time.monotonic() - start:.0f} s")
    if not options.no_exports:
        write_exports(model, options.out)
    if not options.no_photographs:
        name_photographs()
    if difference > 1e-5:
        sys.exit("The reloaded model must predict the same to 1e-5.")
    if accuracy < options.minimum:
        sys.exit(f"The accuracy must be at least {options.minimum:.0%}. Received: {accuracy:.2%}")


if __name__ == "__main__":
    main()
