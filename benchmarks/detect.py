"""Mask R-CNN T next to its official PyTorch formulation, on CPU: time and memory of inference.

    python benchmarks/detect.py [--backends torch tensorflow jax] [--threads N]
        [--size 800 1216] [--rounds N] [--parts time memory photograph]

Sides: `official_detector.MaskRCNN` (PyTorch, with RoIAlign and suppression of torchvision, which
must be installed with its compiled operators) and `MaskRCNNT` of this package on each backend; one
set of random weights, one image of normal noise, float32, masks as 28 x 28 probabilities. The last
layers are scaled so that there are 1000 proposals and dozens of detections. All must find what the
official side finds, but for 2 in 100, since near thresholds rounding decides; nothing is timed
otherwise.

Time and memory are measured as in `benchmarks/segment.py`. "photograph" is the peak of memory while
`Detector` finds the objects in a photograph of 4000 x 3000 pixels and makes the mask of each; there
is no official side of it.
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
PARTS = ("time", "memory", "photograph")
PHOTOGRAPH = (3000, 4000)
TURN = 1.0  # seconds
MISSING = 0.02  # of the detections
# Deviations of what the last layers give, and the background's advantage.
LOGITS, BACKGROUND, DELTAS, MOVES = 1.5, 4.0, 0.25, 1.0


def image(size):
    return np.random.default_rng(0).normal(size=(1, *size, 3)).astype("float32")


class Side(interleaved.Contender):
    """`model` is "official" or "ours"."""

    def __init__(self, side):
        self.backend, self.kind, self.size = side["backend"], side["model"], side["size"]
        self.folder, self.photograph = side["folder"], side.get("photograph", False)
        if self.kind == "official":
            import official_detector  # noqa: F401
        else:
            sys.path.insert(0, str(HERE.parents[1]))
            import keras_internimage  # noqa: F401
        self.imported = interleaved.resident()

    def _build(self):
        from keras_internimage import MaskRCNNT

        return MaskRCNNT()

    def write(self):
        """Random weights for all sides."""
        import torch

        from keras_internimage.weights_convert.export import export

        model = self._build()
        rng = np.random.default_rng(0)
        for variable in model.variables:
            # Freshly initialised offsets and masks are zero, which makes DCNv3 a mean filter.
            if "offset_mask" in variable.path:
                spread = 0.02 if variable.path.endswith("kernel") else 0.5
                variable.assign(rng.normal(scale=spread, size=variable.shape))
        with torch.inference_mode():
            maps = model.pyramid(model.features(torch.from_numpy(image(self.size))))
            logits, deltas = model.rpn(maps)
            _scale(model.rpn.objectness, LOGITS, logits[0])
            _scale(model.rpn.deltas, DELTAS, deltas[0])
            logits, deltas = model.rpn(maps)
            sizes = torch.tensor([self.size])
            proposals, _, valid = model.propose(maps, logits, deltas, sizes)
            logits, moves = model.box_head(model.box_align(maps, proposals))
            _scale(model.box_head.scores, LOGITS, logits)
            _scale(model.box_head.deltas, MOVES, moves)
            bias = np.zeros(model.classes + 1, "float32")
            bias[-1] = BACKGROUND
            model.box_head.scores.bias.assign(bias)
        model.save_weights(f"{self.folder}/ours.weights.h5")
        export(f"{self.folder}/ours.weights.h5", f"{self.folder}/official.pth")
        return int(valid.sum())

    def prepare(self):
        self.run = self._made()
        self.run()

    def _made(self):
        if self.photograph:
            return self._detecting()
        x = image(self.size)
        if self.kind == "official":
            import official_detector
            import torch

            model = official_detector.load(f"{self.folder}/official.pth").eval()
            images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
            return torch.inference_mode()(lambda: model(images))
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
            return lambda: {name: y.numpy() for name, y in call(images).items()}
        import jax

        values = [
            [v.value for v in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        ]
        call = jax.jit(lambda *args: model.stateless_call(*args, training=False)[0])
        images = jax.numpy.asarray(x)
        return lambda: jax.block_until_ready(call(*values, images))

    def _detecting(self):
        from keras_internimage.detector import Detector

        model = self._build()
        model.load_weights(f"{self.folder}/ours.weights.h5")
        detector = Detector(model)
        pixels = np.random.default_rng(0).integers(0, 256, (*PHOTOGRAPH, 3), "uint8")

        def run():
            (found,) = detector.predict([pixels])
            return sum(int(found.mask(k).sum()) for k in range(len(found)))

        return run

    def detections(self, label):
        """Path of the boxes, scores, labels and masks."""
        found = self.run()
        if self.kind == "ours":
            count = int(found["num_detections"][0])
            names = ("boxes", "scores", "labels", "masks")
            found = [np.asarray(found[name])[0, :count] for name in names]
        path = f"{self.folder}/{label}.npz"
        np.savez(path, *map(np.asarray, found))
        return path

    def ready(self):
        self.use(self.run)

    def memory(self):
        return interleaved.peak_memory(self)


def _scale(layer, deviation, outputs):
    """Makes a last layer's outputs have zero mean and a standard deviation, nearly."""
    layer.kernel.assign(layer.kernel * (deviation / float(outputs.std())))


def missing(found, expected):
    """The share of expected detections that are not among those found."""
    lost = 0
    for box, score, label, mask in zip(*expected, strict=True):
        near = (abs(found[0] - box).max(1) < 0.02) & (found[2] == label)
        near &= abs(found[1] - score) < 1e-3
        lost += not any(abs(found[3][k] - mask).max() < 1e-3 for k in near.nonzero()[0])
    return lost / len(expected[0])


def check_detections(workers):
    """The number of official detections, and the share that others miss; raises if too many."""
    found = {}
    for number, (label, worker) in enumerate(workers.items()):
        worker.ask("prepare")
        with np.load(worker.ask("detections", label=f"found{number}")) as arrays:
            found[label] = [arrays[name] for name in arrays.files]
    expected = found.pop("official")
    shares = {label: missing(arrays, expected) for label, arrays in found.items()}
    if not max(shares.values(), default=0) <= MISSING or len(expected[0]) == 0:
        raise RuntimeError(
            f"Detections must be the official ones but for {MISSING:.0%}. Received: "
            f"{len(expected[0])} official ones, and missing {shares}"
        )
    return len(expected[0]), shares


def print_times(sides, options):
    height, width = options.size
    with started(HERE, sides, options.threads, options.verbose) as workers:
        count, shares = check_detections(workers)
        for worker in workers.values():
            worker.ask("ready")
        interleaved.print_times(
            workers,
            options.rounds,
            TURN,
            f"One image of {height} x {width} pixels, {count} detections, {options.threads} "
            f"thread(s), {options.rounds} rounds:",
            "official detections not found",
            {label: f"{share:.0%}" for label, share in shares.items()},
        )


def print_memory(sides, options):
    height, width = options.size
    title = f"Peak memory, one image of {height} x {width} pixels:"
    interleaved.print_memory(HERE, sides, options.threads, options.verbose, title)


def print_photograph(sides, options):
    height, width = PHOTOGRAPH
    interleaved.print_head(
        f"Peak memory, a photograph of {height} x {width} pixels:",
        *("side", "MB over the imports", "MB over what was there"),
    )
    for label, side in sides.items():
        if side["model"] == "official":
            continue
        side = {**side, "photograph": True}
        with started(HERE, {label: side}, options.threads, options.verbose) as fresh:
            interleaved.print_row(label, *(f"{x:.0f}" for x in fresh[label].ask("memory")))


def main():
    if sys.argv[1:2] == ["--worker"]:
        return interleaved.serve(Side(json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=5, threads=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216], help="of the image")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    models = {"official": ("torch", "official")}
    models |= {f"Mask R-CNN T, {backend}": (backend, "ours") for backend in options.backends}
    interleaved.print_circumstances()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        shared = {"size": options.size, "folder": folder}
        sides = {
            label: {"backend": backend, "model": model, **shared}
            for label, (backend, model) in models.items()
        }
        writer = {"backend": "torch", "model": "ours", **shared}
        with started(HERE, {"writer": writer}, options.threads, options.verbose) as workers:
            proposals = workers["writer"].ask("write")
        print(f"\n{proposals} proposals.")
        if "time" in options.parts:
            print_times(sides, options)
        if "memory" in options.parts:
            print_memory(sides, options)
        if "photograph" in options.parts:
            print_photograph(sides, options)


if __name__ == "__main__":
    main()
