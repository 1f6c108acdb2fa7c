"""`internimage-predict MODEL IMAGE...`: what is on images, by a model of this package.

Exits with 0; with 1 where some of the images could not be read; with 2 and one line on standard
error for what cannot be done.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import sys

import numpy as np

from keras_internimage import backends

PROGRAM = "internimage-predict"
# Batches that are read while one is predicted.
AHEAD = 2


def _parser():
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Names what is on images, by a model of internimage-train."
    )
    parser.add_argument("model", metavar="MODEL", help=".keras file, or a folder with model.keras")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image, or folder (all images below it)"
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes shown (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write JSON; - is standard output")
    parser.add_argument("--labels", metavar="FILE", help="default: labels.json beside the model")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default 16")
    parser.add_argument(
        "--resolution", type=int, metavar="PIXELS", help="default: that of the labels or the model"
    )
    parser.add_argument("--backend", choices=backends.BACKENDS, help="Keras' backend")
    return parser


def main(argv=None):
    """Runs the command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        backends.use(arguments.backend, argv)
        return _predict(arguments)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped", file=sys.stderr)
        return 130


def _predict(arguments):
    for name in ("top", "batch_size", "resolution"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1. Received: --{option} {value}")
    if arguments.json not in (None, "-") and not pathlib.Path(arguments.json).parent.is_dir():
        raise ValueError(f"The folder of --json must exist. Received: --json {arguments.json}")
    files, missing = _files(arguments.images)
    if not files and not missing:
        raise ValueError(f"There must be images. Received: {', '.join(arguments.images)} with none")
    path = pathlib.Path(arguments.model)
    path = path / "model.keras" if path.is_dir() else path
    model = load_model(path)
    names, size = _labels(arguments, path, model)
    results, bad = [], list(missing)
    for file, scores in _scores(model, files, size, arguments.batch_size, bad):
        order = np.argsort(-scores, kind="stable")[: arguments.top]
        results.append((file, [(names[i], float(scores[i])) for i in order]))
    if arguments.json is None:
        _print_table(results)
    else:
        _write(arguments.json, path, results, bad)
    for file, reason in bad:
        print(f"{PROGRAM}: {_shown(file)}: {reason}", file=sys.stderr)
    return 1 if bad else 0


def load_model(path):
    """A classifier from a `.keras` file, not compiled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of a classifier of images.
    """
    import keras

    if not path.exists():
        raise FileNotFoundError(
            f"MODEL must be a .keras file. Received: {path}, which is not there"
        )
    if path.suffix != ".keras":
        raise ValueError(
            "MODEL must be a .keras file (internimage-convert makes one of a checkpoint). "
            f"Received: {path}"
        )
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # zip, JSON, HDF5 and Keras itself: a damaged file fails in each
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"MODEL must be a .keras file that Keras loads. Received: {path} ({reason})"
        ) from error
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not all(isinstance(shape, tuple) for shape in shapes) or (
        len(shapes[0]) != 4 or shapes[0][-1] != 3 or len(shapes[1]) != 2
    ):
        raise ValueError(
            "MODEL must take images (N, H, W, 3) and give one score for each class. "
            f"Received: {path}, from {shapes[0]} to {shapes[1]}"
        )
    return model


def probabilities(model, images):
    """float32 probabilities `(N, classes)` of normalised images; logits are softmaxed."""
    import keras

    scores = np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(images)), "float32")
    activation = getattr(model.layers[-1], "activation", None)
    if activation is keras.activations.linear:
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
    return scores


def _files(given):
    from keras_internimage.data.folders import images_below

    files, missing = [], []
    for name in given:
        path = pathlib.Path(name)
        if path.is_dir():
            files += images_below(path)
        elif path.exists():
            files.append(path)
        else:
            missing.append((path, "is not there"))
    return files, missing


def _labels(arguments, path, model):
    from keras_internimage.data import labels

    classes = model.output_shape[-1]
    file = pathlib.Path(arguments.labels) if arguments.labels else path.with_name(labels.FILE)
    known = labels.read(file)
    if known is None and arguments.labels:
        raise ValueError(f"--labels must be a file. Received: --labels {file}")
    if known is not None and len(known.classes) != classes:
        raise ValueError(
            f"The labels must be as many as the model has classes, {classes}. "
            f"Received: {len(known.classes)} in {file}"
        )
    names = known.classes if known else _names(classes)
    height, width = model.input_shape[1:3]
    size = arguments.resolution or height or (known and known.resolution) or 224
    for side in (height, width):
        if side not in (None, size):
            raise ValueError(
                f"The model takes images of {height} x {width} pixels. Received: --resolution "
                f"{size}" if arguments.resolution else
                f"The model must take square images. Received: {height} x {width} pixels"
            )  # fmt: skip
    return names, size


def _names(classes):
    from keras_internimage.preprocessing import IMAGENET_CLASSES, decode_predictions

    if classes == IMAGENET_CLASSES:
        ranks = np.arange(classes, 0, -1, "float32")[None]
        try:
            return tuple(name for _, name, _ in decode_predictions(ranks, top=classes)[0])
        except RuntimeError as error:
            print(f"{PROGRAM}: classes are shown as numbers. {error}", file=sys.stderr)
    return tuple(str(index) for index in range(classes))


def _scores(model, files, size, batch_size, bad):
    """`(file, probabilities)` of each readable file; what is not goes into `bad`."""
    from keras_internimage.progress import Progress

    batches = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    with (
        concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        Progress("Predicting", len(files)) as progress,
    ):
        waiting = collections.deque(_submit(pool, batch, size) for batch in batches[:AHEAD])
        for number in range(len(batches)):
            batch = waiting.popleft()
            if number + AHEAD < len(batches):
                waiting.append(_submit(pool, batches[number + AHEAD], size))
            images, readable = [], []
            for file, future in batch:
                image, reason = future.result()
                if image is None:
                    bad.append((file, reason))
                else:
                    images.append(image)
                    readable.append(file)
            if images:
                # One shape for all batches: XLA compiles one program.
                filled = images + [images[-1]] * (min(batch_size, len(files)) - len(images))
                scores = probabilities(model, np.stack(filled))
                yield from zip(readable, scores, strict=False)
            progress.advance(len(batch))


def _submit(pool, batch, size):
    return [(file, pool.submit(_read, file, size)) for file in batch]


def _read(file, size):
    from keras_internimage.data.check import explain
    from keras_internimage.preprocessing import load_image

    try:
        return load_image(file, size, exif_orientation=True), None
    except FileNotFoundError:
        return None, "is not there"
    except ValueError as error:
        return None, explain(file, error)


def _shown(file):
    from keras_internimage.data.check import printable

    return printable(str(file))


def _print_table(results):
    if not results:
        return
    width = max(len(_shown(file)) for file, _ in results)
    for file, best in results:
        for rank, (name, score) in enumerate(best):
            head = _shown(file) if rank == 0 else ""
            print(f"{head:{width}}  {score:6.1%}  {name}")


def _write(target, model, results, bad):
    content = {
        "model": str(model),
        "predictions": [
            {
                "file": _shown(file),
                "classes": [
                    {"label": name, "probability": round(score, 6)} for name, score in best
                ],
            }
            for file, best in results
        ],
        "failed": [{"file": _shown(file), "reason": reason} for file, reason in bad],
    }
    if target == "-":
        json.dump(content, sys.stdout, ensure_ascii=False, indent=1)
        print()
        return
    from keras_internimage.data.labels import write_json

    write_json(pathlib.Path(target), content)


if __name__ == "__main__":
    sys.exit(main())
