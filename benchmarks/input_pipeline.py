"""What reading and augmenting images costs a training step of InternImage-T, on CPU.

    python benchmarks/input_pipeline.py [--backends torch tensorflow jax] [--recipe finetune]
        [--batch 8] [--steps 4] [--rounds 3] [--threads 2]

Two data sets take turns in one process for each backend: `ImageFiles.for_training` reads JPEG files
of 640 x 427 pixels (scikit-learn's two photographs, compressed anew), crops, augments by the recipe
and normalises, in threads beside the training; the other gives the same arrays again and again.
Keras' `fit`, `training.optimizer`, 224 pixels, random weights. The share is what the first takes
longer, of its own time: median over the rounds, each of so many steps.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import interleaved
import numpy as np
from interleaved import started

SIZE, CLASSES = 224, 2


class Side:
    def __init__(self, side):
        sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
        import keras_internimage  # noqa: F401

        self.side = side

    def prepare(self, folder):
        import keras

        from keras_internimage import InternImageT, training
        from keras_internimage.data import ImageFiles, scan

        batch, steps = self.side["batch"], self.side["steps"]
        recipe = training.recipe(self.side["recipe"], "T")
        images = scan(folder, validation_split=0.02)
        files = (images.train * (batch * steps))[: batch * steps]
        self.files = ImageFiles.for_training(files, CLASSES, SIZE, batch, recipe)
        x, y = self.files[0]
        self.arrays = np.concatenate([x] * steps), np.concatenate([y] * steps)
        model = InternImageT(
            weights=None, classes=CLASSES, drop_path_rate=recipe.drop_path_rate
        )  # fmt: skip
        optimizer = training.optimizer(model, recipe, steps=1000, batch_size=batch)
        model.compile(optimizer, training.loss(recipe))
        self.model = model
        keras.utils.set_random_seed(0)
        for read in (False, True):  # compiles, and begins to read ahead
            self.turn(read)

    def turn(self, read):
        """Seconds of a step."""
        start = time.perf_counter()
        if read:
            self.model.fit(self.files, shuffle=False, verbose=0)
        else:
            self.model.fit(*self.arrays, batch_size=self.side["batch"], verbose=0)
        return (time.perf_counter() - start) / self.side["steps"]


def write_photographs(folder, count):
    from PIL import Image
    from sklearn import datasets

    for name, pixels in zip("ab", datasets.load_sample_images().images, strict=True):
        (folder / name).mkdir()
        for number in range(count):
            shifted = np.roll(pixels, 17 * number, axis=1)
            Image.fromarray(shifted).save(folder / name / f"{number}.jpg", quality=90)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=3, threads=2)
    parser.add_argument("--recipe", default="finetune")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    options = parser.parse_args()
    interleaved.print_circumstances()
    interleaved.print_head(
        f"Recipe {options.recipe}, batch {options.batch}, {options.threads} thread(s):",
        *("backend", "s a step, arrays", "s a step, files", "share of reading"),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(pathlib.Path(folder), options.batch * options.steps // 2 + 2)
        for backend in options.backends:
            side = {
                "backend": backend,
                "recipe": options.recipe,
                "batch": options.batch,
                "steps": options.steps,
            }
            with started(__file__, {"": side}, options.threads, options.verbose) as workers:
                workers[""].ask("prepare", folder=folder)
                seconds = np.array(
                    [
                        [workers[""].ask("turn", read=read) for read in (False, True)]
                        for _ in range(options.rounds)
                    ]
                )
            arrays, files = np.median(seconds, axis=0)
            share = float(np.median(1 - seconds[:, 0] / seconds[:, 1]))
            interleaved.print_row(backend, f"{arrays:.2f}", f"{files:.2f}", f"{share:.1%}")


if __name__ == "__main__":
    main()
