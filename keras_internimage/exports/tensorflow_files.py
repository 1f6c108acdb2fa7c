"""SavedModel and LiteRT, written by Keras' TensorFlow backend."""

import contextlib
import io
import pathlib
import tempfile
import warnings
import zipfile

import numpy as np

from keras_internimage.exports import formats
from keras_internimage.ops import tracing

INPUT = "images"
LABELS = "labels.txt"


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
        found = formats.outputs(model, images, options.argmax)
        return dict(zip(formats.output_names(model, options.argmax), found, strict=True))

    return serve


def _write_saved_model(model, path, options):
    import tensorflow as tf

    # Not Keras' own way, which writes the weights twice.
    served = tf.Module()
    kind = "litert" if options.format == "litert" else "portable"
    with tracing.operators("native" if options.native else kind):
        # Not the function that can be traced anew: TensorFlow does so when it writes it.
        served.serve = function = _serving(model, options).get_concrete_function()
        served.variables_ = list(function.graph.variables)
        tf.saved_model.save(served, str(path), signatures={"serving_default": function})
    if options.labels is not None and options.format == "saved_model":
        folder = formats.libraries(path)
        folder.mkdir(exist_ok=True)
        (folder / LABELS).write_text("\n".join(options.labels))
    if options.native:
        formats.copy_libraries(path, "tensorflow")


def _write_litert(model, path, options):
    import tensorflow as tf

    # By way of a SavedModel: the converter loses the values of variables it is given directly.
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, folder, options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if options.precision != "float32" and options.calibration is None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if options.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
    if options.calibration is not None:
        content = _quantised(content, options)
    pathlib.Path(path).write_bytes(content)
    if options.labels is not None:
        # LiteRT's own place for files that belong to a model: an archive after the model.
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(LABELS, "\n".join(options.labels))


def _quantised(content, options):
    """A float32 file with int8 products and convolutions, between scales from the images.

    TensorFlow's converter would quantise all: sampling positions too, which have to be exact to a
    fraction of a pixel, and the scores would have nothing to do with the model's.
    """
    from ai_edge_quantizer import qtyping, quantizer

    found = quantizer.Quantizer(content)
    names = qtyping.TFLOperationName
    for name in (names.FULLY_CONNECTED, names.CONV_2D, names.DEPTHWISE_CONV_2D):
        found.add_static_config(
            regex=".*", operation_name=name, activation_num_bits=8, weight_num_bits=8
        )
    size = options.batch_size or 1
    images = options.calibration[: len(options.calibration) // size * size]
    batches = images.reshape(-1, size, *images.shape[1:])
    said = io.StringIO()  # reports and progress of steps of a second
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        scales = found.calibrate({"serving_default": [{INPUT: batch} for batch in batches]})
        return bytes(found.quantize(scales).quantized_model)


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
