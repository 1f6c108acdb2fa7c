"""InternImage and FlashInternImage as backbones with a feature pyramid."""

import dataclasses
import os
from collections.abc import Sequence

import keras
from keras import KerasTensor

from keras_internimage.checkpoints import load_weights, published, repositories
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.layers.composite import serialized_dtype_policy
from keras_internimage.layers.initial_values import skip_initialization
from keras_internimage.models import arguments
from keras_internimage.models.config import InternImageConfig
from keras_internimage.models.network import apply_policy, feature_maps, limit_remat_to_blocks
from keras_internimage.variants import FLASH, VARIANTS, base

LEVELS = ("P2", "P3", "P4", "P5")


@keras.saving.register_keras_serializable(package="keras_internimage")
class InternImageBackbone(keras.Model):
    """InternImage without a head: a Functional model that also offers all four stages.

    The model's output is the last stage's feature map; `pyramid_outputs` has all of them,

    ```python
    backbone = keras_internimage.InternImageBackbone.from_variant("T", image_shape=(None, None, 3))
    pyramid = keras.Model(backbone.inputs, backbone.pyramid_outputs)
    maps = pyramid(images)    # {"P2": (N, H/4, W/4, C), "P3": ..., "P4": ..., "P5": ...}
    ```

    where level `Pn` is `2**n` times smaller than the image. It serves wherever KerasHub
    takes a `FeaturePyramidBackbone`, and KerasCV's heads find their inputs by
    `pyramid_level_inputs`.

    Args:
        channels, depths, groups, mlp_ratio, layer_scale, offset_scale, post_norm, res_post_norm:
            as for `keras_internimage.InternImage`.
        dw_kernel_size, level2_post_norm, level2_post_norm_block_ids, drop_path_rate: as there.
        center_feature_scale, remove_center, implementation, core_op, dcn_output_bias: as there.
        mlp_fc2_bias: as there.
        image_shape: (height, width, channels), channels last; height and width may be None.
        weights: None or whatever `keras_internimage.InternImage` takes; the backbones of
            published detection and segmentation checkpoints load, too.
        data_format: "channels_last", or None for the same.
        dtype: data type or policy of all layers.
        name: name of the model.

    Attributes:
        pyramid_outputs: dict of the levels "P2" to "P5" to Keras tensors.
        pyramid_level_inputs: dict of the levels to the names of the layers that make them.
        image_shape: as given.
        data_format: "channels_last".

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit.
    """

    def __init__(
        self,
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
        remove_center: bool = False,
        drop_path_rate: float = 0.0,
        image_shape: tuple[int | None, int | None, int] = (None, None, 3),
        weights: str | os.PathLike | None = None,
        implementation: str | None = None,
        core_op: str = "DCNv3",
        dcn_output_bias: bool = True,
        mlp_fc2_bias: bool = True,
        data_format: str | None = None,
        dtype=None,
        name: str | None = None,
        trainable: bool = True,
        variant: str | None = None,
    ):
        if data_format not in (None, "channels_last"):
            raise ValueError(
                "`data_format` must be 'channels_last', the only layout of InternImage. "
                f"Received: data_format={data_format!r}"
            )
        arguments.check_weights(weights, published.names())
        image_shape = arguments.image_shape(image_shape, None, False, weights, False)
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
        inputs = keras.Input(image_shape, name="image")
        with skip_initialization(weights is not None):
            maps = feature_maps(inputs, config, dtype)
        super().__init__(inputs=inputs, outputs=maps[-1], name=name, trainable=trainable)
        apply_policy(self, dtype)
        limit_remat_to_blocks(self)
        self._pyramid = maps
        self.image_shape = image_shape
        self.data_format = "channels_last"
        self._config = {**dataclasses.asdict(config), "image_shape": image_shape}
        load_weights(self, weights, table=TABLE, variant=variant)

    @classmethod
    def from_variant(
        cls, variant: str, weights: str | os.PathLike | None = "imagenet", **kwargs
    ) -> "InternImageBackbone":
        """The backbone of a published variant.

        Args:
            variant: key of `keras_internimage.models.VARIANTS`: "T", "S", "B", "L", "XL", "H"
                or "G", or "FlashT", "FlashS", "FlashB" or "FlashL" for FlashInternImage.
            weights: as for `keras_internimage.InternImage`.
            **kwargs: further arguments of the class.

        Returns:
            An `InternImageBackbone`.

        Raises:
            ValueError: there is no such variant, or the weights do not fit.
        """
        if variant not in VARIANTS:
            raise ValueError(
                f"`variant` must be one of {', '.join(VARIANTS)}. Received: variant={variant!r}"
            )
        config = VARIANTS[variant].config()
        config.pop("use_clip_projector")
        return cls(**{**config, **kwargs}, weights=weights, variant=variant)

    @property
    def pyramid_outputs(self) -> dict[str, KerasTensor]:
        return dict(zip(LEVELS, self._pyramid, strict=True))

    @property
    def pyramid_level_inputs(self) -> dict[str, str]:
        return {
            level: tensor._keras_history.operation.name
            for level, tensor in self.pyramid_outputs.items()
        }

    @property
    def token_embedding(self) -> None:
        """None: images have no tokens. KerasHub asks every backbone for it."""
        return None

    def save_to_preset(self, preset_dir: str, max_shard_size: float | None = 10) -> None:
        """Write a preset of KerasHub: a folder of configuration and weights.

        Args:
            preset_dir: the folder.
            max_shard_size: largest size of a weights file in GB, None for one file.

        Raises:
            ImportError: KerasHub is not installed.
        """
        import keras_hub

        keras_hub.models.Backbone.save_to_preset(self, preset_dir, max_shard_size=max_shard_size)

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "InternImageBackbone":
        """Read what `save_to_preset` wrote, or the backbone of a repository in the published form.

        KerasHub's own `keras_hub.models.Backbone.from_preset` reads subclasses of its class only,
        of which this is none: it works without KerasHub.

        Args:
            preset: the folder, or whatever else KerasHub's `from_preset` takes; or what
                `keras_internimage.from_preset` takes, for which KerasHub is not needed.
            load_weights: False leaves the weights random.
            **kwargs: arguments of the class that replace stored ones, such as `dtype`.

        Returns:
            An `InternImageBackbone`.

        Raises:
            ImportError: KerasHub is not installed.
            ValueError: the preset holds another backbone.
            DownloadError: a file could not be downloaded.
        """
        if repositories.is_repository(preset):
            found = repositories.open_repository(preset, load_weights)
            config = {k: v for k, v in found.config.items() if k != "use_clip_projector"}
            weights = found.weights if load_weights else None
            return cls(**{**config, **kwargs}, weights=weights)
        import keras_hub

        read = keras_hub.models.Backbone.from_preset.__func__
        return read(cls, preset, load_weights=load_weights, **kwargs)

    def get_config(self) -> dict:
        return {
            **self._config,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": serialized_dtype_policy(self),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_internimage")
class FlashInternImageBackbone(InternImageBackbone):
    """FlashInternImage without a head: an `InternImageBackbone` with DCNv4.

    ```python
    backbone = keras_internimage.FlashInternImageBackbone.from_variant("T")
    ```

    Args:
        channels, depths, groups: as for `keras_internimage.InternImage`.
        core_op, dcn_output_bias, mlp_fc2_bias: as there, but for the defaults, which are those of
            the sizes T, S and B. L has both biases.
        **kwargs: all other arguments of `InternImageBackbone`.

    Raises:
        ValueError: as `InternImageBackbone`.
    """

    def __init__(
        self,
        channels: int,
        depths: Sequence[int],
        groups: Sequence[int],
        core_op: str = "DCNv4",
        dcn_output_bias: bool = False,
        mlp_fc2_bias: bool = False,
        **kwargs,
    ):
        super().__init__(
            channels,
            depths,
            groups,
            core_op=core_op,
            dcn_output_bias=dcn_output_bias,
            mlp_fc2_bias=mlp_fc2_bias,
            **kwargs,
        )

    @classmethod
    def from_variant(
        cls, variant: str, weights: str | os.PathLike | None = "imagenet", **kwargs
    ) -> "FlashInternImageBackbone":
        """The backbone of a published variant.

        Args:
            variant: "T", "S", "B" or "L", or the key of `VARIANTS`, such as "FlashT".
            weights: as for `keras_internimage.InternImage`.
            **kwargs: further arguments of the class.

        Returns:
            A `FlashInternImageBackbone`.

        Raises:
            ValueError: there is no such variant, or the weights do not fit.
        """
        key = FLASH + base(variant)
        if key not in VARIANTS:
            sizes = [base(name) for name in VARIANTS if name.startswith(FLASH)]
            raise ValueError(
                f"`variant` must be one of {', '.join(sizes)}. Received: variant={variant!r}"
            )
        return super().from_variant(key, weights, **kwargs)
