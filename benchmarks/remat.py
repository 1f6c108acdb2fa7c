"""Peak memory and time of a training step with `keras.RematScope` and without, on CPU.

    python benchmarks/remat.py [--model InternImageB] [--batch 4] [--backends torch tensorflow jax]
        [--threads N]

Keras' `train_on_batch` with SGD on random weights and images of 224 pixels, float32. Memory is the
peak of the resident set in the second step, over what was resident after the imports; a fresh
process for each (Linux only). No stochastic depth, so that the losses have to agree.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import time

import interleaved
import numpy as np
from interleaved import started


class Side:
    def __init__(self, side):
        sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
        import keras_internimage

        self.side = side
        self.build = getattr(keras_internimage, side["model"])
        self.imported = interleaved.resident()

    def step(self):
        """Megabytes and seconds of the second step, and its loss."""
        import keras

        scope = keras.RematScope(mode="full") if self.side["remat"] else contextlib.nullcontext()
        keras.utils.set_random_seed(0)
        with scope:
            model = self.build(weights=None, classifier_activation=None, drop_path_rate=0.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(self.side["batch"], 224, 224, 3)).astype("float32")
        y = np.zeros(len(x), "int32")
        model.train_on_batch(x, y)
        interleaved.resident()  # gives back what the first step left unused
        interleaved.reset_peak()
        start = time.perf_counter()
        loss = float(model.train_on_batch(x, y))
        return interleaved.peak() - self.imported, time.perf_counter() - start, loss


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="InternImageB")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backends", nargs="+", default=["torch", "tensorflow", "jax"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    options = parser.parse_args()
    interleaved.print_circumstances()
    interleaved.print_head(
        f"{options.model}, batch {options.batch}:",
        *("side", "MB", "s", "loss", "MB, and s, to those without"),
    )
    for backend in options.backends:
        plain = None
        for remat in (False, True):
            side = {
                "backend": backend,
                "model": options.model,
                "batch": options.batch,
                "remat": remat,
            }
            with started(__file__, {"": side}, options.threads, options.verbose) as workers:
                megabytes, seconds, loss = workers[""].ask("step")
            plain = plain or (megabytes, seconds)
            interleaved.print_row(
                f"{backend}, RematScope" if remat else backend,
                f"{megabytes:.0f}",
                f"{seconds:.1f}",
                f"{loss:.3f}",
                f"{megabytes / plain[0]:.2f}, {seconds / plain[1]:.2f}" if remat else "",
            )


if __name__ == "__main__":
    main()
