"""What of DCNv3 works on this machine's GPU, and how fast it is.

    python -m benchmarks.gpu [--output DIR] [--seconds 600] [--backends torch jax] [--dry-run]

It needs the checkout, Keras, and one framework or more that computes on the GPU; with `nvcc` it
builds the CUDA kernels first. Stages run one after the other, each in processes of its own and with
its own share of the time:

- correctness: every implementation against the oracle in float64, with gradients, in float32,
  float16 and bfloat16; offsets that are not finite; deterministic modes; views, streams, CUDA
  graphs, `torch.compile`, `jax.jit`, `tf.function`; RoIAlign, likewise with gradients.
- operator: times next to the official kernels' algorithm, `grid_sample` and a copy of the bytes.
- model: InternImage-T, images a second and memory, next to its official form and ConvNeXt-Tiny.

Results go to a new folder below `--output`: a table (Markdown), all rows (JSON) and a log. With
`--dry-run`, every stage runs on the processor with tiny sizes: a rehearsal, and marked as one.
The exit status is 0 if nothing failed, 1 if something did, 2 if nothing could run.
"""

import argparse
import signal
import sys
import time

from benchmarks.gpu import BACKENDS, ROOT, goals, machine, results, stages

SECONDS = 600
MOST_TROUBLES = 40  # that are printed once more at the end
CLOSING = 10  # seconds of them for the end


def main(arguments=None):
    options = _options(arguments)
    start = time.monotonic()
    missing = machine.missing()
    if missing:
        print(f"These must be installed first: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    found = machine.describe()
    gpus = ", ".join(gpu["name"] for gpu in found["gpus"])
    print(results.BANNER if options.dry_run else f"GPUs: {gpus or 'none that nvidia-smi sees'}")
    found["frameworks"] = machine.probe(options.backends, options.dry_run)
    for backend, answer in found["frameworks"].items():
        print(f"{backend:12}{answer.get('device') or 'left out: ' + answer['reason']}")
    backends = [b for b, answer in found["frameworks"].items() if "reason" not in answer]
    run = _Run(options, found, backends)
    for backend, answer in found["frameworks"].items():
        if "reason" in answer:
            run.add(
                {"stage": "frameworks", "backend": backend, "outcome": "not run",
                 "note": answer["reason"]}
            )  # fmt: skip
    run.save()
    try:
        if backends:
            run.add(machine.build(backends, options.dry_run))
            run.stages(options.seconds - CLOSING - (time.monotonic() - start))
    finally:
        run.save()
        run.close(time.monotonic() - start)
    if not backends:
        print("No framework here computes on a GPU.", file=sys.stderr)
        return 2
    return 1 if run.troubles() else 0


def _options(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--output", default=str(ROOT / "gpu-results"), help="default: gpu-results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, help="default: all; in a rehearsal, the first"
    )
    parser.add_argument("--dry-run", action="store_true", help="a rehearsal on the processor")
    options = parser.parse_args(arguments)
    if options.backends is None:
        options.backends = list(BACKENDS)
        if options.dry_run:
            installed = [b for b in BACKENDS if machine.installed(b)]
            options.backends = installed[:1] or options.backends
    return options


class _Run:
    """The rows of a run, on the screen and on the disk."""

    def __init__(self, options, found, backends):
        self._machine, self._backends = found, backends
        self._rehearsal = options.dry_run
        device = ", ".join(gpu["name"] for gpu in found["gpus"]) or "no-gpu"
        self.folder = results.new_folder(
            options.output, "processor" if options.dry_run else device, options.dry_run
        )
        self.rows = []

    def add(self, row):
        self.rows.append(row)
        self.print(row)

    def print(self, row):
        note = f": {' '.join(str(row['note']).split())[:160]}" if row.get("note") else ""
        words = [row["stage"], row.get("backend"), row.get("implementation") or row.get("side")]
        words += [row.get("check"), row["outcome"] + note]
        if "milliseconds" in row and not self._rehearsal:
            words.append(f"{row['milliseconds']:.3f} ms")
        print("  ".join(str(w) for w in words if w), flush=True)

    def stages(self, seconds):
        runner = stages.Runner(self.folder / "log.txt", self.add, self._rehearsal)
        for stage, share in stages.limits(stages.plan(self._backends), seconds):
            runner.run(stage, share)
            self.save()

    def save(self):
        results.write(self.folder, self._machine, self.rows, self._backends, self._rehearsal)

    def troubles(self):
        return [r for r in self.rows if r["outcome"] in (*results.TROUBLE, "broken off")]

    def close(self, seconds):
        outcomes = [r["outcome"] for r in self.rows]
        print(f"\n{seconds:.0f} s in all. " + ", ".join(
            f"{outcomes.count(word)} {word}"
            for word in ("passed", "measured", *results.TROUBLE, "not run") if word in outcomes
        ))  # fmt: skip
        for row in self.troubles()[:MOST_TROUBLES]:
            self.print(row)
        if self._rehearsal:
            print(results.BANNER)
        else:
            for goal in goals.judge(self.rows, self._backends):
                print(f"{goal['outcome']:13}{goal['backend']:12}{goal['goal']}: {goal['note']}")
            for backend in self._backends:
                order = goals.order(self.rows, backend)
                if order:
                    names = ", ".join(f"{name} ({slower:.2f})" for name, slower in order)
                    print(f"order suggested on {backend}: {names}")
        print(f"Results: {self.folder}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
