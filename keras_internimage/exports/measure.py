"""Latency and size of an exported file."""

import pathlib
import time

import numpy as np

from keras_internimage.exports import door, formats


def benchmark(path, input_shape=(224, 224, 3), batch_size=1, threads=None, rounds=20):
    """Runs an exported file in its own runtime, prints how long that takes, and returns it.

    Args:
        path: what `export` wrote.
        input_shape: `(height, width, channels)` of the images.
        batch_size: images at a time.
        threads: None for the runtime's own choice.
        rounds: number of timed runs, after two that are not.

    Returns:
        dict of `"milliseconds"`, the median of a run, and `"megabytes"`.
    """
    path = pathlib.Path(path)
    target = formats.of(path)
    options = {} if target.name in ("saved_model", "torch") else {"threads": threads}
    call = formats.writer(target).load(path, target.name, **options)
    images = np.random.default_rng(0).normal(size=(batch_size, *input_shape)).astype("float32")
    durations = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        call(images)
        durations.append(time.perf_counter() - start)
    found = {
        "milliseconds": 1e3 * float(np.median(durations[2:])),
        "megabytes": door.size_of(path) / 1e6,
    }
    print(f"{path}: {found['milliseconds']:.1f} ms, {found['megabytes']:.1f} MB")
    return found
