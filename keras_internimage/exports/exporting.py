"""`export`: one function for all formats."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Sequence

import keras
import numpy as np

from keras_internimage import files
from keras_internimage.exports import (
    detections,
    detectors,
    formats,
    model_transforms,
    subprocess_writer,
)
from keras_internimage.exports import verify as verification

LITERT_MEGABYTES = 2**31 / 1e6  # the file's addresses have 31 bits


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
    argmax: bool = False


def export(
    model: keras.Model,
    path: str | os.PathLike,
    format: str | None = None,
    precision: str = "float32",
    input_shape: tuple | None = None,
    batch_size: int | None = None,
    verify: bool = True,
    native: bool = False,
    calibration: np.ndarray | None = None,
    include_preprocessing: bool = False,
    include_argmax: bool = False,
    labels: Sequence[str] | None = None,
    deform_conv: bool = True,
    verbose: bool = True,
) -> pathlib.Path:
    """Writes a model as a file for another program, runs it there, and compares.

    | `format` | `path` | unknown sizes | `precision` |
    | --- | --- | --- | --- |
    | `"saved_model"` | a folder | batch, image | `float32`, `bfloat16` |
    | `"litert"` | `*.tflite` | batch, or none | `float32`, `float16`, `int8` |
    | `"onnx"` | `*.onnx` | batch, image | `float32` |
    | `"openvino"` | `*.xml` (and `*.bin`) | batch, image | `float32`, `float16` |
    | `"torch"` | `*.pt2` | batch, image | `float32`, `bfloat16` |

    A model that computes in float16, bfloat16 or float64, by a data type policy such as
    `mixed_float16`, is written as the float32 model of the same weights, which the file's outputs
    are compared with, and its images are float32. A quantised model (`model.quantize`) is refused:
    export the model from before, with `precision="int8"` for LiteRT.

    The file holds no operation of this package, whichever computes DCNv3 in the model: in ONNX
    and OpenVINO it is one `DeformConv`, elsewhere gathers and matmuls. A model of one backend goes
    to any format; where another backend has to write it, that runs in a process of its own.

    Of a detector, such as `MaskRCNN`, the file takes images alone, as large as the model is to see
    them, and gives its outputs by their names, boxes in pixels of these images. Only float32 is
    written, and sizes must be given for a PyTorch program as well. Detections are compared as sets.

    Args:
        model: a Keras model with one input, images `(N, H, W, 3)`, and any outputs. Layers that
            are not Keras' or this package's need `keras.saving.register_keras_serializable`
            where another backend writes.
        path: the file, or folder of a SavedModel. An exported file of that name is replaced; a
            folder only if this function wrote it and nothing was added to it.
        format: None for what the suffix of `path` tells.
        precision: of the weights; see the table. `int8` without `calibration` quantises weights
            only, and activations while it runs. `bfloat16` computes in it as well, but for
            sampling positions.
        input_shape: `(height, width, 3)` of the images; None for a size that is to be unknown.
            The model's own if None.
        batch_size: None for an unknown one.
        verify: run the file and compare its outputs with the model's, on noise and photographs,
            in several sizes where it takes them; with `calibration`, on its images.
        native: leave the native operator in a SavedModel or a `.pt2`. The program that loads it
            has to load the operator's library first, which is in the SavedModel's `assets.extra`,
            or in a folder `*.pt2.libraries` beside the program.
        calibration: for `int8`, some hundred images `(M, H, W, 3)` as the file takes them: uint8
            with `include_preprocessing`, otherwise as the model does. Matmuls and convolutions
            are then int8 between scales known beforehand; sampling positions stay float32.
        include_preprocessing: the file takes uint8 RGB images and normalises them itself.
        include_argmax: of a segmentation model, whose one output are logits `(N, h, w, classes)`,
            the file gives `label_map` instead, int32 `(N, H, W)` at the size of the images: the
            class of each pixel. Logits of another size are resized before, as by
            `layers.BilinearResizing`.
        labels: names of the classes, kept in the file: ONNX's metadata, OpenVINO's model info,
            `labels.txt` in a SavedModel's `assets.extra`, in the archive after a LiteRT model
            and among a PyTorch program's extra files.
        deform_conv: for ONNX and OpenVINO, whether DCNv3 may be a `DeformConv` (opset 19).
        verbose: print what is done.

    Returns:
        `path`, as a `pathlib.Path`.

    Raises:
        ValueError: an argument is not as said above.
        ImportError: something is not installed; the message names it.
        RuntimeError: the file's outputs differ from the model's by more than the format's
            tolerance. Then nothing is written. Labels may differ where logits that are closer
            than twice the tolerance compete.
    """
    path = pathlib.Path(path)
    target = find_target(path, format, precision, native, calibration is not None, verify)
    detects = detectors.is_detector(model)
    if detects:
        detectors.check(precision, include_argmax)
        model = detectors.wrap(model)
    _check(model, input_shape, batch_size)
    if include_argmax:
        _check_logits(model)
    say = print if verbose else lambda *_: None
    if not model_transforms.is_float32(model):
        say(f"The model computes by {model_transforms.policies(model)}: written in float32")
        change = detectors.in_float32 if detects else model_transforms.with_dtype
        model = change(model, "float32")
    if detects:
        model = model.with_images(input_shape, include_preprocessing)
    elif input_shape is not None and tuple(input_shape) != tuple(model.input_shape[1:]):
        model = model_transforms.with_input_shape(model, input_shape)
    if include_argmax:
        model = model_transforms.at_input_size(model)
    if include_preprocessing and not detects:
        model = model_transforms.with_preprocessing(model)
    _check_sizes(model, target, precision, batch_size, calibration, labels)
    options = Options(
        target.name,
        precision,
        batch_size,
        native,
        None if calibration is None else np.asarray(calibration),
        None if labels is None else tuple(map(str, labels)),
        deform_conv,
        include_argmax,
    )
    written = model_transforms.with_dtype(model, precision) if precision == "bfloat16" else model
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = pathlib.Path(folder) / path.name
        start = time.perf_counter()
        say(f"Writing {path} ({target.title}, {precision}) ...")
        if keras.backend.backend() == target.backend:
            formats.writer(target).write(written, temporary, options)
        else:
            say(f"  by Keras' {target.backend} backend, in a process of its own")
            subprocess_writer.write(written, temporary, options, target.backend)
        say(f"  {size_of(temporary) / 1e6:.1f} MB after {time.perf_counter() - start:.0f} s")
        if verify:
            say("Running it ...")
            check = detections.check if detects else verification.check
            check(model, written, temporary, target, options, say)
        _replace(temporary, path)
    return path


def find_target(path, format, precision, native, calibrated, verify):
    """The `formats.Format` to be written, after checks of all that can be said without a model.

    Raises:
        ValueError, ImportError: as `export`.
    """
    target = formats.of(path, format)
    formats.check_precision(target, precision)
    if native and target.name not in ("saved_model", "torch"):
        raise ValueError(
            "`native=True` needs the format saved_model or torch: no other can hold an operation "
            f"that is not its own. Received: format={target.name!r}"
        )
    if calibrated and precision != "int8":
        raise ValueError(f"`calibration` needs precision='int8'. Received: precision={precision!r}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"`path` must lie in a folder that exists and can be written to. Received: path={path}"
        )
    _check_target(path, native)
    lacking = formats.missing(target, verify, calibrated)
    if lacking:
        raise ImportError(
            f"{target.title} needs packages that are not installed: pip install "
            + " ".join(f'"{package}"' for package in lacking)
        )
    return target


def _check_target(path, native):
    """Raises where writing would take the place of what is no exported file.

    The file that is named, with the format's suffix, is replaced: that is what a path to write to
    means. What is not named is replaced only where it belongs to that file; a folder only where
    this package wrote all that is in it.
    """
    if path.name in ("", ".."):
        raise ValueError(f"`path` must have a name of its own. Received: path={str(path)!r}")
    if not path.suffix:
        files.check_folder(path)
        return
    files.check_file(path)
    if native:
        files.check_folder(formats.libraries(path))
    for beside in formats.beside(path):
        files.check_file(beside)
        if beside.exists() and not path.exists():
            raise ValueError(
                f"`path` must be one whose {beside.name} may be written as well; that file exists, "
                f"and belongs to no {path.name}. Received: path={path}"
            )


def _check(model, input_shape, batch_size):
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "`model` must be a built Keras model: call it once, or give it an `Input`. "
            f"Received: model={model!r}"
        )
    inputs = getattr(model, "inputs", None) or ()  # PyTorch knows none of a subclassed model
    if len(inputs) != 1 or len(model.input_shape) != 4:
        raise ValueError(
            "`model` must have one input, images of the shape (batch, height, width, channels). "
            f"Received: inputs={inputs}"
        )
    quantized = model_transforms.quantized_layer(model)
    if quantized is not None:
        raise ValueError(
            "`model` must not be quantised: export the one from before `quantize`, for LiteRT with "
            "precision='int8'. Received: the data type policy "
            f"{quantized.dtype_policy.name!r} of the layer {quantized.path!r}"
        )
    if input_shape is not None and (len(input_shape) != 3 or input_shape[2] is None):
        raise ValueError(
            "`input_shape` must be (height, width, channels), None for an unknown height or width. "
            f"Received: input_shape={input_shape}"
        )
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"`batch_size` must be None or at least 1. Received: batch_size={batch_size!r}"
        )


def _check_logits(model):
    """Raises ValueError unless a model gives a score of each class for each pixel, and no more.

    Of one class, every pixel would be it.
    """
    shapes = [tuple(output.shape) for output in keras.tree.flatten(model.outputs)]
    if len(shapes) != 1 or len(shapes[0]) != 4 or (shapes[0][-1] or 0) < 2:
        raise ValueError(
            "`include_argmax=True` needs a segmentation model, whose one output are logits "
            "(N, h, w, classes) of two classes or more. "
            f"Received: {model.name} with the outputs {shapes}"
        )


def _check_sizes(model, target, precision, batch_size, calibration, labels):
    """Checks what depends on the images the file will take, and on the model's size."""
    shape = tuple(model.input_shape[1:])
    dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
    if target.name == "litert":
        if None in shape:
            raise ValueError(
                "`input_shape` must give height and width for LiteRT, whose files have fixed "
                f"image sizes (--size of internimage-export). Received: model.input_shape="
                f"{model.input_shape}"
            )
        megabytes = model.count_params() * {"float32": 4, "float16": 2, "int8": 1}[precision] / 1e6
        if megabytes > LITERT_MEGABYTES:
            raise ValueError(
                f"A LiteRT file must be smaller than {LITERT_MEGABYTES} MB; a smaller `precision` "
                f"or ONNX may do. Received: precision={precision!r}, {megabytes:.0f} MB of weights"
            )
    if calibration is not None:
        found = np.asarray(calibration)
        if found.shape[1:] != shape or len(found) < (batch_size or 1) or found.dtype != dtype:
            raise ValueError(
                f"`calibration` must be {dtype} images of the shape {('M', *shape)}, at least as "
                f"many as `batch_size`. Received: shape={found.shape}, dtype={found.dtype}"
            )
    scores = [output.shape[-1] for output in keras.tree.flatten(model.outputs)]
    if isinstance(model, detectors.ImageDetector):
        detectors.check_sizes(model, target, batch_size)
        scores = [model.detector.classes]
    if labels is not None and len(labels) not in scores:
        raise ValueError(
            f"`labels` must be as many as the model's scores, {scores[0]}. "
            f"Received: {len(labels)} labels"
        )


def size_of(path):
    """Bytes of a file or folder, with what belongs to it: large weights, libraries."""
    path = pathlib.Path(path)
    found = [path, *path.rglob("*"), *formats.beside(path), *formats.libraries(path).rglob("*")]
    return sum(file.stat().st_size for file in set(found) if file.is_file())


def _replace(temporary, path):
    """Puts what was written in its place: the file or folder, and what belongs to it."""
    for source in sorted(temporary.parent.iterdir()):
        goal = path.parent / source.name
        if source.is_dir():
            files.write_manifest(source)
            files.check_folder(goal)  # once more: it may have changed meanwhile
        if not goal.is_dir():
            os.replace(source, goal)
            continue
        old = temporary.parent / f"{source.name}.old"
        os.replace(goal, old)
        try:
            os.replace(source, goal)
        except BaseException:
            os.replace(old, goal)
            raise
        shutil.rmtree(old)
