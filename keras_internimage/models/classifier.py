"""The general model function: any InternImage, as a Keras Functional model."""

import os
from collections.abc import Callable, Sequence

import keras
from keras import KerasTensor

from keras_internimage.checkpoints import load_weights, published
from keras_internimage.checkpoints.assign import stored_classes
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.layers.initial_values import skip_initialization
from keras_internimage.models import arguments
from keras_internimage.models.config import InternImageConfig
from keras_internimage.models.functional import FunctionalModel
from keras_internimage.models.network import (
    apply_policy,
    classifier,
    feature_maps,
    limit_remat_to_blocks,
)


def InternImage(
    channels: int,
    depths: Sequence[int],
    groups: Sequence[int],
    mlp_ratio: float = 4.0,
    layer_scale: float | None = None,
    offset_scale: float = 1.0,
    post_norm: bool = False,
    res_post_norm: bool = False,
    dw_kernel_size: int | None = None,
    level2_post_norm: bool = False,
    level2_post_norm_block_ids: Sequence[int] | None = None,
    center_feature_scale: bool = False,
    use_clip_projector: bool = False,
    remove_center: bool = False,
    drop_path_rate: float = 0.0,
    drop_rate: float = 0.0,
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor: KerasTensor | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | Callable | None = "softmax",
    implementation: str | None = None,
    core_op: str = "DCNv3",
    dcn_output_bias: bool = True,
    mlp_fc2_bias: bool = True,
    dtype: str | keras.DTypePolicy | None = None,
    default_size: int = 224,
    variant: str | None = None,
    name: str = "internimage",
) -> keras.Model:
    """Instantiates an InternImage or FlashInternImage of any size.

    The first arguments carry the names of the official configuration files;
    `keras_internimage.models.stack` makes `channels`, `depths` and `groups` from the paper's
    four numbers.

    Args:
        channels: channels of the first stage, C1; each further stage has twice as many.
        depths: blocks of each of the four stages.
        groups: groups of the operator in each of the four stages.
        mlp_ratio: hidden width of the blocks' MLPs over the number of channels.
        layer_scale: initial value of the residual branches' factors, None without.
        offset_scale: factor of the operator's sampling grid and learned offsets.
        post_norm: normalise the branches' outputs instead of their inputs.
        res_post_norm: normalise both. Excludes `post_norm` and `layer_scale`.
        dw_kernel_size: odd side of the depthwise convolution before the offsets. None: 3 with
            DCNv3, no convolution with DCNv4.
        level2_post_norm: whether layer norms follow blocks of the third stage.
        level2_post_norm_block_ids: which blocks, counted from 0.
        center_feature_scale: blend the operator's output with its input.
        use_clip_projector: end with attention pooling over two levels (InternImage-H and -G;
            the image's sides must then be multiples of 32).
        remove_center: DCNv3 without its central sampling point; DCNv4 keeps it.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the
            first. With 0 the model has no random state.
        drop_rate: dropout before the classifier.
        include_top: whether to include the classification head.
        weights: None (random initialization), "imagenet" or "imagenet22k" (for a `variant`),
            the name of a published checkpoint, or a path: `.weights.h5`, `.keras`, an official
            `.pth`, `.safetensors`, the index of a sharded one or a directory with one.
            If the checkpoint has another number of classes than `classes`, everything but
            the last layer is loaded and a line says so.
        input_tensor: Keras tensor to use as the image input.
        input_shape: (height, width, channels), channels last; height and width may be None.
            Default: `default_size` with the head, any size without.
        pooling: for `include_top=False`: None (the last feature map), "avg" or "max".
        classes: number of classes, for `include_top=True`.
        classifier_activation: activation of the last layer, None for logits. "softmax" or
            None when the classifier's weights are loaded; any where it is newly initialised.
        implementation: which implementation of the operator runs; None takes the fastest that
            can.
        core_op: "DCNv3" for InternImage, "DCNv4" for FlashInternImage; see
            `keras_internimage.layers.DCNv4` for what differs.
        dcn_output_bias, mlp_fc2_bias: whether the output projection of DCNv4 and the second layer
            of the blocks' MLPs have a bias; with DCNv3 they always have.
        dtype: data type or policy of all layers, Keras' global one if None.
        default_size: side of the default input in pixels.
        variant: key of `VARIANTS`, tells which published weights the keywords stand for.
        name: name of the model.

    Returns:
        A Keras Functional model. Images go in normalised (`preprocess_input`), shape
        `(batch, height, width, channels)`; class scores `(batch, classes)` come out, or
        features without the head.

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        [InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
        Convolutions](https://arxiv.org/abs/2211.05778) (CVPR 2023);
        [Efficient Deformable ConvNets](https://arxiv.org/abs/2401.06197) (CVPR 2024)
    """
    arguments.check_weights(weights, published.names(None if not include_top else "classification"))
    arguments.check_top(include_top, pooling, classes)
    if include_top and weights is not None:
        arguments.check_activation(
            classifier_activation, classes, lambda: stored_classes(weights, variant=variant)
        )
    shape = arguments.image_shape(
        input_shape, default_size, include_top, weights, use_clip_projector
    )
    config = InternImageConfig(
        channels=channels,
        depths=depths,
        groups=groups,
        mlp_ratio=mlp_ratio,
        layer_scale=layer_scale,
        offset_scale=offset_scale,
        post_norm=post_norm,
        res_post_norm=res_post_norm,
        dw_kernel_size=dw_kernel_size,
        level2_post_norm=level2_post_norm,
        level2_post_norm_block_ids=level2_post_norm_block_ids,
        center_feature_scale=center_feature_scale,
        remove_center=remove_center,
        drop_path_rate=drop_path_rate,
        implementation=implementation,
        core_op=core_op,
        dcn_output_bias=dcn_output_bias,
        mlp_fc2_bias=mlp_fc2_bias,
    )
    x, inputs = arguments.image_input(input_tensor, shape)
    with skip_initialization(weights is not None):
        maps = feature_maps(x, config, dtype)
        if include_top:
            x = classifier(
                maps, classes, classifier_activation, drop_rate, use_clip_projector, dtype
            )
        else:
            x = maps[-1]
            if pooling is not None:
                pool = {
                    "avg": keras.layers.GlobalAveragePooling2D,
                    "max": keras.layers.GlobalMaxPooling2D,
                }[pooling]
                x = pool(data_format="channels_last", name=f"{pooling}_pool", dtype=dtype)(x)
    model = FunctionalModel(inputs, x, name=name)
    apply_policy(model, dtype)
    limit_remat_to_blocks(model)
    load_weights(model, weights, table=TABLE, variant=variant)
    return model
