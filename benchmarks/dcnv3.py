"""Time and memory of `keras_internimage.ops.dcnv3` next to the official formulation.

    python benchmarks/dcnv3.py [--implementation native portable] [--batch 1 8] [--threads N]
        [--parts forward backward training scaling memory]

The official formulation is `official.operator` after a softmax over the points, in PyTorch. Ours
gets logits as well; as in the layer, offsets and masks are one tensor (`--separate`: two).
PyTorch runs eagerly, TensorFlow in a `tf.function`, JAX in a `jax.jit`. As in a model, there are
several calls in one of these, each on the output of the one before with offsets and masks of its
own: figures are those of one call in four. Before anything is timed, outputs and gradients are
compared.

Figures are the official formulation's time over ours, medians over the rounds: 2 is twice as fast.

- forward: the output, without recording for gradients
- backward: the gradients of all inputs alone, after a forward pass that is not timed. A
  `tf.function` cannot keep a forward pass' results: there, it is a function that returns the
  gradients only, which leaves out of the forward pass what they do not need.
- training: output and gradients
- scaling: forward and backward with one thread over those with all processors, or `--threads`
- memory: peak of one call, the rise of the resident set's high-water mark in a fresh process for
  each figure (Linux only). It leaves out the arguments, and compilation.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

import interleaved
import numpy as np
from interleaved import started

SHAPES = [(56, 64, 4), (28, 128, 8), (14, 256, 16), (7, 512, 32)]  # InternImage-T at 224 pixels
TIMED = ("forward", "backward", "training")
PARTS = (*TIMED, "scaling", "memory")
POINTS = 9
TURN = 0.05  # seconds
CALLS = 4  # of the operator, in what is timed at once


class Operator(interleaved.Contender):
    """One side: `backend`, and `implementation` and `separate` if it is ours."""

    def __init__(self, side):
        import keras  # noqa: F401  (chooses the backend before anything else is imported)

        self.backend = side["backend"]
        self.implementation = side.get("implementation")
        self.joined = self.implementation is not None and not side["separate"]

    def prepare(self, part, shape, file, calls):
        call = self._call(part, shape, calls)
        results, joined = [], 3 * shape[3] * POINTS
        for result in map(np.asarray, call()):
            parts = [joined * 2 // 3] if result.shape[-1] == joined else []
            results += np.split(result, parts, axis=-1)
        np.savez(file, *results)
        self.use(call)

    def memory(self, part, shape):
        call = self._call(part, shape, 1, traced_small=True)
        if self.backend == "torch":
            self._call("training", (1, 2, 16, 1), 1)()
        before = interleaved.resident()
        interleaved.reset_peak()
        call()
        return interleaved.peak() - before

    def _call(self, part, shape, calls, traced_small=False):
        batch, size, channels, groups = shape
        rng = np.random.default_rng(0)
        last = (channels, groups * POINTS * 2, groups * POINTS)
        arrays = []
        for call in range(calls):
            own = [rng.normal(size=(batch, size, size, c)).astype("float32") for c in last]
            if self.joined:
                own[1:] = [np.concatenate(own[1:], axis=-1)]
            arrays += own if call == 0 else own[1:]
        one = self._function(groups)

        def function(features, *points):
            step = len(points) // calls
            for i in range(0, len(points), step):
                features = one(features, *points[i : i + step])
            return features

        make = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}[self.backend]
        return make(function, part, arrays, traced_small)

    def _function(self, groups):
        if self.implementation is None:
            import official

            return lambda inputs, offset, mask: official.operator(
                inputs, offset, official.normalised(mask, groups), groups
            )
        from keras_internimage.ops import dcnv3

        return lambda *tensors: dcnv3(
            *tensors,
            groups=groups,
            mask_activation="softmax",
            implementation=self.implementation,
        )


def _torch(function, part, arrays, traced_small):
    import torch

    tensors = [torch.from_numpy(a) for a in arrays]
    leaves = [t.detach().requires_grad_() for t in tensors]

    def forward():
        with torch.no_grad():
            return [function(*tensors)]

    def training():
        output = function(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    if part != "backward":
        return forward if part == "forward" else training
    output = function(*leaves)
    ones = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, leaves, ones, retain_graph=True)


def _tensorflow(function, part, arrays, traced_small):
    import tensorflow as tf

    tensors = [tf.constant(a) for a in arrays]

    def forward(*tensors):
        return [function(*tensors)]

    def training(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = function(*tensors)
        return [output, *tape.gradient(output, tensors)]

    def backward(*tensors):
        return training(*tensors)[1:]

    run = {"forward": forward, "backward": backward, "training": training}[part]
    if traced_small:
        # Traced and initialised with one pixel, not with the call that is measured.
        specs = [tf.TensorSpec((None, None, None, a.shape[3])) for a in arrays]
        run = tf.function(run, autograph=False, input_signature=specs)
        run(*(t[:, :1, :1] for t in tensors))
    else:
        run = tf.function(run, autograph=False)
    return lambda: run(*tensors)


def _jax(function, part, arrays, traced_small):
    import jax

    tensors = [jax.numpy.asarray(a) for a in arrays]

    def forward(*tensors):
        return [function(*tensors)]

    def training(*tensors):
        output, pull = jax.vjp(function, *tensors)
        return [output, *pull(jax.numpy.ones_like(output))]

    if part == "backward":
        output, pull = jax.jit(lambda *tensors: jax.vjp(function, *tensors))(*tensors)
        tensors = [pull, jax.numpy.ones_like(output)]
    run = {"forward": forward, "backward": lambda pull, g: pull(g), "training": training}[part]
    run = jax.jit(run).lower(*tensors).compile()
    return lambda: jax.block_until_ready(run(*tensors))


def prepare(workers, part, shape, calls):
    """Makes all workers ready; raises if they do not compute the same as the first one."""
    expected = None
    with tempfile.TemporaryDirectory() as folder:
        for label, worker in workers.items():
            file = f"{folder}/results.npz"
            worker.ask("prepare", part=part, shape=shape, file=file, calls=calls)
            with np.load(file) as data:
                results = list(data.values())
            expected = expected or results
            for reference, ours in zip(expected, results, strict=True):
                # Mean, not maximum: near a pixel's edge their rounding decides about the gradient.
                error = np.abs(reference - ours).mean() / np.abs(reference).mean()
                if not error < 1e-3:
                    raise RuntimeError(f"Results must agree. Received: {label}, off by {error:.1e}")


def times(workers, part, shape, rounds, calls=CALLS):
    """Seconds that one call of the operator takes, for each worker and round."""
    prepare(workers, part, shape, calls)
    durations = interleaved.measure(workers, rounds, TURN)
    for worker in workers.values():
        worker.ask("forget")
    return {label: np.asarray(d) / calls for label, d in durations.items()}


def print_times(sides, options):
    interleaved.print_head(
        f"Times faster than the official formulation, {options.threads} thread(s), "
        f"{options.rounds} rounds (milliseconds):",
        *("batch", "shape", "", *sides),
    )
    parts = [part for part in TIMED if part in options.parts]
    with started(__file__, sides, options.threads, options.verbose) as workers:
        for part, shape in _cases(parts, options.batch):
            durations = times(workers, part, shape, options.rounds)
            base = durations["official"]
            figures = [
                f"{interleaved.speed_up(base, d):.1f} ({interleaved.milliseconds(d):.2f})"
                for d in durations.values()
            ]
            interleaved.print_row(*_label(shape), part, *figures)


def print_scaling(sides, options):
    many = options.threads if options.threads > 1 else os.cpu_count()
    interleaved.print_head(
        f"Times faster with {many} threads than with 1, {options.rounds} rounds:",
        *("batch", "shape", "", *sides),
    )
    both = {
        (label, threads): {**side, "threads": threads}
        for label, side in sides.items()
        for threads in (1, many)
    }
    with started(__file__, both, 1, options.verbose) as workers:
        for part, shape in _cases(("forward", "backward"), options.batch):
            durations = times(workers, part, shape, options.rounds, calls=1)
            figures = [interleaved.speed_up(durations[s, 1], durations[s, many]) for s in sides]
            interleaved.print_row(*_label(shape), part, *(f"{x:.2f}" for x in figures))


def print_memory(sides, options):
    interleaved.print_head("Peak memory of a call, MB:", *("batch", "shape", "", *sides))
    for part, shape in _cases(("forward", "training"), options.batch):
        figures = []
        for label, side in sides.items():
            with started(__file__, {label: side}, options.threads, options.verbose) as fresh:
                figures.append(f"{fresh[label].ask('memory', part=part, shape=shape):.0f}")
        interleaved.print_row(*_label(shape), part, *figures)


def _cases(parts, batches):
    return [(part, (n, *shape)) for n in batches for shape in SHAPES for part in parts]


def _label(shape):
    batch, size, channels, _ = shape
    return batch, f"{size}x{size}x{channels}"


def main():
    if sys.argv[1:2] == ["--worker"]:
        sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
        return interleaved.serve(Operator(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=15)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*TIMED, "scaling"])
    parser.add_argument(
        "--implementation", nargs="+", choices=("native", "portable"), default=["native"]
    )
    parser.add_argument("--separate", action="store_true", help="offsets and masks in two tensors")
    options = parser.parse_args()

    ours = {
        f"{backend} {implementation}": {
            "backend": backend,
            "implementation": implementation,
            "separate": options.separate,
        }
        for implementation in options.implementation
        for backend in options.backends
    }
    sides = {"official": {"backend": "torch"}, **ours}
    interleaved.print_circumstances()
    if set(options.parts) & set(TIMED):
        print_times(sides, options)
    if "scaling" in options.parts:
        print_scaling(ours, options)
    if "memory" in options.parts:
        print_memory(sides, options)


if __name__ == "__main__":
    main()
