"""How much `import keras_internimage` adds to `import keras`: fresh processes, interleaved.

Usage: KERAS_BACKEND=jax python benchmarks/import_time.py [--repeats 7]
"""

import argparse
import os
import statistics
import subprocess
import sys

CODE = """
import time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import {module}
print(middle - start, time.perf_counter() - middle)
"""


def measure(module):
    """Seconds for `import keras`, and for `module` after it, in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)],
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [float(word) for word in result.stdout.split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    modules = ["keras", "keras_internimage"]
    for module in modules:
        measure(module)  # fills the disk cache and writes bytecode
    times = {module: [] for module in modules}
    for _ in range(repeats):
        for module in modules:
            times[module].append(measure(module))
    import keras

    together = [row for module in modules for row in times[module]]
    base = statistics.median(row[0] for row in together)
    added = [row[1] for row in times["keras_internimage"]]
    print(f"backend            {keras.config.backend()}")
    print(f"import keras       {base:.3f} s (median of {len(together)})")
    print(
        f"keras_internimage  +{statistics.median(added):.3f} s "
        f"(median of {repeats}, {min(added):.3f} to {max(added):.3f})"
    )


if __name__ == "__main__":
    main()
