"""ONNX and `torch.export` programs, written by Keras' PyTorch backend."""

import contextlib
import logging
import warnings

import keras
import numpy as np

from keras_internimage.exports import formats
from keras_internimage.ops import tracing

INPUT = "images"
OPSET = 20


def write(model, path, options):
    """Writes `model` in the format of `options` to `path`."""
    if options.format == "torch":
        return _write_program(model, path, options)
    return write_onnx(model, path, options, options.deform_conv)


def _program(model, options):
    """The model as a `torch.export` program from images to a tuple of outputs."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return tuple(keras.tree.flatten(self.model(images, training=False)))

    # An example; PyTorch would take an unknown size of 1 for a known one.
    sizes = [64 if size is None else size for size in model.input_shape[1:]]
    images = torch.zeros(
        (options.batch_size or 2, *sizes),
        dtype=getattr(torch, keras.backend.standardize_dtype(model.inputs[0].dtype)),
        device=model.variables[0].value.device,
    )
    unknown = {} if options.batch_size else {0: torch.export.Dim("batch")}
    for axis, size in enumerate(model.input_shape[1:3], start=1):
        if size is None:
            unknown[axis] = torch.export.Dim.AUTO
    with torch.no_grad(), _quiet():
        return torch.export.export(
            Module().eval(), (images,), dynamic_shapes=(unknown,), strict=False
        )


def _write_program(model, path, options):
    import torch

    with tracing.native_ops() if options.native else tracing.portable_ops():
        program = _program(model, options)
    torch.export.save(program, str(path))


def write_onnx(model, path, options, deform_conv):
    """Writes ONNX, with DCNv3 as a `DeformConv` or by gathers."""
    import onnx
    import torch
    from onnxscript import opset20 as op

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

    table = {}
    with tracing.deform_conv_ops() if deform_conv else tracing.portable_ops():
        program = _program(model, options)
    if deform_conv:
        table[torch.ops.keras_internimage.deform_conv.default] = translation
    with _quiet():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=formats.output_names(model),
            custom_translation_table=table,
            verbose=False,
        )
        written.save(str(path))
    onnx.checker.check_model(str(path), full_check=True)
    _describe(path, model, options)


def _describe(path, model, options):
    """Names the sizes, and the classes where they are known."""
    import onnx

    proto = onnx.load(str(path))
    names = ("batch", "height", "width")
    for dimension, name in zip(
        proto.graph.input[0].type.tensor_type.shape.dim, names, strict=False
    ):
        if dimension.dim_param:
            old = dimension.dim_param
            for value in (*proto.graph.input, *proto.graph.output):
                for other in value.type.tensor_type.shape.dim:
                    if other.dim_param == old:
                        other.dim_param = name
    if options.labels is not None:
        entry = proto.metadata_props.add()
        entry.key, entry.value = "labels", "\n".join(options.labels)
    onnx.save(proto, str(path))


@contextlib.contextmanager
def _quiet():
    """Without the exporter's remarks about libraries that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def load(path, format, threads=None):
    """A function from a batch of images to the outputs by name, computed by the file's runtime."""
    if format == "torch":
        return _load_program(path)
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if threads is not None:
        settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(images):
        found = session.run(names, {session.get_inputs()[0].name: images})
        return dict(zip(names, found, strict=True))

    return call


def _load_program(path):
    import torch

    module = torch.export.load(str(path)).module()

    def call(images):
        with torch.no_grad():
            outputs = module(torch.from_numpy(images))
        return {f"output_{i}": output.numpy() for i, output in enumerate(outputs)}

    return call
