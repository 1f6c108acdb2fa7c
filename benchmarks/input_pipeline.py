"""What reading and augmenting images costs a training step of InternImage-T, on CPU.

    python benchmarks/input_pipeline.py [--backends torch tensorflow jax] [--recipe finetune]
        [--batch 8] [--steps 4] [--rounds 3] [--threads 2] [--reading-only]

Two data sets take turns in one process for each backend: `ImageFiles.for_training` reads JPEG files
of 640 x 427 pixels (scikit-learn's two photographs, compressed anew), crops, augments by the recipe
and normalises, in threads beside the training; the other gives the same arrays again and again.
Keras' `fit`, `training.optimizer`, 224 pixels, random weights. The share is what the first takes
longer, of its own time: median over the rounds, each of so many steps. Reading alone is an epoch
of as many batches without a model; `--reading-only` measures nothing else.
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

        def dataset(**options):
            return ImageFiles.for_training(files, CLASSES, SIZE, batch, recipe, **options)

        self.dataset = dataset
        self.read()  # the files are in the system's cache from now on
        if self.side["reading_only"]:
            return
        self.files = dataset()
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

    def read(self):
        """Milliseconds of an image, without a model."""
        files = self.dataset(threads=self.side["threads"])
        start = time.perf_counter()
        for index in range(len(files)):
            files[index]
        taken = time.perf_counter() - start
        files.close()
        return 1e3 * taken / (len(files) * self.side["batch"])

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
    parser.add_argument("--reading-only", action="store_true", help="build no model")
    options = parser.parse_args()
    interleaved.print_circumstances()
    interleaved.print_head(
        f"Recipe {options.recipe}, batch {options.batch}, {options.threads} thread(s):",
        *("backend", "ms an image, reading alone"),
        *("s a step, arrays", "s a step, files", "share of reading"),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(pathlib.Path(folder), options.batch * options.steps // 2 + 2)
        for backend in options.backends:
            side = {
                "backend": backend,
                "recipe": options.recipe,
                "batch": options.batch,
                "steps": options.steps,
                "threads": options.threads,
                "reading_only": options.reading_only,
            }
            with started(__file__, {"": side}, options.threads, options.verbose) as workers:
                workers[""].ask("prepare", folder=folder)
                alone, seconds = [], []
                for _ in range(options.rounds):
                    alone.append(workers[""].ask("read"))
                    if not options.reading_only:
                        seconds.append([workers[""].ask("turn", read=r) for r in (False, True)])
            row = [backend, f"{np.median(alone):.1f}", "", "", ""]
            if seconds:
                arrays, files = np.median(seconds, axis=0)
                share = np.median([1 - without / with_ for without, with_ in seconds])
                row[2:] = f"{arrays:.2f}", f"{files:.2f}", f"{share:.1%}"
            interleaved.print_row(*row)


if __name__ == "__main__":
    main()
