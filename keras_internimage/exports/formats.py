"""The file formats: what each is called, who writes it, who runs it, how exact it is.

The command line reads this table before Keras is imported, so Keras is imported inside functions.
"""

import collections.abc
import dataclasses
import importlib.util
import pathlib
import shutil


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format of exported models.

    `backend` is Keras' backend that writes it, `writer` and `runtime` are the modules of this
    package with `write` and `load`, `needs` the modules that must be installed to write and to run
    it, by the packages that bring them. `tolerances` gives, for each precision that can be
    written, the largest difference from the Keras model that is accepted; see `verify.difference`.
    """

    name: str
    title: str
    suffix: str
    backend: str
    writer: str
    needs: dict
    tolerances: dict


@dataclasses.dataclass(frozen=True)
class Runner:
    """An exported file in its runtime, to be called with a batch of images.

    `call` gives a dict of outputs by their names; `shape` is that of the images, with None where
    any size will do, `dtype` the name of their type.
    """

    call: collections.abc.Callable
    shape: tuple
    dtype: str

    def __call__(self, images):
        return self.call(images)


FORMATS = {
    f.name: f
    for f in (
        Format(
            "saved_model",
            "TensorFlow SavedModel",
            "",
            "tensorflow",
            "tensorflow_files",
            {"tensorflow": "tensorflow"},
            {"float32": 1e-5, "bfloat16": 0.1},
        ),
        Format(
            "litert",
            "LiteRT",
            ".tflite",
            "tensorflow",
            "tensorflow_files",
            {"tensorflow": "tensorflow", "ai_edge_litert": "ai-edge-litert"},
            {"float32": 1e-5, "float16": 2e-3, "int8": 0.2},
        ),
        Format(
            "onnx",
            "ONNX",
            ".onnx",
            "torch",
            "torch_files",
            {
                "torch": "torch",
                "onnx": "onnx",
                "onnxscript": "onnxscript",
                "onnxruntime": "onnxruntime>=1.31",
            },
            {"float32": 1e-5},
        ),
        Format(
            "openvino",
            "OpenVINO IR",
            ".xml",
            "torch",
            "openvino_files",
            {
                "torch": "torch",
                "onnx": "onnx",
                "onnxscript": "onnxscript",
                "openvino": "openvino",
            },
            {"float32": 1e-5, "float16": 5e-3},
        ),
        Format(
            "torch",
            "PyTorch exported program",
            ".pt2",
            "torch",
            "torch_files",
            {"torch": "torch"},
            {"float32": 1e-5, "bfloat16": 0.1},
        ),
    )
}


def of(path, name=None):
    """The `Format` called `name`, or the one that the suffix of `path` tells.

    Raises:
        ValueError: there is none, or the suffix is that of another one.
    """
    suffix = pathlib.Path(path).suffix.lower()
    known = {f.suffix: f for f in FORMATS.values()}
    if name is None:
        if suffix not in known:
            raise ValueError(
                f"The suffix of `path` must be one of {sorted(filter(None, known))}, or none for a "
                f"SavedModel folder; `model.save` writes .keras. Received: path={str(path)!r}"
            )
        return known[suffix]
    if name not in FORMATS:
        raise ValueError(
            f"`format` must be None or one of {list(FORMATS)}. Received: format={name!r}"
        )
    found = FORMATS[name]
    if suffix != found.suffix:
        raise ValueError(
            f"`path` must end with {found.suffix!r} for format={name!r}. "
            f"Received: path={str(path)!r}"
            if found.suffix
            else f"`path` must be a folder without a suffix for format={name!r}. "
            f"Received: path={str(path)!r}"
        )
    return found


def check_precision(found, precision):
    """Raises ValueError unless the format can be written with `precision`."""
    if precision not in found.tolerances:
        raise ValueError(
            f"`precision` must be one of {list(found.tolerances)} for {found.title}. "
            f"Received: precision={precision!r}"
        )


def missing(found, verify, calibrated):
    """Packages that must be installed to write the format here, and to run it."""
    runtimes = {"ai_edge_litert", "onnxruntime"}
    needs = dict(found.needs)
    if calibrated:
        needs["ai_edge_quantizer"] = "ai-edge-quantizer"
    return [
        package
        for module, package in needs.items()
        if (verify or module not in runtimes) and importlib.util.find_spec(module) is None
    ]


def writer(found):
    """The module with the format's `write` and `load`."""
    return importlib.import_module(f"keras_internimage.exports.{found.writer}")


def runner(path, **options):
    """The `Runner` of an exported file; `options` are those of the runtime's `load`."""
    return writer(of(path)).load(path, of(path).name, **options)


def libraries(path):
    """The folder for the native operator's libraries that belong to an exported file."""
    path = pathlib.Path(path)
    # In a SavedModel, TensorFlow's own place for files that belong to it.
    return path.with_name(f"{path.name}.libraries") if path.suffix else path / "assets.extra"


def beside(path):
    """Files that belong to an exported file, where it has them: large weights."""
    path = pathlib.Path(path)
    weights = {".xml": path.with_suffix(".bin"), ".onnx": path.with_name(f"{path.name}.data")}
    return [weights[path.suffix]] if path.suffix in weights else []


def copy_libraries(path, backend):
    """Puts the native operator's libraries for `backend` where `libraries` says."""
    from keras_internimage.custom_ops import build

    libraries(path).mkdir(exist_ok=True)
    library = build.find_or_build(backend)
    # The kernels themselves are in libraries that this one finds beside it.
    needed = build.libraries.needed_names(cuda="-cuda" in library.name)
    for file in (library, *(library.parent / name for name in needed)):
        shutil.copy(file, libraries(path))


def load_libraries(path, backend, load):
    """Calls `load` with the operator's library of an exported file, if there is one."""
    import keras

    from keras_internimage.ops import native

    # One library can be loaded once, which the current backend may have done.
    if not (keras.backend.backend() == backend and native.loaded()):
        for library in libraries(path).glob("dcnv3_*"):
            load(str(library))


def output_names(model, argmax=False):
    """The names of a file's outputs, flattened: their keys, where the model gives a dict."""
    if argmax:
        return ["label_map"]
    if isinstance(model.output, dict):
        return sorted(model.output)
    return list(model.output_names)


def outputs(model, images, argmax=False):
    """The file's outputs, flattened: the model's, in float32 where they have half precision.

    With `argmax`, the numbers of the largest in place of the one output's last axis.
    """
    import keras

    found = keras.tree.flatten(model(images, training=False))
    half = ("float16", "bfloat16")
    found = [
        keras.ops.cast(output, "float32")
        if keras.backend.standardize_dtype(output.dtype) in half
        else output
        for output in found
    ]
    return [_argmax(*found)] if argmax else found


def _argmax(scores):
    import keras

    if keras.backend.backend() != "tensorflow":
        return keras.ops.argmax(scores, axis=-1)
    # Keras' own also sorts zeros by their sign, which makes several maps of the size of the scores.
    import tensorflow as tf

    return tf.argmax(scores, axis=-1, output_type="int32")
