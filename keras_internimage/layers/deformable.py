"""What the modules of DCNv3 and DCNv4 share: their geometry, and the choice of what computes it."""

import keras

from keras_internimage.layers.composite import CompositeLayer, check_image_features
from keras_internimage.layers.initial_values import InitialValues
from keras_internimage.ops import dispatch
from keras_internimage.ops.geometry import DCNv3Geometry, as_pair


class DeformableConvolution(CompositeLayer):
    """A layer around the operator `keras_internimage.ops.dcnv3`.

    Attributes:
        geometry: `DCNv3Geometry`; its padding keeps the centres of the sampling grid where the
            strided positions are.
        mask_activation: what the masks go through: "softmax", "sigmoid" or None.
    """

    # Of `get_config`, and those of a subclass.
    arguments: tuple[str, ...] = (
        "groups",
        "kernel_size",
        "dw_kernel_size",
        "strides",
        "dilation_rate",
        "offset_scale",
        "center_feature_scale",
        "remove_center",
        "implementation",
    )
    mask_activation: str | None = None

    def __init__(
        self,
        groups,
        kernel_size,
        dw_kernel_size,
        strides,
        dilation_rate,
        offset_scale,
        center_feature_scale,
        remove_center,
        implementation,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.groups = groups
        self.kernel_size = as_pair("kernel_size", kernel_size, odd=True)
        self.dw_kernel_size = None
        if dw_kernel_size is not None:
            self.dw_kernel_size = as_pair("dw_kernel_size", dw_kernel_size, odd=True)
        self.strides = as_pair("strides", strides)
        self.dilation_rate = as_pair("dilation_rate", dilation_rate)
        self.center_feature_scale = bool(center_feature_scale)
        self.remove_center = bool(remove_center)
        self.implementation = implementation
        if self.center_feature_scale and self.strides != (1, 1):
            raise ValueError(
                "`center_feature_scale` adds the input to the output and must have strides of 1. "
                f"Received: strides={self.strides}"
            )
        # The centres of the sampling grid lie where the depthwise convolution looks.
        (step_y, step_x), (rows, columns) = self.dilation_rate, self.kernel_size
        self.padding = (step_y * (rows - 1) // 2, step_x * (columns - 1) // 2)
        self.geometry = DCNv3Geometry(
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            offset_scale=offset_scale,
            remove_center=self.remove_center,
        )
        self.offset_scale = self.geometry.offset_scale

    def _check_input(self, input_shape):
        """The number of input channels, checked."""
        check_image_features(self, input_shape)
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(
                "`groups` must divide the number of input channels. "
                f"Received: groups={self.groups}, input channels={channels}"
            )
        return channels

    @property
    def _dw_padding(self):
        return tuple((k - 1) // 2 for k in self.dw_kernel_size)

    def _depthwise_convolution(self, name, initializer):
        """The convolution before the offsets, to the size of the output."""
        return keras.layers.DepthwiseConv2D(
            self.dw_kernel_size,
            strides=self.strides,
            padding="same" if self.strides == (1, 1) else "valid",
            data_format="channels_last",
            depthwise_initializer=InitialValues(initializer),
            bias_initializer=InitialValues(initializer),
            name=name,
            dtype=self.dtype_policy,
        )

    @property
    def supports_jit(self):
        """Whether Keras should compile models with XLA where `jit_compile` leaves it the choice.

        XLA in TensorFlow cannot compile the native kernels; without it the model is faster.
        """
        name = "native" if self.implementation is None else self.implementation
        return self._supports_jit and not (
            keras.backend.backend() == "tensorflow" and name == "native" and dispatch.runs(name)
        )

    @supports_jit.setter
    def supports_jit(self, value):
        self._supports_jit = value

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self._output_size(input_shape), input_shape[-1])

    def _output_size(self, input_shape):
        return tuple(
            None if size is None else (size - 1) // stride + 1
            for size, stride in zip(input_shape[1:3], self.strides, strict=True)
        )

    def get_config(self):
        return {**super().get_config(), **{name: getattr(self, name) for name in self.arguments}}


def set_implementation(model: keras.layers.Layer, implementation: str | None) -> None:
    """Sets which implementation of the operator a model's DCNv3 and DCNv4 layers use.

    The functions that the model has traced for `fit`, `predict` and `evaluate` are forgotten, so
    that the choice holds from the next call on.

    Args:
        model: a Keras model or layer, whose nested ones count.
        implementation: None for the fastest that can run, or a name.

    Raises:
        ValueError: the name is unknown.
    """
    dispatch.check_name(implementation)
    for layer in model._flatten_layers():
        if isinstance(layer, DeformableConvolution):
            layer.implementation = implementation
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
