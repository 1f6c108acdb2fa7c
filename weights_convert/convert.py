"""From an official checkpoint to a Keras file."""

import os
import zipfile
from collections.abc import Mapping

import keras

from keras_internimage import models
from keras_internimage.checkpoints import assign, infer, keras_files
from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.read import open_checkpoint
from keras_internimage.files import atomic_write
from keras_internimage.layers.initial_values import skip_initialization
from keras_internimage.variants import VARIANTS, model_name

DTYPES = ("float32", "float16", "bfloat16")
_RECORDS = ("metadata.json", "config.json", "model.weights.h5")


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    variant: str | None = None,
    classes: int | None = None,
    dtype: str = "float32",
    include_top: bool = True,
    offset_scale: float | None = None,
    container: str | None = None,
    progress: bool | None = None,
) -> assign.Report:
    """Convert an official checkpoint into a Keras file.

    Holds one copy of the model and one tensor in memory.

    Args:
        source: path for `open_checkpoint`.
        target: path ending in `.weights.h5` (weights) or `.keras` (the whole model).
        variant: key of `VARIANTS`; None infers the model from the tensors' shapes.
        classes: classes of the result; another number than the file's leaves the last layer
            newly initialised. None keeps the file's.
        dtype: type of the stored weights, `"float32"`, `"float16"` or `"bfloat16"`.
        include_top: whether the result has the head: of classification, segmentation or detection.
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
    with atomic_write(target) as unfinished:
        model = build(checkpoint.shapes(), variant, classes, dtype, include_top, offset_scale)
        table = infer.infer_config(checkpoint.shapes()).table
        report = assign.load_official(model, checkpoint, table, progress=progress)
        save(model, unfinished)
    return report


def build(
    shapes: Mapping[str, tuple[int, ...]],
    variant: str | None = None,
    classes: int | None = None,
    dtype: str = "float32",
    include_top: bool = True,
    offset_scale: float | None = None,
) -> keras.Model:
    """A model, not loaded yet, that fits a checkpoint's shapes; arguments as for `convert`."""
    guess = infer.infer_config(shapes, offset_scale)
    config, name = guess.config, "internimage"
    if variant is not None:
        if variant not in VARIANTS:
            raise CheckpointError(
                f"The variant must be one of {', '.join(VARIANTS)}. Received: variant={variant!r}"
            )
        config = VARIANTS[variant].config()
        # Dense tasks give T layer scales; the file decides.
        config["layer_scale"] = config["layer_scale"] or guess.config["layer_scale"]
    elif guess.variant is not None:
        # Initial values that shapes do not tell.
        own = VARIANTS[guess.variant].config()
        config = {**config, "layer_scale": own["layer_scale"] or config["layer_scale"]}
    variant = variant or guess.variant
    if variant is not None:
        name = model_name(variant)
    top = include_top and guess.classes is not None
    if classes is not None and not top:
        raise CheckpointError(
            f"`classes` needs a classification head in the file. Received: classes={classes}"
        )
    if not top:
        config = {**config, "use_clip_projector": False}
    if top and guess.family != "classifier":
        return _dense(guess, config, classes, dtype, name)
    resolution = VARIANTS[variant].resolution if variant else None
    return models.InternImage(
        **config,
        include_top=top,
        classes=classes or guess.classes or 1000,
        input_shape=(resolution, resolution, 3) if top else (None, None, 3),
        dtype=dtype,
        name=name,
    )


def _dense(guess, config, classes, dtype, name):
    builders = {
        "upernet": models.UperNet,
        "mask_rcnn": models.MaskRCNN,
        "cascade_mask_rcnn": models.CascadeMaskRCNN,
    }
    config = {key: value for key, value in config.items() if key != "use_clip_projector"}
    with skip_initialization():
        backbone = models.InternImageBackbone(**config, dtype=dtype, name=name)
        name = name.replace("internimage", guess.family)
        return builders[guess.family](
            backbone, classes=classes or guess.classes, dtype=dtype, name=name, **guess.head
        )


def save(model: keras.Model, path: str) -> None:
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
