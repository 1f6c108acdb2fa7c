"""The DCNv3 module: projections, the branch that predicts sampling points, the operator."""

import keras
from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import (
    convolution_initializer,
    pad_image,
    padded_shape,
    registered,
)
from keras_internimage.layers.deformable import DeformableConvolution
from keras_internimage.ops.dcnv3 import MASK_ACTIVATIONS as OF_OPERATOR
from keras_internimage.ops.dcnv3 import run

# The sigmoid is the layer's own; the operator computes the others.
MASK_ACTIVATIONS = (*OF_OPERATOR, "sigmoid")


@registered
class DCNv3(DeformableConvolution):
    """Deformable convolution v3, the core of InternImage.

    ```
    v      = input_proj(x)                                    (N, H,  W,  C)
    u      = gelu(layer_norm(depthwise_conv(x)))              (N, Ho, Wo, C)
    offset = offset_mask(u)[..., :2 G P]                      (x, y) pairs, in pixels
    mask   = softmax over the P points of offset_mask(u)[..., 2 G P:]
    y[g]   = sum over p of mask[g, p] * v[g] sampled at the p-th point
    output = output_proj(y)                                   (N, Ho, Wo, C)
    ```

    With G groups of D = C / G channels and P = kernel height * kernel width sampling points
    a group. Sampling is bilinear, with zeros outside the image; `keras_internimage.ops.dcnv3`
    gives the positions. Freshly initialised offsets and masks are zero, so that a new layer
    starts as a mean filter.

    Args:
        groups: G, must divide the number of input channels.
        kernel_size: extent of the sampling grid, an odd int or a pair (height, width) of them.
        dw_kernel_size: odd extent of the depthwise convolution, `kernel_size` if None.
        strides: int or pair. The offsets are predicted at the strided positions.
        dilation_rate: spacing of the sampling grid in pixels, int or pair.
        offset_scale: factor of the grid and of the learned offsets.
        center_feature_scale: blend the sampled features with the projected input,
            `y * (1 - s) + v * s` with `s = sigmoid(linear(u))` for each group. Needs stride 1.
        remove_center: leave out the central sampling point (P is one less).
        mask_activation: "softmax" (DCNv3), "sigmoid" (as in DCNv2) or None.
        implementation: which implementation of the operator runs; None takes the fastest
            that can run. See `keras_internimage.ops.dcnv3`.

    Input shape: `(N, H, W, C)`, channels last whatever Keras' global setting.

    Output shape: `(N, Ho, Wo, C)` with `Ho = (H - 1) // stride + 1`.

    Raises:
        ValueError: an argument or the input's shape is not as said above.

    Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with
    Deformable Convolutions", CVPR 2023, section 3.1.
    """

    arguments = (*DeformableConvolution.arguments, "mask_activation")

    def __init__(
        self,
        groups: int,
        kernel_size: int | tuple[int, int] = 3,
        dw_kernel_size: int | tuple[int, int] | None = None,
        strides: int | tuple[int, int] = 1,
        dilation_rate: int | tuple[int, int] = 1,
        offset_scale: float = 1.0,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        mask_activation: str | None = "softmax",
        implementation: str | None = None,
        **kwargs,
    ):
        super().__init__(
            groups,
            kernel_size,
            kernel_size if dw_kernel_size is None else dw_kernel_size,
            strides,
            dilation_rate,
            offset_scale,
            center_feature_scale,
            remove_center,
            implementation,
            **kwargs,
        )
        self.mask_activation = mask_activation
        if mask_activation not in MASK_ACTIVATIONS:
            raise ValueError(
                f"`mask_activation` must be one of {MASK_ACTIVATIONS}. "
                f"Received: mask_activation={mask_activation!r}"
            )

    def build(self, input_shape):
        channels = self._check_input(input_shape)
        self.input_proj = self._dense(channels, "input_proj")
        self.output_proj = self._dense(channels, "output_proj")
        height, width = self.dw_kernel_size
        initializer = convolution_initializer(height * width)
        self.dw_conv = self._depthwise_convolution("dw_conv", initializer)
        self.dw_norm = self._layer_norm("dw_norm")
        self.offset_mask = self._dense(
            3 * self.groups * self.geometry.points, "offset_mask", kernel_initializer="zeros"
        )
        features = (*input_shape[:1], *self._output_size(input_shape), channels)
        self.input_proj.build(input_shape)
        self.dw_conv.build(padded_shape(input_shape, *self._dw_padding))
        for layer in (self.dw_norm, self.offset_mask, self.output_proj):
            layer.build(features)
        if self.center_feature_scale:
            self.center_scale = self._dense(
                self.groups, "center_feature_scale", kernel_initializer="zeros"
            )
            self.center_scale.build(features)
        self.built = True

    def call(self, inputs, training=None):
        value = self._run(self.input_proj, inputs)
        offset, mask, scale = self.predict_points(inputs, training=training)
        activation = self.mask_activation if self.mask_activation in OF_OPERATOR else None
        outputs = run(value, offset, mask, self.geometry, activation, self.implementation)
        if self.center_feature_scale:
            scale = ops.repeat(scale, value.shape[-1] // self.groups, axis=-1)
            outputs = outputs + (value - outputs) * scale
        return self._run(self.output_proj, outputs)

    def predict_points(self, inputs, training=None):
        """What the operator is given beside the projected input, for a layer that has been built.

        Returns:
            `(offset, mask, scale)`: `offset (N, Ho, Wo, 2 G P)` and `mask (N, Ho, Wo, G P)`, or
            where `mask` is None both in one tensor `(N, Ho, Wo, 3 G P)`, the masks last and, with
            `mask_activation="softmax"`, before their softmax; `scale (N, Ho, Wo, G)`, the share
            of the projected input in the output, None without `center_feature_scale`.
        """
        features = inputs
        if self.strides != (1, 1):
            features = pad_image(inputs, *self._dw_padding)
        features = self._run(self.dw_conv, features)
        to_branch = (self.dw_norm, keras.activations.gelu)
        scale = None
        if self.center_feature_scale:
            # Two matmuls read the features, which are kept.
            features, to_branch = sublayers.through(self, to_branch, features), ()
            scale = ops.sigmoid(self._run(self.center_scale, features))
        offset = self._chain(features, *to_branch, self.offset_mask, training=training)
        if self.mask_activation == "sigmoid":
            split = 2 * self.groups * self.geometry.points
            return offset[..., :split], ops.sigmoid(offset[..., split:]), scale
        return offset, None, scale
