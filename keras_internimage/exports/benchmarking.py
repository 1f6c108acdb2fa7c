"""Latency and size of an exported file."""

import os
import time

import numpy as np

from keras_internimage.exports import exporting, formats


def benchmark(
    path: str | os.PathLike,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    batch_size: int = 1,
    threads: int | None = None,
    rounds: int = 20,
) -> dict[str, float]:
    """Runs an exported file in its own runtime, prints how long that takes, and returns it.

    Args:
        path: what `export` wrote.
        input_shape: `(height, width, channels)` of the images, for what the file leaves open.
        batch_size: images at a time, likewise.
        threads: None for the runtime's own choice. TensorFlow (SavedModel) and PyTorch (`.pt2`)
            take it for the whole process, TensorFlow only before its first operation.
        rounds: number of timed runs, after two that are not.

    Returns:
        dict of `"milliseconds"`, the median of a run, and `"megabytes"`.
    """
    run = formats.runner(path, threads=threads)
    shape = [
        known or size for known, size in zip(run.shape, (batch_size, *input_shape), strict=True)
    ]
    images = np.random.default_rng(0).uniform(0, 255, shape).astype(run.dtype)
    durations = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        run(images)
        durations.append(time.perf_counter() - start)
    found = {
        "milliseconds": 1e3 * float(np.median(durations[2:])),
        "megabytes": exporting.size_of(path) / 1e6,
    }
    print(
        f"{path}: {found['milliseconds']:.1f} ms for {shape[0]} of {shape[1]}x{shape[2]} pixels, "
        f"{found['megabytes']:.1f} MB"
    )
    return found
