"""The graph of InternImage: stem and stages to feature maps, feature maps to class scores."""

import keras
from keras import KerasTensor

from keras_internimage.layers import (
    AttentionPooling,
    InternImageBlock,
    InternImageDownsample,
    InternImageStem,
    PixelShuffleAdd,
)
from keras_internimage.layers.composite import (
    LAYER_NORM_EPSILON,
    convolution_initializer,
    linear_initializer,
    without_remat,
)
from keras_internimage.layers.initial_values import InitialValues, initial_scale_and_shift
from keras_internimage.layers.norms import LayerNormalization, batch_normalization
from keras_internimage.models.config import InternImageConfig

# The widths of the head of InternImage-H and -G, the same for both.
CLIP_CHANNELS = 1024
CLIP_HEADS = 16
CLIP_EMBEDDING = 768
# The widening of the last stage before average pooling, for all other variants.
HEAD_RATIO = 1.5


def feature_maps(x: KerasTensor, config: InternImageConfig, dtype=None) -> list[KerasTensor]:
    """Apply stem and stages to an image tensor; returns the feature maps of all stages.

    A stage's map is taken after its layer norm (which only some variants have) and before the
    down-sampling to the next stage.

    Args:
        x: the images, `(batch, height, width, channels)`.
        config: what stem and stages are made of.
        dtype: data type or policy of all layers.
    """
    rates = _drop_path_rates(config.drop_path_rate, sum(config.depths))
    x = InternImageStem(config.channels, name="stem", dtype=dtype)(x)
    maps = []
    for index, (depth, groups) in enumerate(zip(config.depths, config.groups, strict=True)):
        stage = index + 1
        for block in range(depth):
            x = InternImageBlock(
                groups,
                mlp_ratio=config.mlp_ratio,
                dw_kernel_size=config.dw_kernel_size,
                offset_scale=config.offset_scale,
                layer_scale=config.layer_scale,
                post_norm=config.post_norm,
                res_post_norm=config.res_post_norm,
                center_feature_scale=config.center_feature_scale,
                remove_center=config.remove_center,
                drop_path_rate=next(rates),
                implementation=config.implementation,
                core_op=config.core_op,
                dcn_output_bias=config.dcn_output_bias,
                mlp_fc2_bias=config.mlp_fc2_bias,
                name=f"stage{stage}_block{block + 1}",
                dtype=dtype,
            )(x)
            if index == 2 and block in config.norms_after_blocks:
                number = config.norms_after_blocks.index(block) + 1
                x = _layer_norm(f"stage{stage}_post_norm{number}", dtype)(x)
        if config.stages_end_with_norm:
            x = _layer_norm(f"stage{stage}_norm", dtype)(x)
        maps.append(x)
        if stage < len(config.depths):
            name = f"stage{stage}_downsample"
            x = InternImageDownsample(2 * x.shape[-1], name=name, dtype=dtype)(x)
    return maps


def classifier(
    maps: list[KerasTensor],
    classes: int,
    activation,
    drop_rate: float = 0.0,
    use_clip_projector: bool = False,
    dtype=None,
) -> KerasTensor:
    """Class scores from the feature maps of `feature_maps`; the last layer is `predictions`."""
    if use_clip_projector:
        x = _clip_head(maps, dtype)
    else:
        x = _average_head(maps[-1], dtype)
    if drop_rate:
        x = keras.layers.Dropout(drop_rate, name="head_dropout", dtype=dtype)(x)
    return keras.layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=InitialValues(linear_initializer(), skipped=False),
        bias_initializer=InitialValues("zeros"),
        name="predictions",
        dtype=dtype,
    )(x)


def apply_policy(model: keras.Model, dtype) -> None:
    """Give a model the data type policy of its layers: by it Keras decides on scaling the loss."""
    if dtype is not None:
        model.dtype_policy = keras.dtype_policies.get(dtype)


def limit_remat_to_blocks(model: keras.Model) -> None:
    """Leave what a `keras.RematScope` asks for to the blocks.

    For the norms between the blocks it would save little, and Keras 3.15 fails for its own layers
    and models in TensorFlow, and in JAX for those that take the argument `training`.
    """
    layers = model._flatten_layers()
    without_remat(layer for layer in layers if not isinstance(layer, InternImageBlock))


def _average_head(x, dtype):
    x = _pointwise(int(x.shape[-1] * HEAD_RATIO), x, "head_conv", dtype, use_bias=False)
    x = batch_normalization("head_norm", dtype)(x)
    x = keras.layers.Activation("gelu", name="head_gelu", dtype=dtype)(x)
    return keras.layers.GlobalAveragePooling2D(
        data_format="channels_last", name="avg_pool", dtype=dtype
    )(x)


def _clip_head(maps, dtype):
    coarse = _pointwise(4 * CLIP_CHANNELS, maps[3], "head_x4", dtype)
    fine = _pointwise(CLIP_CHANNELS, maps[2], "head_x3", dtype)
    x = PixelShuffleAdd(name="head_add", dtype=dtype)([coarse, fine])
    x = AttentionPooling(CLIP_HEADS, CLIP_EMBEDDING, name="attention_pool", dtype=dtype)(x)
    return _layer_norm("fc_norm", dtype)(x)


def _pointwise(filters, x, name, dtype, use_bias=True):
    initializer = convolution_initializer(x.shape[-1])
    return keras.layers.Conv2D(
        filters,
        1,
        data_format="channels_last",
        use_bias=use_bias,
        kernel_initializer=InitialValues(initializer),
        bias_initializer=InitialValues(initializer),
        name=name,
        dtype=dtype,
    )(x)


def _layer_norm(name, dtype):
    return LayerNormalization(
        epsilon=LAYER_NORM_EPSILON, name=name, dtype=dtype, **initial_scale_and_shift()
    )


def _drop_path_rates(rate, blocks):
    """Rates growing linearly from 0 at the first block to `rate` at the last."""
    return (rate * block / max(1, blocks - 1) for block in range(blocks))
