"""OpenVINO IR, from ONNX, whose `DeformConv` OpenVINO cannot read."""

import pathlib
import tempfile

from keras_internimage.exports import formats, torch_files


def write(model, path, options):
    """Writes the model as `path` (.xml) and the file of weights beside it (.bin)."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx = pathlib.Path(folder) / "model.onnx"
        torch_files.write_onnx(model, onnx, options, deform_conv=False, openvino=True)
        converted = openvino.convert_model(str(onnx))
        if options.labels is not None:
            converted.set_rt_info("\n".join(options.labels), ["model_info", "labels"])
        openvino.save_model(converted, str(path), compress_to_fp16=options.precision == "float16")


def load(path, format, threads=None, precision="f32"):
    """The file's `Runner`, by OpenVINO's CPU plugin; None for the precision it chooses itself."""
    import openvino

    settings = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    core = openvino.Core()
    model = core.read_model(str(path))
    # A compiled output also has names of what it was merged with.
    names = [
        output.get_any_name() if output.names else f"output_{i}"
        for i, output in enumerate(model.outputs)
    ]
    compiled = core.compile_model(model, "CPU", settings)

    def call(images):
        found = compiled(images)
        return {name: found[output] for name, output in zip(names, compiled.outputs, strict=True)}

    (images,) = compiled.inputs
    shape = tuple(d.get_length() if d.is_static else None for d in images.partial_shape)
    return formats.Runner(call, shape, images.element_type.to_dtype().name)
