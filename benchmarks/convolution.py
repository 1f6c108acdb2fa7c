"""Convolutions with kernels of 3 x 3 by the native kernels next to each backend's own, on CPU.

    python benchmarks/convolution.py [--backends torch tensorflow jax] [--threads N] [--rounds N]

Maps as in the heads of UperNet-T at 512 pixels and of Mask R-CNN T at 800 x 1216, and the smallest
that the kernels take; float32, forward, with bias and ReLU. Of JAX and TensorFlow compiled
functions, of PyTorch what is fastest there: a view in its own order of axes, without a copy. Both
must give the same numbers up to 2e-5 of the largest; nothing is timed otherwise. Medians over the
rounds. Rounding errors are the root mean square of the differences from float64 sums at 100 pixels.
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
# Images, height, width, channels, filters.
CASES = (
    (1, 128, 128, 512, 512),
    (1, 64, 64, 512, 512),
    (1, 200, 304, 256, 256),
    (1, 50, 76, 256, 256),
    (100, 14, 14, 256, 256),
    (1, 28, 28, 64, 64),
)
PIXELS = 100
TOLERANCE = 2e-5
TURN = 0.3  # seconds


def arrays(images, height, width, channels, filters):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, height, width, channels))
    kernel = rng.normal(size=(3, 3, channels, filters)) / (3 * channels**0.5)
    return [a.astype("float32") for a in (x, kernel, rng.normal(size=filters))]


class Side(interleaved.Contender):
    """`model` is "plain" or "native"."""

    def __init__(self, side):
        self.backend, self.kind, self.folder = side["backend"], side["model"], side["folder"]
        sys.path.insert(0, str(HERE.parents[1]))
        import keras_internimage  # noqa: F401

    def prepare(self, case, label):
        """Path of the result."""
        from keras import ops

        from keras_internimage.ops.convolution import convolution

        def native(*tensors):
            outputs = convolution(*tensors, relu=True)
            if outputs is None:
                raise RuntimeError(f"The kernels do not compute this case. Received: {case}")
            return outputs

        function = native if self.kind == "native" else self._plain()
        tensors = [ops.convert_to_tensor(a) for a in arrays(*case)]
        if self.backend == "tensorflow":
            import tensorflow as tf

            call = tf.function(function, autograph=False)
            run = lambda: call(*tensors)  # noqa: E731
        elif self.backend == "jax":
            import jax

            call = jax.jit(function)
            run = lambda: jax.block_until_ready(call(*tensors))  # noqa: E731
        else:
            import torch

            run = torch.inference_mode()(lambda: function(*tensors))
        path = f"{self.folder}/{label}.npy"
        np.save(path, np.asarray(run()))
        self.use(run)
        return path

    def _plain(self):
        if self.backend == "torch":
            import torch.nn.functional as F

            def plain(x, kernel, bias):
                x, kernel = x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
                return F.conv2d(x, kernel, bias, padding=1).relu_().permute(0, 2, 3, 1)

            return plain
        from keras import ops

        def plain(x, kernel, bias):
            y = ops.conv(x, kernel, padding="same", data_format="channels_last")
            return ops.relu(y + bias)

        return plain


def rounding_errors(case, results):
    """Dict of label to the root mean square of the rounding errors at some pixels."""
    x, kernel, bias = (a.astype("float64") for a in arrays(*case))
    rng = np.random.default_rng(1)
    images, height, width, _ = x.shape
    n, i, j = (rng.integers(0, size, PIXELS) for size in (images, height, width))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [padded[n, i + k, j + m] @ kernel[k, m] for k, m in np.ndindex(3, 3)]
    exact = np.maximum(sum(rows) + bias, 0)
    return {
        label: float(np.sqrt(np.mean((y[n, i, j] - exact) ** 2))) for label, y in results.items()
    }


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=7, threads=2)
    options = parser.parse_args()
    interleaved.print_circumstances()
    interleaved.print_head(
        f"{options.threads} thread(s):",
        *("images, height, width, channels, filters", "backend", "own, ms", "kernels, ms"),
        *("times as fast", "rounding errors over own"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for backend in options.backends:
            sides = {
                kind: {"backend": backend, "model": kind, "folder": folder}
                for kind in ("plain", "native")
            }
            with started(HERE, sides, options.threads, options.verbose) as workers:
                for case in CASES:
                    results = {
                        kind: np.load(worker.ask("prepare", case=case, label=kind))
                        for kind, worker in workers.items()
                    }
                    interleaved.differences(results, "plain", TOLERANCE, "Feature maps")
                    errors = rounding_errors(case, results)
                    durations = interleaved.measure(workers, options.rounds, TURN)
                    interleaved.print_row(
                        ", ".join(map(str, case)),
                        backend,
                        *(f"{interleaved.milliseconds(d):.1f}" for d in durations.values()),
                        f"{interleaved.speed_up(durations['plain'], durations['native']):.1f}",
                        f"{errors['native'] / errors['plain']:.1f}",
                    )


if __name__ == "__main__":
    main()
