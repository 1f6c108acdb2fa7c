"""Running what was written, and comparing it with the model."""

import keras
import numpy as np

from keras_internimage.exports import formats

BATCHES = (1, 3)


def check(model, path, target, options, say):
    """Raises RuntimeError unless the file's outputs are the model's; says how close they are."""
    call = formats.runner(path)
    names = formats.output_names(model)
    tolerance = target.tolerances[options.precision]
    worst, agree, total = 0.0, 0, 0
    for images in _batches(model, options):
        expected = _expected(model, images)
        found = call(images)
        # A PyTorch program has no names for its outputs, but their order.
        found = [found[n] for n in names] if set(names) <= set(found) else list(found.values())
        for want, got in zip(expected, found, strict=True):
            if want.shape != got.shape or not np.isfinite(got).all():
                raise RuntimeError(
                    f"{path.name} must give finite outputs of the shape {want.shape}. "
                    f"Received: shape={got.shape}, finite={bool(np.isfinite(got).all())}"
                )
            worst = max(worst, float(np.abs(want - got).max() / max(1, np.abs(want).max())))
            best = want.reshape(len(want), -1).argmax(1) == got.reshape(len(got), -1).argmax(1)
            agree, total = agree + int(best.sum()), total + best.size
    if tolerance is not None and worst > tolerance:
        raise RuntimeError(
            f"The outputs of {target.title} must differ from the model's by {tolerance:g} at most. "
            f"Received: {worst:.2g}; nothing was written"
        )
    say(f"  runs; largest difference {worst:.1e}, largest output the same for {agree} of {total}")


def _batches(model, options):
    """Noise, and calibration images, in the batch and image sizes that the file takes."""
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
    if options.calibration is not None:
        count = options.batch_size or 1
        yield options.calibration[:count]


def _expected(model, images):
    if keras.backend.backend() == "torch":
        import torch

        with torch.no_grad():
            outputs = model(images, training=False)
    else:
        outputs = model(images, training=False)
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]
