"""The native DCNv3 in TensorFlow: custom operations, and their gradients' registration.

The gradient is an operation too, and its own gradient that of the portable operator.
"""

import functools
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config, kernels

from keras_internimage.ops import portable
from keras_internimage.ops.geometry import DCNv3Geometry
from keras_internimage.ops.native import convolution_tensorflow as convolution
from keras_internimage.ops.native import cuda
from keras_internimage.ops.native import detection_tensorflow as detection
from keras_internimage.ops.portable.tensorflow import device_type, in_xla

_ATTRIBUTES = (
    "kernel_size", "strides", "padding", "dilation_rate", "groups", "offset_scale",
    "remove_center", "softmax",
)  # fmt: skip
_loaded: dict[str, Any] = {}


def load(path):
    """Loads the operations and registers the gradient, once."""
    try:
        operations = tf.load_op_library(str(path))
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
    _loaded["operations"] = operations
    registered = kernels.get_registered_kernels_for_op("KerasInternimageDcnv3").kernel
    if any(kernel.device_type == "GPU" for kernel in registered):
        cuda.load(path)
    tf.RegisterGradient("KerasInternimageDcnv3")(_gradient)
    tf.RegisterGradient("KerasInternimageDcnv3Backward")(_gradient_of_gradient)
    detection.register(operations)
    convolution.register(operations)


def why_not(request):
    """None, or why the kernels cannot run the request."""
    device = device_type() if request is None else request.device
    if device not in ("cpu", "cuda"):
        return f"the library was built without kernels for {device!r} devices"
    if request is not None and in_xla():
        return "XLA compiles the call, and knows no kernel of a custom operation"
    if device == "cuda":
        return (request and cuda.refused(request)) or why_not_cuda()
    return None


@functools.cache
def why_not_cuda(index=None):
    """None, or why they cannot run on GPUs; all must do, for it is not known which one computes."""
    return cuda.why_not("tensorflow", _capabilities)


def _capabilities():
    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    return [told["compute_capability"] for told in details if "compute_capability" in told]


def call(inputs, offset_mask, geometry, softmax):
    """The operator for tensors of one dtype."""
    high = float(np.float32(geometry.offset_scale))
    return _loaded["operations"].keras_internimage_dcnv3(
        inputs=inputs,
        offset_mask=offset_mask,
        kernel_size=geometry.kernel_size,
        strides=geometry.strides,
        padding=geometry.padding,
        dilation_rate=geometry.dilation_rate,
        groups=geometry.groups,
        offset_scale=[high, geometry.offset_scale - high],
        remove_center=geometry.remove_center,
        softmax=softmax,
    )


def _gradient(op, grad_output):
    return _loaded["operations"].keras_internimage_dcnv3_backward(
        grad_output=grad_output,
        inputs=op.inputs[0],
        offset_mask=op.inputs[1],
        deterministic=config.is_op_determinism_enabled(),
        **{name: op.get_attr(name) for name in _ATTRIBUTES},
    )


def _gradient_of_gradient(op, *upstreams):
    attributes = {name: op.get_attr(name) for name in _ATTRIBUTES}
    activation = "softmax" if attributes.pop("softmax") else None
    attributes["offset_scale"] = sum(attributes["offset_scale"])
    geometry = DCNv3Geometry(**attributes)
    grad_output, *tensors = op.inputs
    with tf.GradientTape() as outer:
        outer.watch(op.inputs)
        with tf.GradientTape() as inner:
            inner.watch(tensors)
            output = portable.differentiable(*tensors, None, geometry, activation)
        grads = inner.gradient(output, tensors, grad_output)
    return outer.gradient(grads, list(op.inputs), list(upstreams), tf.UnconnectedGradients.ZERO)
