"""How often an InternImage in int8 names the same class as in float32, on held-out digits.

    KERAS_BACKEND=torch python benchmarks/quantize.py [--epochs 12] [--size 32]

A small InternImage learns the handwritten digits of scikit-learn; `model.quantize("int8")` then
stores the kernels of its dense layers in eight bits. Prints the accuracy of both on the digits held
out, the share on which they agree, and the sizes of their weights.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import keras
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


def digits(size):
    """(images, held-out images, labels, held-out labels), images in [-1, 1]."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.repeat(data.images[..., None] / 8 - 1, 3, axis=-1).astype("float32")
    images = keras.ops.image.resize(images, (size, size), data_format="channels_last")
    images = keras.ops.convert_to_numpy(images)
    return train_test_split(
        images, data.target, test_size=1 / 3, random_state=0, stratify=data.target
    )


def main():
    from keras_internimage import InternImage

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=16)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    x, held_out, y, held_out_y = digits(options.size)
    groups = tuple(options.channels * 2**stage // 8 for stage in range(4))
    model = InternImage(
        options.channels,
        (1, 1, 1, 1),
        groups,
        input_shape=(options.size, options.size, 3),
        classes=10,
    )
    model.compile(keras.optimizers.AdamW(2e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=64, epochs=options.epochs, verbose=2)
    before = model.predict(held_out, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        sizes = [weights_size(model)]
        model.quantize("int8")
        after = model.predict(held_out, verbose=0)
        sizes.append(weights_size(model))
        model.save(os.path.join(folder, "model.keras"))
        again = keras.saving.load_model(os.path.join(folder, "model.keras"))
        reloaded = again.predict(held_out, verbose=0)
    names = [scores.argmax(-1) for scores in (before, after, reloaded)]
    right = [f"{(found == held_out_y).mean():.1%}" for found in names]
    agree = names[0] == names[1]
    print(f"{keras.config.backend()}: accuracy {right[0]} in float32, {right[1]} in int8,")
    print(f"{right[2]} in int8 reloaded; the same class for {agree.sum()} of {len(agree)} images,")
    print(f"{agree.mean():.1%}; scores differ by {np.abs(after - before).max():.1e} at most;")
    print(f"weights {sizes[0] / 1e6:.2f} MB and {sizes[1] / 1e6:.2f} MB")


def weights_size(model):
    """Bytes of the model's weights; a compiled model's file holds the optimizer's, too."""
    return sum(keras.ops.convert_to_numpy(weight.value).nbytes for weight in model.weights)


if __name__ == "__main__":
    main()
