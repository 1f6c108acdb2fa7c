"""Time and memory of building the largest variants and of loading their weights, on CPU.

    python benchmarks/large.py [--models InternImageH InternImageG] [--backends torch ...]
        [--folder DIR]

- symbolically: the graph and its variables without values, as converting a checkpoint builds it.
- loaded: `Model(weights=PATH, dtype="bfloat16")` of a float32 file of official tensors, random
  numbers, written to DIR first (4 bytes for each parameter: 4.4 GB of H, 12.3 GB of G) and deleted.

Memory is the peak of the resident set, over what was resident after the imports; a fresh process
for each figure (Linux only).
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import interleaved
import numpy as np
from interleaved import started


class Side:
    def __init__(self, side):
        sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
        import keras_internimage

        self.build = getattr(keras_internimage, side["model"])
        self.imported = interleaved.resident()

    def _measured(self, build):
        interleaved.reset_peak()
        start = time.perf_counter()
        model = build()
        seconds = time.perf_counter() - start
        return model, {
            "seconds": seconds,
            "megabytes": interleaved.peak() - self.imported,
            "whole": interleaved.peak() / 1024,
            "parameters": model.count_params(),
        }

    def symbolically(self):
        import keras

        with keras.StatelessScope(initialize_variables=False):
            return self._measured(lambda: self.build(weights=None))[1]

    def write(self, path):
        """A file of the model's tensors under their official names, float32."""
        import keras

        from keras_internimage.checkpoints import safetensors_files
        from keras_internimage.checkpoints.names.classifier import TABLE

        with keras.StatelessScope(initialize_variables=False):
            model = self.build(weights=None)
        rng = np.random.default_rng(0)
        tensors = []
        for variable in model.weights:
            entry = TABLE.entry(variable.path)
            shapes = entry.layout.official_shapes(tuple(variable.shape))
            for name, shape in zip(entry.official, shapes, strict=True):
                tensors.append((name, shape, "float32", lambda shape=shape: _numbers(rng, shape)))
        safetensors_files.write(path, tensors)

    def loaded(self, path):
        import keras

        model, found = self._measured(lambda: self.build(weights=path, dtype="bfloat16"))
        kinds = {keras.backend.standardize_dtype(v.dtype) for v in model.trainable_variables}
        if kinds != {"bfloat16"}:
            raise RuntimeError(f"All variables must be bfloat16. Received: {kinds}")
        return found


def _numbers(rng, shape):
    return rng.standard_normal(shape, "float32") * np.float32(0.02)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["InternImageH", "InternImageG"])
    parser.add_argument("--backends", nargs="+", default=list(interleaved.BACKENDS))
    parser.add_argument("--folder", help="for the weights; default: the system's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    options = parser.parse_args()
    interleaved.print_circumstances()
    for name in options.models:
        sides = [{"backend": backend, "model": name} for backend in options.backends]

        def ask(side, action, **arguments):
            with started(__file__, {"": side}, options.threads, options.verbose) as workers:
                return workers[""].ask(action, **arguments)

        interleaved.print_head(
            f"{name}:", "", "s", "MiB", "times the variables' size", "GiB with the imports"
        )
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = os.path.join(folder, "weights.safetensors")
            ask(sides[0], "write", path=path)
            for side in sides:
                for action, arguments, size in (
                    ("symbolically", {}, 4),
                    ("loaded", {"path": path}, 2),
                ):
                    found = ask(side, action, **arguments)
                    megabytes = found["megabytes"]
                    interleaved.print_row(
                        f"{side['backend']}, {action}",
                        f"{found['seconds']:.0f}",
                        f"{megabytes:.0f}",
                        f"{megabytes * 2**20 / (size * found['parameters']):.2f}",
                        f"{found['whole']:.1f}",
                    )


if __name__ == "__main__":
    main()
