"""InternImage-T and FlashInternImage-T next to official PyTorch code and ConvNeXt-Tiny, on CPU.

    python benchmarks/model.py [--backends torch tensorflow jax] [--threads N] [--batch 1 8]
        [--parts inference training memory] [--sides official internimage flash convnext]

Sides: `official.Classifier` (InternImage-T in PyTorch), InternImage-T and FlashInternImage-T of
this package on each backend, and `keras.applications.ConvNeXtTiny` on each backend; random weights,
images of 224 pixels, float32. First, ours get the same weights as the official formulation and
must give the same logits, up to 2e-5 of the largest; FlashInternImage-T, those of the first
backend. Nothing is timed otherwise. Figures are medians over the rounds of other sides' time over
one's own: 2 is twice as fast. The note of FlashInternImage-T is its time over InternImage-T's.

What is timed is what a user runs; images are tensors of the backend already.

- inference: PyTorch `model(x)` in `torch.inference_mode()`, eager, for the official side as well;
  TensorFlow a `tf.function` of the model; JAX a `jax.jit` of `model.stateless_call`.
- training: forward pass, cross entropy, gradients, AdamW, the loss as a number. Keras:
  `model.compile(AdamW, SparseCategoricalCrossentropy(from_logits=True))`, `train_on_batch`, AdamW
  being `training.LayerwiseAdamW`, as in `internimage-train`, and Keras' own for ConvNeXt;
  official: the same with `torch.optim.AdamW`. No stochastic depth anywhere. The losses of ours
  and of the official side must agree over the first two steps. One table for each backend, as
  all processes together would need much memory.
- memory: peak of the resident set during a training step, over what is resident after the imports:
  weights, optimizer and activations. "with the first" includes the first step, which compiles.
  A fresh process for each figure (Linux only).

TensorFlow compiles ConvNeXt with XLA or not, whichever was faster (the note of its row says
which), and ours as Keras does by default: without XLA, which knows no native kernel.
`KERAS_INTERNIMAGE_KERNELS=off` in the environment measures the portable operator.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import interleaved
import numpy as np
from interleaved import started

PARTS = ("inference", "training", "memory")
SIDES = ("official", "internimage", "flash", "convnext")
OURS = {"internimage": "InternImageT", "flash": "FlashInternImageT"}
LABELS = {"internimage": "InternImage-T", "flash": "FlashInternImage-T", "convnext": "ConvNeXt-T"}
SIZE = 224
CLASSES = 1000
TURN = 0.5  # seconds
LOGITS_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-3
LEARNING_RATE, WEIGHT_DECAY, EPSILON = 1e-4, 0.05, 1e-8


def images(batch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, SIZE, SIZE, 3)).astype("float32")
    return x, rng.integers(CLASSES, size=batch)


class Side(interleaved.Contender):
    """`model` is "official", "internimage", "flash" or "convnext"."""

    note = ""

    def __init__(self, side):
        import keras  # noqa: F401  (chooses the backend before anything else is imported)

        self.backend, self.kind = side["backend"], side["model"]
        if self.kind == "official":
            import official  # noqa: F401
        elif self.kind in OURS:
            sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
            import keras_internimage  # noqa: F401
        self.model = None
        self.imported = interleaved.resident()

    def new_weights(self, folder):
        """Writes our weights for all sides, those of InternImage-T in the official layout, too."""
        from keras_internimage.weights_convert.export import export

        self._build()
        rng = np.random.default_rng(0)
        for variable in self.model.variables:
            # Freshly initialised offsets and masks are zero, which makes DCNv3 a mean filter.
            if "offset_mask" in variable.path:
                spread = 0.02 if variable.path.endswith("kernel") else 0.5
                variable.assign(rng.normal(scale=spread, size=variable.shape))
        self.model.save_weights(f"{folder}/{self.kind}.weights.h5")
        if self.kind == "internimage":
            export(f"{folder}/{self.kind}.weights.h5", f"{folder}/official.pth")

    def build(self, folder):
        if self.kind == "official":
            import official

            self.model = official.load(f"{folder}/official.pth")
            return
        self._build()
        if self.kind in OURS:
            self.model.load_weights(f"{folder}/{self.kind}.weights.h5")

    def _build(self):
        import keras

        if self.kind == "official":
            import official

            self.model = official.Classifier()
        elif self.kind in OURS:
            import keras_internimage

            function = getattr(keras_internimage, OURS[self.kind])
            self.model = function(weights=None, classifier_activation=None)
        else:
            self.model = keras.applications.ConvNeXtTiny(
                weights=None, classifier_activation=None, include_preprocessing=False
            )

    def logits(self, batch=1):
        x, _ = images(batch)
        return np.asarray(self._inference(x, compiled=False)()).tolist()

    def prepare_inference(self, batch):
        x, _ = images(batch)
        self._use_fastest(lambda compiled: self._inference(x, compiled))
        return self.note

    def _use_fastest(self, make):
        """Times `make(compiled)`; TensorFlow compiles ConvNeXt with XLA where that is faster."""
        both = self.backend == "tensorflow" and self.kind == "convnext"
        tried = []
        for compiled in (False, True) if both else (False,):
            call = make(compiled)
            call()
            self.use(call)
            tried.append((self.once, compiled, call))
        self.once, compiled, self.call = min(tried, key=lambda entry: entry[0])
        self.note = ("XLA" if compiled else "no XLA") if both else ""

    def _inference(self, x, compiled):
        if self.backend == "torch":
            return self._inference_torch(x)
        if self.backend == "tensorflow":
            import tensorflow as tf

            run = tf.function(
                lambda x: self.model(x, training=False), autograph=False, jit_compile=compiled
            )
            x = tf.constant(x)
            return lambda: run(x).numpy()
        import jax

        values = [
            [v.value for v in variables]
            for variables in (self.model.trainable_variables, self.model.non_trainable_variables)
        ]
        run = jax.jit(lambda *args: self.model.stateless_call(*args, training=False)[0])
        x = jax.numpy.asarray(x)
        return lambda: jax.block_until_ready(run(*values, x))

    def _inference_torch(self, x):
        import torch

        model = self.model
        x = torch.from_numpy(x)
        if self.kind == "official":
            model.eval()
            x = x.permute(0, 3, 1, 2).contiguous()

        def call():
            with torch.inference_mode():
                return model(x) if self.kind == "official" else model(x, training=False)

        return call

    def prepare_training(self, batch):
        """Returns the losses of the first two steps."""
        losses = []

        def make(compiled):
            step = self._training(batch, compiled)
            losses[:] = [step(), step()]
            return step

        self._use_fastest(make)
        return self.note, losses

    def _training(self, batch, compiled):
        x, y = images(batch)
        if self.kind == "official":
            return self._training_official(x, y)
        import keras

        if self.kind == "convnext":
            optimizer = keras.optimizers.AdamW
        else:
            from keras_internimage.training import LayerwiseAdamW as optimizer
        # "auto" is Keras' default.
        self.model.compile(
            optimizer=optimizer(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=EPSILON),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=compiled if self.kind == "convnext" else "auto",
        )
        x, y = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)

        def step():
            self.model.reset_metrics()
            return float(self.model.train_on_batch(x, y))

        return step

    def _training_official(self, x, y):
        import torch

        model = self.model.train()
        optimizer = torch.optim.AdamW(
            model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=EPSILON
        )
        x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
        y = torch.from_numpy(y)

        def step():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    def memory(self, batch):
        """Peak of the second step, and of both, over what was resident after the imports."""
        self._build()
        step = self._training(batch, compiled=False)
        step()
        first = interleaved.peak()
        interleaved.resident()  # gives back what the first step left unused
        interleaved.reset_peak()
        step()
        second = interleaved.peak()
        return second - self.imported, max(first, second) - self.imported


def check_logits(workers, folder):
    """Gives all sides their weights; raises if ours do not compute what they should."""
    families = {
        kind: [worker for label, worker in workers.items() if label.startswith(LABELS[kind])]
        for kind in OURS
    }
    for ours in families.values():
        if ours:
            ours[0].ask("new_weights", folder=folder)
    for worker in workers.values():
        worker.ask("build", folder=folder)
    for kind in OURS:
        # Without the official formulation, the first backend is what the others are compared with.
        compared = {
            label: np.array(worker.ask("logits"))
            for label, worker in workers.items()
            if label.startswith(LABELS[kind]) or (label == "official" and kind == "internimage")
        }
        if len(compared) < 2:
            continue
        base = next(iter(compared))
        what = f"Logits of {LABELS[kind]}"
        errors = interleaved.differences(compared, base, LOGITS_TOLERANCE, what)
        largest = max(errors.values())
        print(f"{what} differ from those of {base} by {largest:.1e} of the largest.")


def time_part(part, workers, batch, rounds):
    if part == "inference":
        notes = {label: w.ask("prepare_inference", batch=batch) for label, w in workers.items()}
    else:
        notes = {}
        losses = {}
        for label, worker in workers.items():
            notes[label], losses[label] = worker.ask("prepare_training", batch=batch)
        for label in workers:
            if "official" not in losses or not label.startswith("InternImage-T"):
                continue
            difference = np.abs(np.subtract(losses[label], losses["official"])).max()
            if not difference <= LOSS_TOLERANCE:
                raise RuntimeError(f"The losses of two steps must agree. Received: {losses}")
    durations = interleaved.measure(workers, rounds, TURN)
    for worker in workers.values():
        worker.ask("forget")
    return durations, notes


def print_all_times(groups, sides, folder, options):
    with started(__file__, sides, options.threads, options.verbose) as workers:
        check_logits(workers, folder)
        for batch in options.batch if "inference" in options.parts else ():
            print_times("inference", workers, batch, options)
    # All processes training at once would take more memory than many a machine has.
    for group in groups.values() if "training" in options.parts else ():
        with started(__file__, group, options.threads, options.verbose) as workers:
            for worker in workers.values():
                worker.ask("build", folder=folder)
            print_times("training", workers, options.training_batch, options)


def print_times(part, workers, batch, options):
    start = time.perf_counter()
    durations, notes = time_part(part, workers, batch, options.rounds)
    interleaved.print_head(
        f"{part.capitalize()}, batch {batch}, {options.threads} thread(s), {options.rounds} rounds "
        f"({time.perf_counter() - start:.0f} s):",
        *("side", "ms", "times faster than official", "times faster than ConvNeXt-T", "note"),
    )
    for label, seconds in durations.items():
        base = durations.get(_other(label, "internimage")) if "Flash" in label else None
        if base is not None:
            ratio = 1 / interleaved.speed_up(base, seconds)
            notes[label] = f"{ratio:.2f} of InternImage-T's time"
        interleaved.print_row(
            label,
            f"{interleaved.milliseconds(seconds):.1f}",
            _faster(durations.get("official"), seconds),
            _faster(durations.get(_other(label, "convnext")), seconds),
            notes[label],
        )


def print_memory(sides, batch, options):
    interleaved.print_head(
        f"Peak memory of a training step, batch {batch}, {options.threads} thread(s):",
        *("side", "MB", "times less than official", "times less than ConvNeXt-T"),
        "MB with the first step",
    )
    found = {}
    for label, side in sides.items():
        with started(__file__, {label: side}, options.threads, options.verbose) as fresh:
            found[label] = fresh[label].ask("memory", batch=batch)
    for label, (steady, highest) in found.items():
        others = (found.get("official"), found.get(_other(label, "convnext")))
        interleaved.print_row(
            label,
            f"{steady:.0f}",
            *("" if other is None else f"{other[0] / steady:.2f}" for other in others),
            f"{highest:.0f}",
        )


def _faster(other, seconds):
    return "" if other is None else f"{interleaved.speed_up(other, seconds):.2f}"


def _other(label, kind):
    """The label of another model on the backend of one of ours; None for one that is not ours."""
    name, _, backend = label.partition(", ")
    return f"{LABELS[kind]}, {backend}" if name in (LABELS[own] for own in OURS) else None


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=9)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="for inference")
    parser.add_argument("--training-batch", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    options = parser.parse_args()

    groups = {backend: _sides(backend, options.sides) for backend in options.backends}
    sides = {label: side for group in groups.values() for label, side in group.items()}
    interleaved.print_circumstances()
    if set(options.parts) != {"memory"}:
        with tempfile.TemporaryDirectory() as folder:
            print_all_times(groups, sides, folder, options)
    if "memory" in options.parts:
        print_memory(sides, options.training_batch, options)


def _sides(backend, kinds):
    """The processes of a comparison on one backend, by their labels."""
    sides = {"official": {"backend": "torch", "model": "official"}} if "official" in kinds else {}
    for kind, name in LABELS.items():
        if kind in kinds:
            sides[f"{name}, {backend}"] = {"backend": backend, "model": kind}
    return sides


if __name__ == "__main__":
    main()
