"""InternImage-T in bfloat16 next to float32 on a processor: time, and the classes that they name.

    python benchmarks/bfloat16.py [--backends torch tensorflow jax] [--threads N] [--batch 8]

- Time: inference of InternImage-T, images of 224 pixels, on each backend with `dtype=None`, which
  is float32, `"mixed_bfloat16"` and `"bfloat16"`; the processes take turns. Prints the time over
  that of float32 on the same backend, the median over the rounds: 0.5 is half the time. What is
  timed is what `benchmarks/model.py` times.
- Classes: a small InternImage learns in float32 which quarter of which of scikit-learn's two sample
  photographs a piece of 64 x 64 pixels was cut from, eight classes. Prints how many of the pieces
  held out get the same class by the same weights in bfloat16.

A processor without instructions for bfloat16 (AVX512-BF16 or AMX) has to widen each number.
"""

import argparse
import json
import sys

import interleaved
import numpy as np
from interleaved import started
from model import Side as ModelSide
from model import images

DTYPES = (None, "mixed_bfloat16", "bfloat16")
TURN = 0.5  # seconds
PIECE, TRAINING_PIECES, HELD_OUT = 64, 512, 512


class Side(ModelSide):
    def __init__(self, side):
        super().__init__({**side, "model": "internimage"})
        self.dtype = side["dtype"]

    def prepare(self, batch):
        from keras_internimage import InternImageT

        self.model = InternImageT(weights=None, classifier_activation=None, dtype=self.dtype)
        self.use_inference(batch)

    def use_inference(self, batch):
        call = self._inference(images(batch)[0], compiled=False)
        call()
        self.use(call)

    def agreement(self, epochs):
        """Accuracy in each data type, and the share of held-out pieces of the same class."""
        import keras

        from keras_internimage import InternImage

        keras.utils.set_random_seed(0)
        x, y = pieces(TRAINING_PIECES, seed=0)
        held_out, truth = pieces(HELD_OUT, seed=1)

        def build(dtype):
            return InternImage(
                16,
                (1, 1, 2, 1),
                (2, 4, 8, 16),
                input_shape=(PIECE, PIECE, 3),
                classes=8,
                dtype=dtype,
            )

        model = build(None)
        model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy")
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
        names = {}
        for dtype in DTYPES:
            again = build(dtype)
            again.set_weights(model.get_weights())
            names[dtype] = again.predict(held_out, verbose=0).argmax(-1)
        return {
            dtype or "float32": [
                float((found == truth).mean()),
                int((found == names[None]).sum()),
                len(truth),
            ]
            for dtype, found in names.items()
        }


def pieces(count, seed):
    """(images, labels): pieces of the quarters of two photographs, in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    photographs = [photograph / 127.5 - 1 for photograph in load_sample_images().images]
    rng = np.random.default_rng(seed)
    labels = rng.integers(8, size=count)
    found = np.empty((count, PIECE, PIECE, 3), "float32")
    for index, label in enumerate(labels):
        photograph = photographs[label // 4]
        height, width = (side // 2 for side in photograph.shape[:2])
        top = label % 4 // 2 * height + rng.integers(height - PIECE)
        left = label % 2 * width + rng.integers(width - PIECE)
        found[index] = photograph[top : top + PIECE, left : left + PIECE]
    return found, labels


def print_times(backend, workers, options):
    for worker in workers.values():
        worker.ask("prepare", batch=options.batch)
    durations = interleaved.measure(workers, options.rounds, TURN)
    base = durations["float32"]
    for label, seconds in durations.items():
        ratio = 1 / interleaved.speed_up(base, seconds)
        interleaved.print_row(
            backend, label, f"{interleaved.milliseconds(seconds):.0f}", f"{ratio:.2f}"
        )


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=9, threads=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8, help="of the model that names classes")
    options = parser.parse_args()
    interleaved.print_circumstances()

    def start(backend):
        sides = {dtype or "float32": {"backend": backend, "dtype": dtype} for dtype in DTYPES}
        return started(__file__, sides, options.threads, options.verbose)

    interleaved.print_head(
        f"Inference, batch {options.batch}, {options.threads} thread(s), {options.rounds} rounds:",
        *("backend", "dtype", "ms", "of float32's time"),
    )
    for backend in options.backends:
        with start(backend) as workers:
            print_times(backend, workers, options)
    interleaved.print_head(
        f"Pieces of photographs, {HELD_OUT} held out:",
        *("backend", "dtype", "accuracy", "same class as float32"),
    )
    for backend in options.backends:
        with start(backend) as workers:
            found = workers["float32"].ask("agreement", epochs=options.epochs)
        for dtype, (accuracy, same, count) in found.items():
            interleaved.print_row(backend, dtype, f"{accuracy:.1%}", f"{same} of {count}")


if __name__ == "__main__":
    main()
