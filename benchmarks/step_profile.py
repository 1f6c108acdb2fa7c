"""Where the time of a training step of InternImage-T goes on a processor, by kind of computation.

    python benchmarks/step_profile.py [--backends torch tensorflow jax] [--threads N] [--batch 8]

Each backend's own profiler watches some steps as `benchmarks/model.py` times them, in a process of
its own. Printed are milliseconds a step and shares; a computation counts without those that run
within it. Several may run at once in TensorFlow, so its sum may be more than the step's time.

- matmul: dense layers, forward and backward, with what the backend computes in the same pass
  (bias; in JAX also what XLA fuses with it).
- DCNv3: the native operator, forward and backward.
- convolution: those of stem and down-sampling; depthwise ones but in JAX, where they are loops.
- GELU and layer norm as far as they are operations of their own: in PyTorch, not in TensorFlow,
  whose norms are made of means and products, nor in JAX, where XLA makes loops of many operations.
- everything else: sums, copies, the optimizer.
"""

import argparse
import collections
import json
import pathlib
import re
import sys
import tempfile
import time

import interleaved
from interleaved import started
from model import Side as ModelSide

# The first kind whose pattern is found in the profiler's name of a computation.
KINDS = {
    "torch": {
        "matmul": r"_linear_pointwise|aten::(mm|addmm|bmm)$",
        "DCNv3": r"keras_internimage::",
        "convolution": r"convolution",
        "GELU": r"gelu",
        "layer norm": r"layer_norm",
    },
    "tensorflow": {
        "matmul": r"MatMul",
        "DCNv3": r"Dcnv3",
        "convolution": r"Conv",
        "GELU": r"Erf|Gelu",
    },
    "jax": {
        "matmul": r"^(ynn_fusion|dot)",
        "DCNv3": r"^ffi_call",
        "convolution": r"^convolution",
        "GELU": r"erf",
    },
}
STEPS = 3


class Side(ModelSide):
    def __init__(self, side):
        super().__init__({**side, "model": "internimage"})

    def profile(self, batch):
        """`(milliseconds a step, {name of a computation: milliseconds a step})`."""
        self._build()
        step = self._training(batch, compiled=False)
        step(), step()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        whole = (time.perf_counter() - start) / STEPS
        names = globals()[f"_profile_{self.backend}"](step)
        return 1e3 * whole, {name: ms / STEPS for name, ms in names.items()}


def _profile_torch(step):
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            step()
    return {event.key: event.self_cpu_time_total / 1e3 for event in found.key_averages()}


def _profile_tensorflow(step):
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(STEPS):
            step()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(pathlib.Path(folder).rglob("*.xplane.pb")).read_bytes())
    found = collections.Counter()
    for plane in space.planes:
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            # A node's events are named "node:Operation"; executors have other names.
            events = [
                (event.offset_ps, event.offset_ps + event.duration_ps, names[event.metadata_id])
                for event in line.events
                if re.search(r"[^:]:_?[A-Z]\w+$", names[event.metadata_id])
            ]
            _add_own_times(events, found, 1e9)
    return found


def _profile_jax(step):
    import jax
    from jax.profiler import ProfileData

    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        for _ in range(STEPS):
            step()
        jax.profiler.stop_trace()
        data = ProfileData.from_file(str(next(pathlib.Path(folder).rglob("*.xplane.pb"))))
    found = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            events = [
                (event.start_ns, event.start_ns + event.duration_ns, event.name)
                for event in line.events
                if "hlo_op" in dict(event.stats)
            ]
            _add_own_times(events, found, 1e6)
    return found


def _add_own_times(events, found, unit):
    """Adds the time of each event `(start, end, name)` but that of the events within it."""
    open_events = []
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_events and open_events[-1][0] <= start:
            open_events.pop()
        if open_events:
            found[open_events[-1][1]] -= (end - start) / unit
        open_events.append((end, name))
        found[name] += (end - start) / unit


def by_kind(backend, names):
    """Milliseconds by kind, and the largest names of "everything else" without their numbers."""
    kinds, rest = collections.Counter(), collections.Counter()
    for name, ms in names.items():
        kind = next((k for k, p in KINDS[backend].items() if re.search(p, name)), None)
        kinds[kind or "everything else"] += ms
        if kind is None:
            rest[re.sub(r"[.\d]+$", "", name.rpartition(":")[2])] += ms
    return kinds, rest


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=1, threads=2)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    interleaved.print_circumstances()
    for backend in options.backends:
        side = {backend: {"backend": backend}}
        with started(__file__, side, options.threads, options.verbose) as workers:
            whole, names = workers[backend].ask("profile", batch=options.batch)
        interleaved.print_head(
            f"Training step, {backend}, batch {options.batch}, {options.threads} thread(s), "
            f"{whole:.0f} ms without the profiler:",
            *("computation", "ms", "share"),
        )
        kinds, rest = by_kind(backend, names)
        total = sum(kinds.values())
        for kind, ms in kinds.most_common():
            interleaved.print_row(kind, f"{ms:.0f}", f"{ms / total:.0%}")
        largest = ", ".join(f"{name} {ms:.0f}" for name, ms in rest.most_common(8))
        print(f"\nOf everything else: {largest}.")


if __name__ == "__main__":
    main()
