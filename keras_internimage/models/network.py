"""The graph of InternImage: stem and stages to feature maps, feature maps to class scores."""

import keras

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

# The widths of the head of InternImage-H and -G, the same for both.
CLIP_CHANNELS = 1024
CLIP_HEADS = 16
CLIP_EMBEDDING = 768
# The widening of the last stage before average pooling, for all other variants.
HEAD_RATIO = 1.5


def feature_maps(
    x,
    *,
    channels,
    depths,
    groups,
    mlp_ratio=4.0,
    layer_scale=None,
    offset_scale=1.0,
    post_norm=False,
    res_post_norm=False,
    dw_kernel_size=None,
    level2_post_norm=False,
    level2_post_norm_block_ids=None,
    center_feature_scale=False,
    remove_center=False,
    drop_path_rate=0.0,
    implementation=None,
    dtype=None,
):
    """Apply stem and stages to an image tensor; returns the feature maps of all stages.

    The arguments are those of `InternImage`. A stage's map is taken after its layer norm
    (which only some variants have) and before the down-sampling to the next stage.
    """
    check_stages(channels, depths, groups, level2_post_norm, level2_post_norm_block_ids)
    rates = _drop_path_rates(drop_path_rate, sum(depths))
    post_norm_ids = tuple(level2_post_norm_block_ids or ()) if level2_post_norm else ()
    x = InternImageStem(channels, name="stem", dtype=dtype)(x)
    maps = []
    for index, (depth, group_count) in enumerate(zip(depths, groups, strict=True)):
        stage = index + 1
        for block in range(depth):
            x = InternImageBlock(
                group_count,
                mlp_ratio=mlp_ratio,
                dw_kernel_size=dw_kernel_size,
                offset_scale=offset_scale,
                layer_scale=layer_scale,
                post_norm=post_norm,
                res_post_norm=res_post_norm,
                center_feature_scale=center_feature_scale,
                remove_center=remove_center,
                drop_path_rate=next(rates),
                implementation=implementation,
                name=f"stage{stage}_block{block + 1}",
                dtype=dtype,
            )(x)
            if index == 2 and block in post_norm_ids:
                number = post_norm_ids.index(block) + 1
                x = _layer_norm(f"stage{stage}_post_norm{number}", dtype)(x)
        if not post_norm or center_feature_scale:
            x = _layer_norm(f"stage{stage}_norm", dtype)(x)
        maps.append(x)
        if stage < len(depths):
            name = f"stage{stage}_downsample"
            x = InternImageDownsample(2 * x.shape[-1], name=name, dtype=dtype)(x)
    return maps


def classifier(maps, classes, activation, drop_rate=0.0, use_clip_projector=False, dtype=None):
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
        kernel_initializer=linear_initializer(),
        name="predictions",
        dtype=dtype,
    )(x)


def settle(model, dtype):
    """Gives a model the policy of its layers, and leaves what a `keras.RematScope` asks to blocks.

    By the model's policy Keras decides whether to scale the loss. Of remat, the norms between the
    blocks would save little, and Keras 3.15 fails for its own layers and models in TensorFlow, and
    in JAX for those which are told whether they are trained.
    """
    if dtype is not None:
        model.dtype_policy = keras.dtype_policies.get(dtype)
    layers = model._flatten_layers()
    without_remat(layer for layer in layers if not isinstance(layer, InternImageBlock))


def _average_head(x, dtype):
    x = _pointwise(int(x.shape[-1] * HEAD_RATIO), x, "head_conv", dtype, use_bias=False)
    x = keras.layers.BatchNormalization(
        axis=-1, momentum=0.9, epsilon=1e-5, name="head_norm", dtype=dtype
    )(x)
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
        kernel_initializer=initializer,
        bias_initializer=initializer,
        name=name,
        dtype=dtype,
    )(x)


def _layer_norm(name, dtype):
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name, dtype=dtype)


def _drop_path_rates(rate, blocks):
    """Rates growing linearly from 0 at the first block to `rate` at the last."""
    return (rate * block / max(1, blocks - 1) for block in range(blocks))


def check_stages(channels, depths, groups, level2_post_norm, level2_post_norm_block_ids):
    """Raise unless widths, depths, groups and the third stage's norms fit each other."""
    if len(depths) != 4 or len(groups) != 4:
        raise ValueError(
            "`depths` and `groups` must have one entry for each of the 4 stages. "
            f"Received: depths={depths}, groups={groups}"
        )
    for stage, (depth, group_count) in enumerate(zip(depths, groups, strict=True)):
        width = channels * 2**stage
        if depth < 1 or group_count < 1 or width % group_count:
            raise ValueError(
                "Each stage must have at least one block and a number of groups that divides its "
                f"width, channels * 2**(stage - 1). Received: channels={channels}, "
                f"depths={depths}, groups={groups}"
            )
    ids = tuple(level2_post_norm_block_ids or ())
    if level2_post_norm and not all(0 <= i < depths[2] for i in ids):
        raise ValueError(
            "`level2_post_norm_block_ids` must be indices of blocks of the third stage, from 0. "
            f"Received: level2_post_norm_block_ids={ids}, depths={depths}"
        )
