"""Running what was written, and comparing it with the model.

The photographs are by danielbuechele (a temple) and vultilion (a flower), flickr.com/photos,
CC BY 2.0, cut and reduced to 128 pixels.
"""

import pathlib

import keras
import numpy as np

from keras_internimage import preprocessing
from keras_internimage.exports import formats

BATCHES = (1, 3)
CALIBRATION = 16  # images at most
PHOTOGRAPHS = pathlib.Path(__file__).with_name("photographs.npy")


def check(model, written, path, target, options, say):
    """Raises RuntimeError unless the file's outputs are the model's; says how close they are.

    Where `written`, the model that the file was made of, computes in less precision than `model`,
    the outputs may be twice as far from the model's as its are: how far those are depends on how
    the processor adds numbers of that precision.
    """
    run = formats.runner(path)
    names = formats.output_names(model, options.argmax)
    tolerance = target.tolerances[options.precision]
    worst, agree, total = 0.0, 0, 0
    for images in batches(model, options):
        expected = arrays(model, images)
        found = run(images)
        # A PyTorch program has no names for its outputs, but their order.
        found = [found[n] for n in names] if set(names) <= set(found) else list(found.values())
        if written is not model:
            for want, got in zip(expected, arrays(written, images), strict=True):
                tolerance = max(tolerance, 2 * difference(want, got, options.precision))
        for want, got in zip(expected, found, strict=True):
            compare = _compare_labels if options.argmax else _compare
            distance, same = compare(want, got, path, options.precision)
            worst = max(worst, distance)
            agree, total = agree + int(same.sum()), total + same.size
    if worst > tolerance:
        raise RuntimeError(
            f"The outputs of {target.title}, {options.precision}, must differ from the model's by "
            f"{tolerance:g} at most. Received: {worst:.2g}; nothing was written"
        )
    if options.argmax:
        say(f"  runs; the same label for {agree} of {total} pixels")
    else:
        say(
            f"  runs; largest difference {worst:.1e}, largest output the same for {agree} of "
            f"{total}"
        )


def _compare(want, got, path, precision):
    """The `difference` of two outputs, and for each image whether their largest is the same."""
    if want.shape != got.shape or not np.isfinite(got).all():
        raise RuntimeError(
            f"{path.name} must give finite outputs of the shape {want.shape}. "
            f"Received: shape={got.shape}, finite={bool(np.isfinite(got).all())}"
        )
    same = want.reshape(len(want), -1).argmax(1) == got.reshape(len(got), -1).argmax(1)
    return difference(want, got, precision), same


def _compare_labels(logits, labels, path, precision):
    """As `_compare`, of labels: how far logits must be from the model's at least to give them.

    Where another class than the model's is named, that is half the distance of their two logits.
    """
    shape, classes = logits.shape[:-1], logits.shape[-1]
    whole = np.issubdtype(labels.dtype, np.integer)
    if not np.isfinite(logits).all():
        raise RuntimeError("The model must give finite logits. Received: some that are not")
    if shape != labels.shape or not whole or labels.min() < 0 or labels.max() >= classes:
        raise RuntimeError(
            f"{path.name} must give labels from 0 to {classes - 1} of the shape {shape}. "
            f"Received: shape={labels.shape}, dtype={labels.dtype}, from {labels.min()} to "
            f"{labels.max()}"
        )
    named = np.take_along_axis(logits, labels[..., None].astype("int64"), -1)[..., 0]
    error = np.subtract(logits.max(-1), named, dtype="float64")
    return _relative(error / 2, logits, precision), error == 0


def difference(expected, found, precision):
    """How far outputs are from the model's.

    For float32 and float16 it is the largest difference, over the largest of the model's outputs
    where that is above 1. For int8 and bfloat16, the root mean square of the differences over the
    standard deviation of the model's outputs.
    """
    return _relative(np.subtract(expected, found, dtype="float64"), expected, precision)


def _relative(error, expected, precision):
    if precision in ("float32", "float16"):
        return float(np.abs(error).max() / max(1, np.abs(expected).max()))
    return float(np.sqrt((error**2).mean()) / max(expected.std(dtype="float64"), 1e-12))


def batches(model, options):
    """Noise and photographs, in the batch and image sizes the file takes.

    Files with scales for a kind of images are run on those images.
    """
    if options.calibration is not None:
        count = options.batch_size or 1
        for start in range(0, min(len(options.calibration), CALIBRATION) - count + 1, count):
            yield options.calibration[start : start + count]
        return
    rng = np.random.default_rng(0)
    height, width, channels = model.input_shape[1:]
    dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
    sizes = [(height or 64, width or 64)]
    if height is None or width is None:
        sizes.append((height or 96, width or 128))
    for batch in [options.batch_size] if options.batch_size else BATCHES:
        for size in sizes:
            if dtype == "uint8":
                yield rng.integers(0, 256, (batch, *size, channels), "uint8")
            else:
                yield rng.normal(size=(batch, *size, channels)).astype(dtype)
    if channels == 3:
        photographs = _photographs(*sizes[-1], dtype)
        count = options.batch_size or len(photographs)
        yield np.resize(photographs, (count, *photographs.shape[1:]))


def _photographs(height, width, dtype):
    pixels = np.load(PHOTOGRAPHS)
    rows, columns = (np.arange(n) * pixels.shape[1] // n for n in (height, width))
    pixels = pixels[:, rows[:, None], columns]
    return pixels if dtype == "uint8" else preprocessing.preprocess_input(pixels).astype(dtype)


def arrays(model, images):
    """The outputs of a model, or of a function, as a list of arrays."""
    if keras.backend.backend() == "torch":
        import torch

        with torch.no_grad():
            outputs = model(images, training=False)
    else:
        outputs = model(images, training=False)
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]
