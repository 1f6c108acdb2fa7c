"""How long a model takes to be built on JAX, and what memory it holds then.

    python benchmarks/build_time.py [--model MaskRCNNT] [--rounds 3]

Initial values made by NumPy, as this package does, next to Keras' own initializers, which JAX
compiles for each shape: fresh processes, one of each kind in every round. Time is that of
`MODEL(weights=None)`; memory is what is resident then, over the imports.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys

CODE = """
import sys, time
sys.path[:0] = {paths!r}
import interleaved, keras_internimage
from keras_internimage.layers import initial_values
if {kind!r} == "Keras":
    initial_values.by_numpy = lambda *_: None
before, start = interleaved.resident(), time.perf_counter()
model = keras_internimage.{model}(weights=None)
print(time.perf_counter() - start, interleaved.resident() - before)
"""
HERE = pathlib.Path(__file__).resolve().parent
KINDS = ("Keras", "NumPy")


def measure(model, kind):
    """Seconds and megabytes, in a fresh process."""
    code = CODE.format(paths=[str(HERE), str(HERE.parent)], model=model, kind=kind)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [float(word) for word in result.stdout.split()[-2:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="MaskRCNNT", help="function of keras_internimage")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            found[kind].append(measure(options.model, kind))
    middle = {
        kind: [statistics.median(x) for x in zip(*found[kind], strict=True)] for kind in KINDS
    }
    print("| initial values by | seconds | of Keras' | MB | of Keras' |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, (seconds, megabytes) in middle.items():
        shares = (seconds / middle["Keras"][0], megabytes / middle["Keras"][1])
        print(f"| {kind} | {seconds:.1f} | {shares[0]:.2f} | {megabytes:.0f} | {shares[1]:.2f} |")


if __name__ == "__main__":
    main()
