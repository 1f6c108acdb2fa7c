"""The process of one stage: goes through its items, and writes what they find line by line.

    python -m benchmarks.gpu.worker MODULE --backend torch --rows FILE --seconds 60 [--first N]
        [--rehearsal] [--without SIDE ...]

`stages.Runner` starts it.
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

from benchmarks.gpu import BACKENDS, ROOT
from benchmarks.gpu.stages import LOST_DEVICE


@dataclasses.dataclass(frozen=True)
class Item:
    """What a stage does at once.

    Attributes:
        title: for people.
        run: a function without arguments, which writes rows; an exception is a result, too.
        common: fields of the row that is written where it fails or is left out.
    """

    title: str
    run: Callable[[], None]
    common: dict = dataclasses.field(default_factory=dict)

    def row(self, **fields):
        """A row on the item as a whole."""
        return {"check": self.title, **self.common, **fields}


class Context:
    """What a stage's items know of their surroundings.

    Attributes:
        backend: Keras' backend.
        rehearsal: whether all is to be tiny, and on the CPU.
        device: "cuda", or "cpu" in a rehearsal.
        without: sides that ended an earlier process of this stage, and are left out.
    """

    def __init__(self, backend, seconds, path, rehearsal, without=()):
        self.backend, self.rehearsal, self.without = backend, rehearsal, set(without)
        self.device = "cpu" if rehearsal else "cuda"
        self._end = time.monotonic() + seconds
        self._file = open(path, "ab")  # noqa: SIM115 (it is open until the process ends)

    def row(self, **fields):
        """Writes a row of the results."""
        self._file.write(json.dumps(fields).encode() + b"\n")
        self._file.flush()

    def trying(self, side):
        """Notes that a side runs from now on (None: none), in case that the process ends."""
        self.row(trying=side)

    def left(self):
        """Seconds until the stage should end."""
        return self._end - time.monotonic()


def go_through(context, items, first, usable):
    """Runs the items from number `first` on; returns the process' exit status.

    Args:
        items: a list of `Item`.
        usable: a function that says whether the device still computes; asked after exceptions.
    """
    longest, left_out = 0.0, 0
    for number, item in enumerate(items):
        if number < first:
            continue
        if context.left() < longest:
            left_out += 1
            context.row(**item.row(outcome="not run", note="no time left"))
            continue
        context.row(begin=number, **item.row())
        start = time.monotonic()
        try:
            item.run()
        except Exception as error:
            traceback.print_exc()
            context.row(**item.row(outcome="failed", note=summary(error)))
            if not usable():
                return LOST_DEVICE
        longest = max(longest, time.monotonic() - start)
    context.row(complete=left_out)
    return 0


def summary(error):
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(line.strip() for line in lines[:4])}"[:500]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("module")
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=[], metavar="SIDE")
    parser.add_argument("--rehearsal", action="store_true")
    options = parser.parse_args()
    # The oracle, what takes gradients, and the official model.
    sys.path += [str(ROOT / "tests"), str(ROOT / "benchmarks")]
    os.environ["KERAS_BACKEND"] = options.backend
    if options.rehearsal:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # half of a rehearsal's time
    context = Context(
        options.backend, options.seconds, options.rows, options.rehearsal, options.without
    )
    module = importlib.import_module(options.module)

    def usable():
        from benchmarks.gpu import frameworks

        return frameworks.of(context).usable()

    status = go_through(context, module.items(context), options.first, usable)
    sys.stdout.flush()
    # A framework's shutdown has nothing to say any more, and may hang.
    os._exit(status)


if __name__ == "__main__":
    main()
