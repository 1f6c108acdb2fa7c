"""SavedModel and LiteRT, written by Keras' TensorFlow backend."""

import pathlib
import shutil
import tempfile

import keras
import numpy as np

from keras_internimage.exports import formats
from keras_internimage.ops import dispatch, tracing

INPUT = "images"
# TensorFlow's own place for files that belong to a SavedModel.
LIBRARIES = "assets.extra"


def write(model, path, options):
    """Writes `model` in the format of `options` to `path`."""
    {"saved_model": _write_saved_model, "litert": _write_litert}[options.format](
        model, path, options
    )


def _serving(model, options):
    """A `tf.function` from a batch of images to a dict of outputs by their names."""
    import tensorflow as tf

    shape = (options.batch_size, *model.input_shape[1:])
    spec = tf.TensorSpec(shape, model.inputs[0].dtype, name=INPUT)

    @tf.function(input_signature=[spec], autograph=False)
    def serve(images):
        outputs = keras.tree.flatten(model(images, training=False))
        return dict(zip(formats.output_names(model), outputs, strict=True))

    return serve


def _write_saved_model(model, path, options):
    import tensorflow as tf

    # Not Keras' own way, which writes the weights twice.
    served = tf.Module()
    served.variables_ = [v.value for v in model.variables]
    with tracing.native_ops() if options.native else tracing.portable_ops():
        serve = _serving(model, options)
        served.serve = serve
        tf.saved_model.save(
            served, str(path), signatures={"serving_default": serve.get_concrete_function()}
        )
    if options.native:
        from keras_internimage.custom_ops import build

        folder = pathlib.Path(path) / LIBRARIES
        folder.mkdir(exist_ok=True)
        library = build.find_or_build("tensorflow")
        # The kernels themselves are in a library that this one finds beside it.
        for file in (library, *library.parent.glob("libdcnv3_core.*")):
            shutil.copy(file, folder)


def _write_litert(model, path, options):
    import tensorflow as tf

    # By way of a SavedModel: the converter loses the values of variables it is given directly.
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, folder, options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if options.precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if options.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if options.calibration is not None:
            images = np.asarray(options.calibration, "float32")
            converter.representative_dataset = lambda: ([image[None]] for image in images)
        content = converter.convert()
    pathlib.Path(path).write_bytes(content)


def load(path, format, threads=None, delegate=True):
    """A function from a batch of images to the list of outputs, computed by the file's runtime."""
    if format == "saved_model":
        return _load_saved_model(path)
    return _load_litert(path, threads, delegate)


def _load_saved_model(path):
    import tensorflow as tf

    # TensorFlow wants a library loaded once, which the current backend may have done.
    if not (keras.backend.backend() == "tensorflow" and dispatch.runs("native")):
        for library in (pathlib.Path(path) / LIBRARIES).glob("dcnv3_*"):
            tf.load_op_library(str(library))
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    names = list(serve.structured_outputs)

    def call(images):
        found = serve(tf.constant(images))
        return {name: found[name].numpy() for name in names}

    call.keeps = loaded  # its variables live as long as this
    return call


def _load_litert(path, threads, delegate):
    from ai_edge_litert import interpreter

    kind = interpreter.OpResolverType
    found = interpreter.Interpreter(
        model_path=str(path),
        num_threads=threads,
        experimental_op_resolver_type=kind.AUTO
        if delegate
        else kind.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner = found.get_signature_runner()
    (name,) = runner.get_input_details()
    return lambda images: runner(**{name: images})
