"""SavedModel and LiteRT, written by Keras' TensorFlow backend."""

import pathlib
import tempfile

import keras
import numpy as np

from keras_internimage.exports import formats
from keras_internimage.ops import tracing

INPUT = "images"


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
    ops = tracing.litert_ops if options.format == "litert" else tracing.portable_ops
    with tracing.native_ops() if options.native else ops():
        serve = _serving(model, options)
        served.serve = serve
        tf.saved_model.save(
            served, str(path), signatures={"serving_default": serve.get_concrete_function()}
        )
    if options.native:
        formats.copy_libraries(path, "tensorflow")


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
    """The file's `Runner`, by TensorFlow or LiteRT, the latter with XNNPACK or without."""
    if format == "saved_model":
        return _load_saved_model(path, threads)
    return _load_litert(path, threads, delegate)


def _load_saved_model(path, threads):
    import tensorflow as tf

    if threads is not None:  # of the whole process, and only before TensorFlow computes anything
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    formats.load_libraries(path, "tensorflow", tf.load_op_library)
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    (spec,) = serve.structured_input_signature[1].values()

    def call(images, _variables=loaded):  # they live as long as this
        return {name: output.numpy() for name, output in serve(tf.constant(images)).items()}

    return formats.Runner(call, tuple(spec.shape), spec.dtype.name)


def _load_litert(path, threads, delegate):
    from ai_edge_litert import interpreter

    kind = interpreter.OpResolverType
    runner = interpreter.Interpreter(
        model_path=str(path),
        num_threads=threads,
        experimental_op_resolver_type=kind.AUTO
        if delegate
        else kind.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    ).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    shape = tuple(None if size < 0 else int(size) for size in details["shape_signature"])
    return formats.Runner(
        lambda images: runner(**{name: images}), shape, np.dtype(details["dtype"]).name
    )
