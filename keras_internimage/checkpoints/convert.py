"""From a checkpoint to a Keras file and back."""

import os
import zipfile

import numpy as np

from keras_internimage.checkpoints import infer, keras_files, load, names, safetensors_files
from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.read import open_checkpoint
from keras_internimage.checkpoints.tensors import all_finite
from keras_internimage.files import atomic_write

DTYPES = ("float32", "float16", "bfloat16")
_RECORDS = ("metadata.json", "config.json", "model.weights.h5")


def convert(
    source,
    target,
    *,
    variant=None,
    classes=None,
    dtype="float32",
    include_top=True,
    offset_scale=None,
    container=None,
    progress=None,
):
    """Convert an official checkpoint into a Keras file.

    Holds one copy of the model and one tensor in memory.

    Args:
        source: path for `open_checkpoint`.
        target: path ending in `.weights.h5` (weights) or `.keras` (the whole model).
        variant: key of `VARIANTS`; None infers the model from the tensors' shapes.
        classes: classes of the result; another number than the file's leaves the last layer
            fresh. None keeps the file's.
        dtype: type of the stored weights, `"float32"`, `"float16"` or `"bfloat16"`.
        include_top: whether the result has the classification head.
        offset_scale: factor of DCNv3's sampling grid, for geometries that are not published.
        container: where in a `.pth` the weights are, such as `"model_ema"`.
        progress: whether to show a progress bar; None shows one for large files.

    Returns:
        The `Report` of the load.

    Raises:
        CheckpointError: the checkpoint cannot be read, does not fit, or holds numbers that are
            not finite. There is no output then.
    """
    target = os.fspath(target)
    if not target.endswith(keras_files.SUFFIXES):
        raise CheckpointError(
            f"The output must end in {' or '.join(keras_files.SUFFIXES)}. Received: path={target}"
        )
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}. Received: dtype={dtype}")
    checkpoint = open_checkpoint(source, container)
    model = build(checkpoint.shapes(), variant, classes, dtype, include_top, offset_scale)
    with atomic_write(target) as unfinished:
        report = load.load_official(model, checkpoint, progress=progress)
        save(model, unfinished)
    return report


def build(shapes, variant=None, classes=None, dtype="float32", include_top=True, offset_scale=None):
    """A model, not loaded yet, that fits a checkpoint's shapes; arguments as for `convert`."""
    from keras_internimage import models

    guess = infer.infer_config(shapes, offset_scale)
    config, name = guess.config, "internimage"
    if variant is not None:
        if variant not in models.VARIANTS:
            raise CheckpointError(
                f"The variant must be one of {', '.join(models.VARIANTS)}. "
                f"Received: variant={variant!r}"
            )
        config = models.VARIANTS[variant].config()
        # Dense tasks give T layer scales; the file decides.
        config["layer_scale"] = config["layer_scale"] or guess.config["layer_scale"]
    elif guess.variant is not None:
        # Initial values that shapes do not tell.
        own = models.VARIANTS[guess.variant].config()
        config = {**config, "layer_scale": own["layer_scale"] or config["layer_scale"]}
    variant = variant or guess.variant
    if variant is not None:
        name = f"internimage_{variant.lower()}"
    top = include_top and guess.classes is not None
    if classes is not None and not top:
        raise CheckpointError(
            f"`classes` needs a classification head in the file. Received: classes={classes}"
        )
    if not top:
        config = {**config, "use_clip_projector": False}
    resolution = models.VARIANTS[variant].resolution if variant else None
    return models.InternImage(
        **config,
        include_top=top,
        classes=classes or guess.classes or 1000,
        input_shape=(resolution, resolution, 3) if top else (None, None, 3),
        dtype=dtype,
        name=name,
    )


def save(model, path):
    """Save a model or its weights, by the path's ending, without a second copy in memory.

    Keras collects the weights of a `.keras` file in memory first, where it finds enough; here
    they go to disk, and the archive is made of the parts.
    """
    if path.endswith(".weights.h5"):
        model.save_weights(path)
        return
    folder = f"{path}.parts"
    os.mkdir(folder)
    model.save(folder, zipped=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for record in _RECORDS:
            part = os.path.join(folder, record)
            archive.write(part, record)
            os.remove(part)


def verify(path, against, container=None):
    """Compare a Keras file with a checkpoint, tensor by tensor.

    Args:
        path: `.weights.h5` or `.keras`.
        against: path for `open_checkpoint`.
        container: as for `open_checkpoint`.

    Returns:
        A dict of largest absolute differences by variable path (0.0 where bit-exact, None for
        another shape), and the sorted names that only the checkpoint has and that it lacks.
    """
    file, checkpoint = keras_files.read(path), open_checkpoint(against, container)
    differences, lacking, used = {}, [], set()
    for variable, tensor in file.tensors.items():
        official = names.entry(variable).official
        used.update(official)
        absent = [name for name in official if name not in checkpoint.tensors]
        if absent:
            lacking.extend(absent)
            continue
        parts = {name: checkpoint.tensors[name].float32() for name in official}
        try:
            expected = names.to_keras(variable, parts)
        except ValueError:
            expected = None
        if expected is None or expected.shape != tensor.shape:
            differences[variable] = None
            continue
        stored = tensor.float32()
        same = np.array_equal(stored.view(np.uint32), expected.view(np.uint32))
        differences[variable] = 0.0 if same else _largest_difference(stored, expected)
    extra = sorted(name for name in checkpoint.tensors if name not in used)
    return differences, extra, sorted(lacking)


def _largest_difference(a, b):
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(a - b).max())
    # Equal numbers of unlike bits (the two zeros) are still no exact copy; nor is NaN.
    return largest or float(np.finfo(np.float32).smallest_subnormal)


def export(path, target):
    """Write a Keras file's weights under the official names and in the official layout.

    A `.safetensors` file is written tensor by tensor; a `.pth` file needs PyTorch, which
    collects all tensors, `{"model": ...}`, in memory.

    Args:
        path: `.weights.h5` or `.keras`.
        target: path ending in `.pth` or `.safetensors`.

    Returns:
        The number of tensors written.

    Raises:
        CheckpointError: the file cannot be read, holds numbers that are not finite, or PyTorch
            is missing. There is no output then.
    """
    target = os.fspath(target)
    if not target.endswith((".pth", ".safetensors")):
        raise CheckpointError(
            f"The output must end in .pth or .safetensors. Received: path={target}"
        )
    file = keras_files.read(path)
    if target.endswith(".pth"):
        torch = _torch(target)
        with atomic_write(target) as unfinished:
            state = {name: torch.from_numpy(read()) for name, _, _, read in _official_tensors(file)}
            torch.save({"model": state}, unfinished)
        return len(state)
    tensors = list(_official_tensors(file))
    with atomic_write(target) as unfinished:
        safetensors_files.write(unfinished, tensors)
    return len(tensors)


def _torch(target):
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "Writing a .pth needs PyTorch (a .safetensors does not): "
            f"pip install keras-internimage[convert]. Received: path={target}"
        ) from error
    return torch


def _official_tensors(file):
    """`(name, shape, dtype, read)` of the official tensors a Keras file's weights make up."""
    for variable, tensor in file.tensors.items():
        entry = names.entry(variable)
        shapes = entry.layout.official_shapes(tensor.shape)
        for name, shape in zip(entry.official, shapes, strict=True):
            yield name, shape, "float32", _part_reader(variable, tensor, name)
        if variable == "head_norm/moving_variance":
            name = f"{entry.official[0].rpartition('.')[0]}.{names.BATCH_COUNTER}"
            yield name, (), "int64", lambda: np.zeros((), np.int64)


def _part_reader(variable, tensor, name):
    def read():
        value = tensor.float32()
        if not all_finite(value):
            raise CheckpointError(f"All weights must be finite numbers. Received: {variable}")
        return names.to_official(variable, value)[name]

    return read
