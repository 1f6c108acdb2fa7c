"""`export`: one function for all formats."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
import time

import keras
import numpy as np

from keras_internimage.exports import elsewhere, formats
from keras_internimage.exports import verify as verification


@dataclasses.dataclass(frozen=True)
class Options:
    """What a writer needs to know besides the model and the path."""

    format: str
    precision: str = "float32"
    batch_size: int | None = None
    native: bool = False
    calibration: np.ndarray | None = None
    labels: tuple | None = None
    deform_conv: bool = True


def export(
    model,
    path,
    format=None,
    precision="float32",
    input_shape=None,
    batch_size=None,
    verify=True,
    native=False,
    calibration=None,
    include_preprocessing=False,
    labels=None,
    deform_conv=True,
    verbose=True,
):
    """Writes a model as a file for another program, runs it there, and compares.

    | `format` | `path` | unknown sizes | `precision` |
    | --- | --- | --- | --- |
    | `"saved_model"` | a folder | batch, image | `float32` |
    | `"litert"` | `*.tflite` | batch, or none | `float32`, `float16`, `int8` |
    | `"onnx"` | `*.onnx` | batch, image | `float32` |
    | `"openvino"` | `*.xml` (and `*.bin`) | batch, image | `float32`, `float16` |
    | `"torch"` | `*.pt2` | batch, image | `float32` |

    The file holds no operation of this package, whichever computes DCNv3 in the model: in ONNX
    and OpenVINO it is one `DeformConv`, elsewhere gathers and products. A model of one backend goes
    to any format; where another backend has to write it, that runs in a process of its own.

    Args:
        model: a Keras model with one input, images `(N, H, W, 3)`, and any outputs. Layers that
            are not Keras' or this package's need `keras.saving.register_keras_serializable`
            where another backend writes.
        path: the file, or folder of a SavedModel, replaced if it exists.
        format: None for what the suffix of `path` tells.
        precision: of the weights; see the table. `int8` without `calibration` quantises weights
            only, and activations while it runs.
        input_shape: `(height, width, 3)` of the images; None for a size that is to be unknown.
            The model's own if None.
        batch_size: None for an unknown one.
        verify: run the file and compare its outputs with the model's, on several batches.
        native: leave the native operator in a SavedModel or a `.pt2`. The program that loads it
            has to load the operator's library first, which is in the SavedModel's `assets.extra`,
            or in a folder `*.pt2.libraries` beside the program.
        calibration: for `int8`, some hundred images `(M, H, W, 3)` as the model takes them.
        include_preprocessing: the file takes uint8 RGB images and normalises them itself.
        labels: names of the classes, for formats with a place for them (ONNX).
        deform_conv: for ONNX and OpenVINO, whether DCNv3 may be a `DeformConv` (opset 19).
        verbose: print what is done.

    Returns:
        `path`, as a `pathlib.Path`.

    Raises:
        ValueError: an argument is not as said above.
        ImportError: something is not installed; the message names it.
        RuntimeError: the file's outputs differ from the model's by more than the format's
            tolerance. Then nothing is written.
    """
    path = pathlib.Path(path)
    target = formats.of(path, format)
    formats.check_precision(target, precision)
    _check(model, path, target, native, calibration, precision, input_shape, batch_size)
    lacking = formats.missing(target, verify)
    if lacking:
        raise ImportError(
            f"{target.title} needs packages that are not installed: pip install "
            + " ".join(f'"{package}"' for package in lacking)
        )
    say = print if verbose else lambda *_: None
    options = Options(
        target.name,
        precision,
        batch_size,
        native,
        None if calibration is None else np.asarray(calibration, "float32"),
        None if labels is None else tuple(labels),
        deform_conv,
    )
    if input_shape is not None and tuple(input_shape) != tuple(model.input_shape[1:]):
        model = with_input_shape(model, input_shape)
    if include_preprocessing:
        model = with_preprocessing(model)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = pathlib.Path(folder) / path.name
        start = time.perf_counter()
        say(f"Writing {path} ({target.title}, {precision}) ...")
        if keras.backend.backend() == target.backend:
            formats.writer(target).write(model, temporary, options)
        else:
            elsewhere.write(model, temporary, options, target.backend)
        say(f"  {size_of(temporary) / 1e6:.1f} MB after {time.perf_counter() - start:.0f} s")
        if verify:
            verification.check(model, temporary, target, options, say)
        _replace(temporary, path)
    return path


def _check(model, path, target, native, calibration, precision, input_shape, batch_size):
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "`model` must be a built Keras model: call it once, or give it an `Input`. "
            f"Received: model={model!r}"
        )
    if len(model.inputs or ()) != 1 or len(model.input_shape) != 4:
        raise ValueError(
            "`model` must have one input, images of the shape (batch, height, width, channels). "
            f"Received: inputs={model.inputs}"
        )
    if native and target.name not in ("saved_model", "torch"):
        raise ValueError(
            "`native=True` needs the format saved_model or torch: no other can hold an operation "
            f"that is not its own. Received: format={target.name!r}"
        )
    if calibration is not None and precision != "int8":
        raise ValueError(f"`calibration` needs precision='int8'. Received: precision={precision!r}")
    if input_shape is not None and (len(input_shape) != 3 or input_shape[2] is None):
        raise ValueError(
            "`input_shape` must be (height, width, channels), None for an unknown height or width. "
            f"Received: input_shape={input_shape}"
        )
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"`batch_size` must be None or at least 1. Received: batch_size={batch_size!r}"
        )
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"`path` must lie in a folder that exists and can be written to. Received: path={path}"
        )


def with_input_shape(model, input_shape):
    """The same model and weights for images of another size."""
    changed = keras.models.clone_model(model, input_tensors=keras.Input(tuple(input_shape)))
    changed.set_weights(model.get_weights())
    return changed


def with_preprocessing(model):
    """The model with ImageNet's normalisation before it, for uint8 images."""
    from keras_internimage import preprocessing

    mean, deviation = (np.asarray(v, "float64") for v in (preprocessing.MEAN, preprocessing.STD))
    normalise = keras.layers.Rescaling(
        scale=(1 / (255 * deviation)).tolist(),
        offset=(-mean / deviation).tolist(),
        dtype="float32",
    )
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    changed = keras.Model(images, model(normalise(images)), name=model.name)
    return changed


def size_of(path):
    """Bytes of a file or folder, with what belongs to it: OpenVINO's weights, libraries."""
    path = pathlib.Path(path)
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    found = [path, *path.rglob("*"), *beside, *formats.libraries(path).rglob("*")]
    return sum(file.stat().st_size for file in set(found) if file.is_file())


def _replace(temporary, path):
    """Puts what was written in its place, all of it."""
    for source in temporary.parent.iterdir():
        goal = path.parent / source.name
        if goal.is_dir():
            old = temporary.parent / f"{source.name}.old"
            os.replace(goal, old)
            os.replace(source, goal)
            shutil.rmtree(old)
        else:
            os.replace(source, goal)
