"""UperNet-T next to its official PyTorch formulation, on CPU: time and memory of inference.

    python benchmarks/segment.py [--backends torch tensorflow jax] [--threads N] [--size 512]
        [--rounds N] [--no-onnx] [--parts time memory]

Sides: `official_upernet.UperNet` (PyTorch), `UperNetT` of this package on each backend, and its
ONNX file in ONNX Runtime; one set of random weights, one image, float32, logits at the image's
size. All must give the official side's logits, up to 5e-5 of the largest; nothing is timed
otherwise.

Time: what a user runs. PyTorch `model(x)` in `torch.inference_mode()`, eager, for the official side
as well; TensorFlow a `tf.function`; JAX a `jax.jit` of `stateless_call`; all sizes known.
Medians over the rounds of one's own time over the official side's: 0.5 is twice as fast.

Memory: peak of the resident set during a call, in a fresh process (Linux only), over what is
resident after the imports (weights and activations), and over what is resident before the call
(activations alone). Where weights are kept twice by a compiled program, the former has both. The
least of several calls after the first: where memory is scarce the system takes pages of libraries
away, and those that come back during a call are none of its own.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile

import interleaved
import numpy as np
from interleaved import started

HERE = pathlib.Path(__file__)
PARTS = ("time", "memory")
TURN = 1.0  # seconds
TOLERANCE = 5e-5


def image(size):
    return np.random.default_rng(0).normal(size=(1, size, size, 3)).astype("float32")


class Side(interleaved.Contender):
    """`model` is "official", "ours" or "onnx"."""

    def __init__(self, side):
        self.backend, self.kind, self.size = side["backend"], side["model"], side["size"]
        self.folder, self.threads = side["folder"], side["threads"]
        if self.kind == "official":
            import official_upernet  # noqa: F401
        else:
            sys.path.insert(0, str(HERE.parents[1]))
            import keras_internimage  # noqa: F401
        if self.kind == "onnx":
            import onnxruntime  # noqa: F401
        self.imported = interleaved.resident()

    def _build(self):
        from keras_internimage import UperNetT

        return UperNetT(input_shape=(self.size, self.size, 3))

    def write(self, onnx):
        """Random weights for all sides, and the ONNX file."""
        from keras_internimage import export
        from keras_internimage.weights_convert.export import export as export_weights

        model = self._build()
        rng = np.random.default_rng(0)
        for variable in model.variables:
            # Freshly initialised offsets and masks are zero, which makes DCNv3 a mean filter.
            if "offset_mask" in variable.path:
                spread = 0.02 if variable.path.endswith("kernel") else 0.5
                variable.assign(rng.normal(scale=spread, size=variable.shape))
        model.save_weights(f"{self.folder}/ours.weights.h5")
        export_weights(f"{self.folder}/ours.weights.h5", f"{self.folder}/official.pth")
        if onnx:
            export(model, f"{self.folder}/x.onnx", verify=False, verbose=False)

    def prepare(self):
        self.run = self._made()
        self.run()

    def _made(self):
        x = image(self.size)
        if self.kind == "onnx":
            from keras_internimage.exports import formats

            run = formats.runner(f"{self.folder}/x.onnx", threads=self.threads)
            return lambda: next(iter(run(x).values()))
        if self.kind == "official":
            import official_upernet
            import torch

            model = official_upernet.load(f"{self.folder}/official.pth").eval()
            images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
            return torch.inference_mode()(lambda: model(images).permute(0, 2, 3, 1))
        model = self._build()
        model.load_weights(f"{self.folder}/ours.weights.h5")
        if self.backend == "torch":
            import torch

            images = torch.from_numpy(x)
            return torch.inference_mode()(lambda: model(images, training=False))
        if self.backend == "tensorflow":
            import tensorflow as tf

            call = tf.function(lambda x: model(x, training=False), autograph=False)
            images = tf.constant(x)
            return lambda: call(images)  # which has ended then, on a processor
        import jax

        values = [
            [v.value for v in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        ]
        call = jax.jit(lambda *args: model.stateless_call(*args, training=False)[0])
        images = jax.numpy.asarray(x)
        return lambda: jax.block_until_ready(call(*values, images))

    def logits(self, label):
        """Path of the logits."""
        path = f"{self.folder}/{label}.npy"
        np.save(path, np.asarray(self.run()))
        return path

    def ready(self):
        self.use(self.run)

    def memory(self):
        return interleaved.peak_memory(self)


def check_logits(workers):
    """Largest differences from the official logits, of the largest; raises if one is too large."""
    found = {}
    for number, (label, worker) in enumerate(workers.items()):
        worker.ask("prepare")
        found[label] = np.load(worker.ask("logits", label=f"logits{number}"))
    return interleaved.differences(found, "official", TOLERANCE, "Logits")


def print_times(sides, options):
    with started(HERE, sides, options.threads, options.verbose) as workers:
        differences = check_logits(workers)
        for worker in workers.values():
            worker.ask("ready")
        interleaved.print_times(
            workers,
            options.rounds,
            TURN,
            f"One image of {options.size} pixels, {options.threads} thread(s), "
            f"{options.rounds} rounds:",
            "difference of logits",
            {label: f"{difference:.0e}" for label, difference in differences.items()},
        )


def print_memory(sides, options):
    title = f"Peak memory, one image of {options.size} pixels:"
    interleaved.print_memory(HERE, sides, options.threads, options.verbose, title)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=7, threads=2)
    parser.add_argument("--size", type=int, default=512, help="of the image's sides")
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    models = {"official": ("torch", "official")}
    models |= {f"UperNet-T, {backend}": (backend, "ours") for backend in options.backends}
    if not options.no_onnx:
        models["UperNet-T, ONNX Runtime"] = ("torch", "onnx")
    interleaved.print_circumstances()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        shared = {"size": options.size, "folder": folder, "threads": options.threads}
        sides = {
            label: {"backend": backend, "model": model, **shared}
            for label, (backend, model) in models.items()
        }
        writer = {"backend": "torch", "model": "ours", **shared}
        with started(HERE, {"writer": writer}, options.threads, options.verbose) as workers:
            workers["writer"].ask("write", onnx=not options.no_onnx)
        if "time" in options.parts:
            print_times(sides, options)
        if "memory" in options.parts:
            print_memory(sides, options)


if __name__ == "__main__":
    main()
