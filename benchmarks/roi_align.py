"""RoIAlign of this package next to torchvision's operator, on CPU, forward.

    python benchmarks/roi_align.py [--backends torch tensorflow jax] [--threads N] [--rounds N]

One map of 200 x 304 pixels and 256 channels, float32, in each one's own order of axes; boxes of 14
to 28 pixels of the map on a side, as the pyramid's levels are chosen: 1000 of them with 7 x 7 bins,
and 100 with 14 x 14. torchvision must be installed with its compiled operators. All must give its
numbers, up to 1e-4 of the largest; nothing is timed otherwise. Medians over the rounds.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import interleaved
import numpy as np
from interleaved import started

HERE = pathlib.Path(__file__)
CASES = ((1000, 7), (100, 14))
SIZE, CHANNELS, STRIDE = (200, 304), 256, 4
TOLERANCE = 1e-4
TURN = 0.5  # seconds


def arrays(regions):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, *SIZE, CHANNELS)).astype("float32")
    sides = rng.uniform(14, 28, (regions, 2)) * STRIDE
    corner = rng.uniform(0, 1, (regions, 2)) * (np.array(SIZE[::-1]) * STRIDE - sides)
    return x, np.concatenate([corner, corner + sides], 1).astype("float32")


class Side(interleaved.Contender):
    """`model` is "torchvision" or "ours"."""

    def __init__(self, side):
        self.backend, self.kind, self.folder = side["backend"], side["model"], side["folder"]
        if self.kind == "torchvision":
            import torchvision  # noqa: F401
        else:
            sys.path.insert(0, str(HERE.parents[1]))
            import keras_internimage  # noqa: F401

    def prepare(self, regions, bins, label):
        """Path of the result."""
        x, boxes = arrays(regions)
        if self.kind == "torchvision":
            import torch
            from torchvision.ops import roi_align

            x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
            boxes = torch.from_numpy(np.pad(boxes, ((0, 0), (1, 0))))
            run = torch.inference_mode()(lambda: roi_align(x, boxes, bins, 1 / STRIDE, 0, True))
            result = run().permute(0, 2, 3, 1)
        else:
            run = self._ours(x, boxes[None], bins)
            result = np.asarray(run())[0]
        self.use(run)
        path = f"{self.folder}/{label}.npy"
        np.save(path, np.asarray(result))
        return path

    def _ours(self, x, boxes, bins):
        from keras import ops

        from keras_internimage.ops.roi_align import roi_align

        def align(x, boxes):
            return roi_align([x], boxes, [STRIDE], None, bins, implementation="native")

        x, boxes = ops.convert_to_tensor(x), ops.convert_to_tensor(boxes)
        if self.backend == "tensorflow":
            import tensorflow as tf

            call = tf.function(align, autograph=False)
            return lambda: call(x, boxes).numpy()
        if self.backend == "jax":
            import jax

            call = jax.jit(align)
            return lambda: jax.block_until_ready(call(x, boxes))
        import torch

        return torch.inference_mode()(lambda: align(x, boxes))


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=7, threads=2)
    options = parser.parse_args()
    models = {"torchvision": ("torch", "torchvision")}
    models |= {f"native, {backend}": (backend, "ours") for backend in options.backends}
    interleaved.print_circumstances()
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            label: {"backend": backend, "model": model, "folder": folder}
            for label, (backend, model) in models.items()
        }
        with started(HERE, sides, options.threads, options.verbose) as workers:
            for regions, bins in CASES:
                results = {
                    label: np.load(
                        worker.ask("prepare", regions=regions, bins=bins, label=f"y{number}")
                    )
                    for number, (label, worker) in enumerate(workers.items())
                }
                interleaved.differences(results, "torchvision", TOLERANCE, "Features")
                durations = interleaved.measure(workers, options.rounds, TURN)
                interleaved.print_head(
                    f"{regions} boxes, {bins} x {bins} bins, {options.threads} thread(s):",
                    *("side", "ms", "times as fast as torchvision"),
                )
                for label, seconds in durations.items():
                    interleaved.print_row(
                        label,
                        f"{interleaved.milliseconds(seconds):.1f}",
                        f"{interleaved.speed_up(durations['torchvision'], seconds):.1f}",
                    )


if __name__ == "__main__":
    main()
