"""InternImage-T in files of every format next to its official PyTorch formulation, on CPU.

    python benchmarks/export.py [--threads N] [--batch N] [--rounds N] [--files PART ...]

One set of random weights, images of 224 pixels. `keras_internimage.export` writes and verifies
each file from Keras' backend for its format; then everything runs in processes that take turns, in
its own runtime as `keras_internimage.exports.benchmark` runs it. The official formulation and the
Keras models run as in `benchmarks/model.py` (PyTorch eager, TensorFlow a `tf.function`, JAX a
`jax.jit`), with the native kernels and, called portable, without them. ms is the median of the
rounds, and the time over another's the median of the rounds' quotients: 0.5 is twice as fast. The
differences are those between the scores before softmax and the official formulation's, of the
largest. `--files onnx` leaves out files without "onnx" in their names.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
import time

import interleaved
import model
import numpy as np
from interleaved import started

HERE = pathlib.Path(__file__)
KERAS = {
    f"Keras, {backend}{note}": {"backend": backend, "model": "internimage", "environment": off}
    for note, off in (("", {}), (", portable", {"KERAS_INTERNIMAGE_KERNELS": "off"}))
    for backend in interleaved.BACKENDS
}
# Label: file, the backend of the model, arguments of `export`, arguments of the runtime. Without
# `batch_size` the number of images is unknown.
ONE = {"batch_size": "batch"}
INT8 = {**ONE, "precision": "int8"}
FILES = {
    "SavedModel": ("saved", "tensorflow", {}, {}),
    "SavedModel, native": ("saved-native", "tensorflow", {"native": True}, {}),
    "LiteRT": ("fixed.tflite", "tensorflow", ONE, {}),
    "LiteRT, without XNNPACK": ("fixed.tflite", "tensorflow", ONE, {"delegate": False}),
    "LiteRT, unknown batch": ("any.tflite", "tensorflow", {}, {}),
    "LiteRT, float16": ("half.tflite", "tensorflow", {**ONE, "precision": "float16"}, {}),
    "LiteRT, int8": ("int8.tflite", "tensorflow", INT8, {}),
    "LiteRT, int8, calibrated": ("calibrated.tflite", "tensorflow", INT8, {}),
    "ONNX": ("deform_conv.onnx", "torch", {}, {}),
    "ONNX, gathers": ("gathers.onnx", "torch", {"deform_conv": False}, {}),
    "OpenVINO": ("model.xml", "torch", {}, {}),
    "OpenVINO, float16": ("half.xml", "torch", {"precision": "float16"}, {}),
    "OpenVINO, its own precision": ("model.xml", "torch", {}, {"precision": None}),
    "PyTorch program": ("program.pt2", "torch", {}, {}),
    "PyTorch program, native": ("program-native.pt2", "torch", {"native": True}, {}),
}
CALIBRATED = "calibrated.tflite"


class File(interleaved.Contender):
    """An exported file in its own runtime."""

    def __init__(self, side):
        sys.path.insert(0, str(HERE.parents[1]))
        from keras_internimage.exports import formats

        x, _ = model.images(side["batch"])
        run = formats.runner(side["path"], threads=side["threads"], **side["runtime"])
        self._scores = lambda: next(iter(run(x).values()))

    def scores(self):
        return np.asarray(self._scores()).tolist()

    def prepare(self):
        self._scores()
        self.use(self._scores)


class Writer:
    """Writes the files of one backend."""

    def __init__(self, side):
        sys.path.insert(0, str(HERE.parents[1]))
        from keras_internimage import InternImageT

        self.model = InternImageT(weights=None, classifier_activation=None)
        self.model.load_weights(f"{side['folder']}/ours.weights.h5")

    def write(self, path, options):
        """Seconds and megabytes."""
        from keras_internimage import export
        from keras_internimage.exports import exporting

        if path.endswith(CALIBRATED):
            options["calibration"] = model.images(16)[0]
        start = time.perf_counter()
        export(self.model, path, **options)
        return time.perf_counter() - start, exporting.size_of(path) / 1e6


def write(files, folder, batch, verbose):
    """Dict of file to seconds and megabytes."""
    found = {}
    for backend in sorted({backend for _, backend, _, _ in files.values()}):
        side = {"role": "writer", "backend": backend, "folder": folder}
        with started(HERE, {"writer": side}, 2, verbose) as workers:
            for file, own, options, _ in files.values():
                if own == backend and file not in found:
                    arguments = {k: batch if v == "batch" else v for k, v in options.items()}
                    path = f"{folder}/{file}"
                    found[file] = workers["writer"].ask("write", path=path, options=arguments)
                    print(f"{file}: written in {found[file][0]:.0f} s", file=sys.stderr)
    return found


def main():
    if sys.argv[1:2] == ["--worker"]:
        side = json.loads(sys.argv[2])
        return interleaved.serve(Writer(side) if side["role"] == "writer" else File(side))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    interleaved.add_arguments(parser, rounds=9, threads=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--files", nargs="+", default=[""], help="parts of the files' names")
    options = parser.parse_args()
    files = {
        label: entry
        for label, entry in FILES.items()
        if any(part.lower() in label.lower() for part in options.files)
    }
    sides = {"official": {"backend": "torch", "model": "official"}}
    sides |= {label: s for label, s in KERAS.items() if s["backend"] in options.backends}
    interleaved.print_circumstances()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        models = stack.enter_context(
            started(model.__file__, sides, options.threads, options.verbose)
        )
        model.check_logits(models, folder)
        expected = model.images(options.batch)[0]
        expected = np.array(models["official"].ask("logits", batch=options.batch))
        written = write(files, folder, options.batch, options.verbose)
        sides = {
            label: {
                "role": "file",
                "backend": backend,
                "path": f"{folder}/{file}",
                "batch": options.batch,
                "threads": options.threads,
                "runtime": runtime,
            }
            for label, (file, backend, _, runtime) in files.items()
        }
        runs = stack.enter_context(started(HERE, sides, options.threads, options.verbose))
        differences = {}
        for label, worker in runs.items():
            found = np.array(worker.ask("scores"))
            differences[label] = np.abs(found - expected).max() / np.abs(expected).max()
            worker.ask("prepare")
        for worker in models.values():
            worker.ask("prepare_inference", batch=options.batch)
        durations = interleaved.measure(models | runs, options.rounds, model.TURN)
    print_table(durations, files, written, differences, options)


def print_table(durations, files, written, differences, options):
    interleaved.print_head(
        f"Batch {options.batch}, {options.threads} thread(s), {options.rounds} rounds:",
        *("", "ms", "time over official", "over its Keras model", "over that, portable"),
        *("MB", "difference"),
    )
    for label, seconds in durations.items():
        cells = ["", "", "", ""]
        if label in files:
            file, backend, _, _ = files[label]
            keras = [durations.get(f"Keras, {backend}{note}") for note in ("", ", portable")]
            cells = ["" if base is None else _times(seconds, base) for base in keras]
            cells += [f"{written[file][1]:.1f}", f"{differences[label]:.0e}"]
        interleaved.print_row(
            label,
            f"{interleaved.milliseconds(seconds):.0f}",
            _times(seconds, durations["official"]),
            *cells,
        )


def _times(seconds, base):
    return f"{1 / interleaved.speed_up(base, seconds):.2f}"


if __name__ == "__main__":
    main()
