"""The DCNv4 module: DCNv3's without what bounds its masks and most of its offset branch."""

from keras import ops

from keras_internimage.layers.composite import (
    convolution_initializer,
    pad_image,
    padded_shape,
    registered,
)
from keras_internimage.layers.deformable import DeformableConvolution
from keras_internimage.ops.dcnv3 import run


@registered
class DCNv4(DeformableConvolution):
    """Deformable convolution v4, the core of FlashInternImage.

    ```
    v      = value_proj(x)                                    (N, H,  W,  C)
    u      = depthwise_conv(x), or x itself                   (N, Ho, Wo, C)
    offset = offset_mask(u)[..., :2 G P]                      (x, y) pairs, in pixels
    mask   = offset_mask(u)[..., 2 G P:]
    y[g]   = sum over p of mask[g, p] * v[g] sampled at the p-th point
    output = output_proj(y)                                   (N, Ho, Wo, C)
    ```

    with G groups of D = C / G channels and P points a group, sampled as in DCNv3. What differs
    from `keras_internimage.layers.DCNv3`:

    - Nothing bounds the masks: no softmax, any number, also negative ones.
    - No layer norm and no GELU before the offsets; the depthwise convolution is optional.
    - `center_feature_scale` depends on what was sampled, `s = sigmoid(linear(y))`, not on `u`.
    - The output projection may lack its bias, and both projections may be absent.
    - Masks start at zero, with the offsets: a new layer gives the bias of its output projection,
      and at first only the masks learn. DCNv3 starts as a mean filter.

    Args:
        groups: G, must divide the number of input channels.
        kernel_size: extent of the sampling grid, an odd int or a pair (height, width) of them.
        dw_kernel_size: odd extent of the depthwise convolution, None for no convolution.
        strides: int or pair. The offsets are predicted at the strided positions.
        dilation_rate: spacing of the sampling grid in pixels, int or pair.
        offset_scale: factor of the grid and of the learned offsets.
        center_feature_scale: blend the sampled features with the projected input,
            `y * (1 - s) + v * s` with an `s` for each group. Needs stride 1.
        remove_center: leave out the central sampling point (P is one less).
        output_bias: whether the output projection has a bias.
        without_pointwise: leave out both projections: `v = x`, and y is the output.
        implementation: which implementation of the operator runs; None takes the fastest
            that can run. See `keras_internimage.ops.dcnv3`.

    Input shape: `(N, H, W, C)`, channels last whatever Keras' global setting.

    Output shape: `(N, Ho, Wo, C)` with `Ho = (H - 1) // stride + 1`.

    Raises:
        ValueError: an argument or the input's shape is not as said above.

    The units of `offset_mask` are in DCNv3's order, offsets before masks, and no more than
    needed; `keras_internimage.ops.dcnv4` describes the official order, which converted
    checkpoints are brought out of. The official kernel samples some pixels of the second and
    further images of a batch from the image before; here images do not depend on each other.

    Source: Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator
    for Vision Applications", CVPR 2024, section 3.
    """

    arguments = (*DeformableConvolution.arguments, "output_bias", "without_pointwise")

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
        output_bias: bool = True,
        without_pointwise: bool = False,
        implementation: str | None = None,
        **kwargs,
    ):
        super().__init__(
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
        )
        self.output_bias = bool(output_bias)
        self.without_pointwise = bool(without_pointwise)

    def build(self, input_shape):
        channels = self._check_input(input_shape)
        features = (*input_shape[:1], *self._output_size(input_shape), channels)
        self.value_proj = self.offset_mask_dw = self.center_scale = self.output_proj = None
        if not self.without_pointwise:
            self.value_proj = self._dense(channels, "value_proj")
            self.value_proj.build(input_shape)
        if self.dw_kernel_size is not None:
            height, width = self.dw_kernel_size
            initializer = convolution_initializer(height * width)
            self.offset_mask_dw = self._depthwise_convolution("offset_mask_dw", initializer)
            self.offset_mask_dw.build(padded_shape(input_shape, *self._dw_padding))
        # In files, paths are made of names: DCNv3's are others, as their weights are.
        self.offset_mask = self._dense(
            3 * self.groups * self.geometry.points, "offset_mask_proj", kernel_initializer="zeros"
        )
        self.offset_mask.build(features)
        if self.center_feature_scale:
            self.center_scale = self._dense(
                self.groups, "center_feature_scale", kernel_initializer="zeros"
            )
            self.center_scale.build(features)
        if not self.without_pointwise:
            self.output_proj = self._dense(channels, "output_proj", use_bias=self.output_bias)
            self.output_proj.build(features)
        self.built = True

    def call(self, inputs, training=None):
        value, offset, outputs = self._sample(inputs)
        if self.center_feature_scale:
            scale = ops.repeat(self._scale(outputs), value.shape[-1] // self.groups, axis=-1)
            outputs = outputs + (value - outputs) * scale
        return outputs if self.output_proj is None else self._run(self.output_proj, outputs)

    def predict_points(self, inputs, training=None):
        """What the operator is given beside the projected input, for a layer that has been built.

        Returns:
            `(offset, None, scale)`: offsets and behind them the masks in one tensor
            `(N, Ho, Wo, 3 G P)`; `scale (N, Ho, Wo, G)`, the share of the projected input in the
            output, None without `center_feature_scale`.
        """
        if not self.center_feature_scale:
            return self._offset_and_mask(inputs), None, None
        _, offset, outputs = self._sample(inputs)
        return offset, None, self._scale(outputs)

    def _sample(self, inputs):
        """The projected input, offsets with masks, and what the operator makes of them."""
        value = inputs if self.value_proj is None else self._run(self.value_proj, inputs)
        offset = self._offset_and_mask(inputs)
        return value, offset, run(value, offset, None, self.geometry, None, self.implementation)

    def _offset_and_mask(self, inputs):
        if self.offset_mask_dw is None:
            rows, columns = self.strides
            features = inputs if self.strides == (1, 1) else inputs[:, ::rows, ::columns]
        else:
            if self.strides != (1, 1):
                inputs = pad_image(inputs, *self._dw_padding)
            features = self._run(self.offset_mask_dw, inputs)
        return self._run(self.offset_mask, features)

    def _scale(self, outputs):
        return ops.sigmoid(self._run(self.center_scale, outputs))
