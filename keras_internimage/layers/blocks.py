"""Stem, basic block and down-sampling of InternImage and FlashInternImage."""

import keras
from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import (
    CompositeLayer,
    check_image_features,
    convolution_initializer,
    halved,
    linear_initializer,
    pad_image,
    padded_shape,
    registered,
    without_remat,
)
from keras_internimage.layers.dcnv3 import DCNv3
from keras_internimage.layers.dcnv4 import DCNv4
from keras_internimage.layers.drop_path import DropPath
from keras_internimage.layers.initial_values import InitialValues

# What samples in a block, by the name that the official configuration files have for it.
OPERATORS = ("DCNv3", "DCNv4")


class _StridedConvolution(CompositeLayer):
    """What stem and down-sampling share: 3x3 convolutions of stride 2 padded by 1 on all sides."""

    def _convolution(self, filters, input_channels, name, use_bias=True):
        initializer = convolution_initializer(9 * input_channels)
        return keras.layers.Conv2D(
            filters,
            3,
            strides=2,
            padding="valid",
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer=InitialValues(initializer),
            bias_initializer=InitialValues(initializer),
            name=name,
            dtype=self.dtype_policy,
        )


@registered
class InternImageStem(_StridedConvolution):
    """Two strided 3x3 convolutions with layer norms: an image to features at a quarter its size.

    ```
    x = gelu(layer_norm(conv1(x)));   y = layer_norm(conv2(x))
    ```

    Args:
        filters: number of output channels; the first convolution has half as many.

    Input shape: `(N, H, W, channels)`. Output shape: `(N, ceil(H / 4), ceil(W / 4), filters)`.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        check_image_features(self, input_shape)
        half = self.filters // 2
        self.conv1 = self._convolution(half, input_shape[-1], "conv1")
        self.norm1 = self._layer_norm("norm1")
        self.conv2 = self._convolution(self.filters, half, "conv2")
        self.norm2 = self._layer_norm("norm2")
        middle = (input_shape[0], *map(halved, input_shape[1:3]), half)
        self.conv1.build(padded_shape(input_shape, 1, 1))
        self.norm1.build(middle)
        self.conv2.build(padded_shape(middle, 1, 1))
        self.norm2.build(self.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs):
        x = self._run(self.norm1, self._run(self.conv1, pad_image(inputs, 1, 1)))
        x = sublayers.gelu(x)
        return self._run(self.norm2, self._run(self.conv2, pad_image(x, 1, 1)))

    def compute_output_shape(self, input_shape):
        height, width = (halved(halved(size)) for size in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@registered
class InternImageDownsample(_StridedConvolution):
    """A 3x3 convolution of stride 2 without bias and a layer norm, between two stages.

    Args:
        filters: number of output channels.

    Input shape: `(N, H, W, C)`. Output shape: `(N, ceil(H / 2), ceil(W / 2), filters)`.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        check_image_features(self, input_shape)
        self.conv = self._convolution(self.filters, input_shape[-1], "conv", use_bias=False)
        self.norm = self._layer_norm("norm")
        self.conv.build(padded_shape(input_shape, 1, 1))
        self.norm.build(self.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs):
        return self._run(self.norm, self._run(self.conv, pad_image(inputs, 1, 1)))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *map(halved, input_shape[1:3]), self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@registered
class InternImageBlock(CompositeLayer):
    """InternImage's basic block: DCNv3 or DCNv4, and a two-layer MLP, each in a residual branch.

    Where the layer norms (LN) stand is a choice of the variant:

    ```
    pre-norm (default)   x += drop_path(gamma1 * dcn(LN(x)));   x += drop_path(gamma2 * mlp(LN(x)))
    post_norm            x += drop_path(gamma1 * LN(dcn(x)));   x += drop_path(gamma2 * LN(mlp(x)))
    res_post_norm        x += drop_path(LN(dcn(LN(x))));        x += drop_path(LN(mlp(LN(x))))
    ```

    with `mlp(x) = fc2(gelu(fc1(x)))`. The factors `gamma` exist where `layer_scale` is given.

    Args:
        groups: number of groups of the operator, must divide the number of channels.
        mlp_ratio: width of the hidden layer over the number of channels.
        kernel_size, offset_scale, center_feature_scale, remove_center, implementation: as for
            `keras_internimage.layers.DCNv3`, or `DCNv4`.
        dw_kernel_size: likewise; with DCNv4 None means no depthwise convolution.
        mask_activation: as for DCNv3; DCNv4 has none, whatever the default here.
        layer_scale: initial value of gamma, None for a block without.
        post_norm: normalise the branches' outputs instead of their inputs.
        res_post_norm: normalise both. Excludes `post_norm` and `layer_scale`.
        drop_path_rate: probability of dropping a branch while training, in [0, 1).
        core_op: "DCNv3" (InternImage) or "DCNv4" (FlashInternImage).
        dcn_output_bias, mlp_fc2_bias: whether the operator's output projection and the MLP's second
            layer have a bias, which they always have in blocks with DCNv3.

    Input and output shape: `(N, H, W, C)`.

    Raises:
        ValueError: `res_post_norm` together with `post_norm` or `layer_scale`, or an argument
            that the operator does not have; otherwise as DCNv3.

    Source: Wang et al., CVPR 2023, section 3.2 (basic block).
    """

    def __init__(
        self,
        groups: int,
        mlp_ratio: float = 4.0,
        kernel_size: int | tuple[int, int] = 3,
        dw_kernel_size: int | tuple[int, int] | None = None,
        offset_scale: float = 1.0,
        layer_scale: float | None = None,
        post_norm: bool = False,
        res_post_norm: bool = False,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        mask_activation: str | None = "softmax",
        drop_path_rate: float = 0.0,
        implementation: str | None = None,
        core_op: str = "DCNv3",
        dcn_output_bias: bool = True,
        mlp_fc2_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if res_post_norm and (post_norm or layer_scale is not None):
            raise ValueError(
                "`res_post_norm` must not be combined with `post_norm` or `layer_scale`. "
                f"Received: post_norm={post_norm}, layer_scale={layer_scale}"
            )
        check_operator(core_op, dcn_output_bias, mlp_fc2_bias)
        if core_op == "DCNv4" and mask_activation not in (None, "softmax"):
            raise ValueError(
                "`mask_activation` must be left out with DCNv4, whose masks have none. "
                f"Received: mask_activation={mask_activation!r}"
            )
        self.core_op = core_op
        self.dcn_output_bias = dcn_output_bias
        self.mlp_fc2_bias = mlp_fc2_bias
        self.mlp_ratio = mlp_ratio
        self.layer_scale = layer_scale
        self.post_norm = post_norm
        self.res_post_norm = res_post_norm
        self.drop_path_rate = drop_path_rate
        options = {
            "kernel_size": kernel_size,
            "dw_kernel_size": dw_kernel_size,
            "offset_scale": offset_scale,
            "center_feature_scale": center_feature_scale,
            "remove_center": remove_center,
            "implementation": implementation,
            "name": "dcn",
            "dtype": self.dtype_policy,
        }
        if core_op == "DCNv3":
            self.dcn = DCNv3(groups, mask_activation=mask_activation, **options)
        else:
            self.dcn = DCNv4(groups, output_bias=dcn_output_bias, **options)
        self.norm1 = self._layer_norm("norm1")
        self.norm2 = self._layer_norm("norm2")
        if res_post_norm:
            self.res_post_norm1 = self._layer_norm("res_post_norm1")
            self.res_post_norm2 = self._layer_norm("res_post_norm2")
        # Without a rate there is no layer, hence no random state in the model.
        self.drop_path = None
        if drop_path_rate:
            self.drop_path = DropPath(drop_path_rate, name="drop_path", dtype=self.dtype_policy)

    def build(self, input_shape):
        check_image_features(self, input_shape)
        channels = input_shape[-1]
        hidden = int(channels * self.mlp_ratio)
        self.mlp_fc1 = self._dense(hidden, "mlp_fc1", kernel_initializer=linear_initializer())
        self.mlp_fc2 = self._dense(
            channels,
            "mlp_fc2",
            kernel_initializer=linear_initializer(),
            use_bias=self.mlp_fc2_bias,
        )
        for layer in (self.norm1, self.dcn, self.norm2, self.mlp_fc1):
            layer.build(input_shape)
        self.mlp_fc2.build((*input_shape[:-1], hidden))
        if self.res_post_norm:
            self.res_post_norm1.build(input_shape)
            self.res_post_norm2.build(input_shape)
        self.gamma1 = self.gamma2 = None
        if self.layer_scale is not None:
            self.gamma1, self.gamma2 = (
                self.add_weight(
                    shape=(channels,),
                    initializer=InitialValues(
                        keras.initializers.Constant(self.layer_scale), skipped=False
                    ),
                    name=name,
                )
                for name in ("gamma1", "gamma2")
            )
        self.built = True

    def call(self, inputs, training=None):
        return self._branches(inputs, self._draw(inputs, training), training)

    def rematerialized_call(self, layer_call, *args, **kwargs):
        """Keras' hook for `keras.RematScope`: the block keeps only its input for the gradient.

        What is random is drawn before, once: Keras' own way would draw anew for the gradient.
        """
        if super().rematerialized_call(layer_call, *args, **kwargs) is layer_call:
            return layer_call
        without_remat(self._flatten_layers(include_self=False))
        return self._call_rematerialized

    def _call_rematerialized(self, inputs, training=None):
        if not training:
            return self.call(inputs, training=training)
        scales = self._draw(inputs, training)
        return sublayers.rematerialize(self, lambda x: self._branches(x, scales, training), inputs)

    def _draw(self, inputs, training):
        """The factors of the two branches, by which stochastic depth drops them."""
        if self.drop_path is None or not training:
            return None, None
        return self.drop_path.draw(inputs), self.drop_path.draw(inputs)

    def _branches(self, x, scales, training):
        branch = x if self.post_norm else self._chain(x, self.norm1, training=training)
        branch = self._run(self.dcn, branch, training=training)
        if self.post_norm or self.res_post_norm:
            branch = self._run(self.norm1 if self.post_norm else self.res_post_norm1, branch)
        x = _residual(x, branch, self.gamma1, scales[0])
        before = () if self.post_norm else (self.norm2,)
        to_hidden = (*before, self.mlp_fc1)
        from_hidden = (keras.activations.gelu, self.mlp_fc2)
        if training:  # the hidden features are kept for the gradient, what lies around them is not
            hidden = self._chain(x, *to_hidden, training=training)
            branch = self._chain(hidden, *from_hidden, training=training)
        else:
            branch = sublayers.through(self, (*to_hidden, *from_hidden), x)
        if self.post_norm or self.res_post_norm:
            branch = self._run(self.norm2 if self.post_norm else self.res_post_norm2, branch)
        return _residual(x, branch, self.gamma2, scales[1])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = (
            "mlp_ratio",
            "layer_scale",
            "post_norm",
            "res_post_norm",
            "drop_path_rate",
            "core_op",
            "dcn_output_bias",
            "mlp_fc2_bias",
        )
        of_dcn = (
            "groups",
            "kernel_size",
            "dw_kernel_size",
            "offset_scale",
            "center_feature_scale",
            "remove_center",
            "mask_activation",
            "implementation",
        )
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in own},
            **{name: getattr(self.dcn, name) for name in of_dcn},
        }


def check_operator(core_op: str, dcn_output_bias: bool, mlp_fc2_bias: bool) -> None:
    """Raise unless `core_op` is an operator whose blocks may have the biases asked for."""
    if core_op not in OPERATORS:
        raise ValueError(f"`core_op` must be one of {OPERATORS}. Received: core_op={core_op!r}")
    if core_op == "DCNv3" and not (dcn_output_bias and mlp_fc2_bias):
        raise ValueError(
            "`dcn_output_bias` and `mlp_fc2_bias` must be True with DCNv3. "
            f"Received: dcn_output_bias={dcn_output_bias}, mlp_fc2_bias={mlp_fc2_bias}"
        )


def _residual(x, branch, *factors):
    for factor in factors:
        if factor is not None:
            branch = branch * ops.cast(factor, branch.dtype)
    return x + branch
