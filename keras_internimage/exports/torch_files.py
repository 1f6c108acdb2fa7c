"""ONNX and `torch.export` programs, written by Keras' PyTorch backend."""

import re

import numpy as np

from keras_internimage.exports import formats, torch_program
from keras_internimage.ops import tracing

INPUT = "images"
OPSET = 20


def write(model, path, options):
    """Writes `model` in the format of `options` to `path`."""
    if options.format == "torch":
        return _write_program(model, path, options)
    return write_onnx(model, path, options, options.deform_conv)


def _write_program(model, path, options):
    import torch

    with tracing.operators("native" if options.native else "program"):
        program = torch_program.trace(model, options)
    extra = None if options.labels is None else {"labels.txt": "\n".join(options.labels)}
    torch.export.save(program, str(path), extra_files=extra)
    if options.native:
        formats.copy_libraries(path, "torch")


def write_onnx(model, path, options, deform_conv, openvino=False):
    """Writes ONNX, with DCNv3 as a `DeformConv` or by gathers; `openvino` says who reads it."""
    import onnx
    import torch
    from onnxscript import opset20 as op

    from keras_internimage.exports import onnx_detection

    # Defines the operation also where the model has no DCNv3.
    from keras_internimage.ops import deform_conv as definition

    def translation(inputs, offset, mask, kernel_size, strides, padding, dilation_rate, groups):
        channels = inputs.shape[1]
        ones = np.ones((channels, 1, *kernel_size), "float32")
        return op.DeformConv(
            inputs,
            op.Constant(value=onnx.numpy_helper.from_array(ones)),
            offset,
            op.Constant(value=onnx.numpy_helper.from_array(np.zeros(channels, "float32"))),
            mask,
            kernel_shape=list(kernel_size),
            strides=list(strides),
            pads=[*padding, *padding],
            dilations=list(dilation_rate),
            group=channels,
            offset_group=groups,
        )

    table = onnx_detection.translations(openvino)
    with tracing.operators("deform_conv" if deform_conv else "onnx"):
        program = torch_program.trace(model, options)
    if deform_conv:
        table[definition.operation()] = translation
    with torch_program.quiet():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=formats.output_names(model, options.argmax),
            custom_translation_table=table,
            verbose=False,
        )
        _describe(written.model, options)
        written.save(str(path))  # with the weights in a file beside it if they are above 2 GB
    onnx.checker.check_model(str(path), full_check=True)


def _describe(model, options):
    """Names the unknown sizes, and the classes where they are known."""
    (images,) = model.graph.inputs
    names = {
        str(size.value): name
        for size, name in zip(images.shape, ("batch", "height", "width", ""), strict=True)
        if not isinstance(size, int) and name
    }
    old = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    values = [*model.graph.inputs, *(o for node in model.graph.all_nodes() for o in node.outputs)]
    for value in values if names else ():
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = old.sub(lambda found: names[found[0]], str(size.value))
    if options.labels is not None:
        model.metadata_props["labels"] = "\n".join(options.labels)


def load(path, format, threads=None):
    """The file's `Runner`, by PyTorch or ONNX Runtime."""
    return {"torch": _load_program, "onnx": _load_onnx}[format](path, threads)


def _load_program(path, threads):
    import torch

    if threads is not None:  # of the whole process
        torch.set_num_threads(threads)
    formats.load_libraries(path, "torch", torch.ops.load_library)
    program = torch.export.load(str(path))
    module = program.module()
    (name,) = program.graph_signature.user_inputs
    images = next(node for node in program.graph.nodes if node.name == name).meta["val"]
    shape = tuple(size if isinstance(size, int) else None for size in images.shape)

    def call(images):
        with torch.no_grad():
            outputs = module(torch.from_numpy(images))
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return {f"output_{i}": output.numpy() for i, output in enumerate(outputs)}

    return formats.Runner(call, shape, str(images.dtype).removeprefix("torch."))


def _load_onnx(path, threads):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if threads is not None:
        settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (images,) = session.get_inputs()
    shape = tuple(size if isinstance(size, int) else None for size in images.shape)
    dtype = {"tensor(float)": "float32"}.get(images.type, images.type[len("tensor(") : -1])
    return formats.Runner(
        lambda images_: dict(zip(names, session.run(names, {images.name: images_}), strict=True)),
        shape,
        dtype,
    )
