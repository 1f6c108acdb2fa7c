"""InternImage as a backbone with a feature pyramid."""

import keras

from keras_internimage.layers.composite import serialized_dtype_policy, skip_initialization
from keras_internimage.models import arguments
from keras_internimage.models.network import feature_maps, settle
from keras_internimage.variants import VARIANTS

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
        channels, depths, groups, mlp_ratio, layer_scale, offset_scale, post_norm,
            res_post_norm, dw_kernel_size, level2_post_norm, level2_post_norm_block_ids,
            center_feature_scale, remove_center, drop_path_rate, implementation:
            as for `keras_internimage.InternImage`.
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
        image_shape=(None, None, 3),
        weights=None,
        implementation=None,
        data_format=None,
        dtype=None,
        name=None,
        trainable=True,
        variant=None,
    ):
        if data_format not in (None, "channels_last"):
            raise ValueError(
                "`data_format` must be 'channels_last', the only layout of InternImage. "
                f"Received: data_format={data_format!r}"
            )
        if weights is not None:
            from keras_internimage.checkpoints import load_weights, published

            arguments.check_weights(weights, published.names())
        image_shape = arguments.image_shape(image_shape, None, False, weights, False)
        config = {
            "channels": channels,
            "depths": tuple(depths),
            "groups": tuple(groups),
            "mlp_ratio": mlp_ratio,
            "layer_scale": layer_scale,
            "offset_scale": offset_scale,
            "post_norm": post_norm,
            "res_post_norm": res_post_norm,
            "dw_kernel_size": dw_kernel_size,
            "level2_post_norm": level2_post_norm,
            "level2_post_norm_block_ids": level2_post_norm_block_ids,
            "center_feature_scale": center_feature_scale,
            "remove_center": remove_center,
            "drop_path_rate": drop_path_rate,
            "implementation": implementation,
        }
        inputs = keras.Input(image_shape, name="image")
        with skip_initialization(weights is not None):
            maps = feature_maps(inputs, **config, dtype=dtype)
        super().__init__(inputs=inputs, outputs=maps[-1], name=name, trainable=trainable)
        settle(self, dtype)
        self._pyramid = maps
        self.image_shape = image_shape
        self.data_format = "channels_last"
        self._config = {**config, "image_shape": image_shape}
        if weights is not None:
            load_weights(self, weights, variant=variant)

    @classmethod
    def from_variant(cls, variant, weights="imagenet", **kwargs):
        """The backbone of a published variant.

        Args:
            variant: "T", "S", "B", "L", "XL", "H" or "G".
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
    def pyramid_outputs(self):
        return dict(zip(LEVELS, self._pyramid, strict=True))

    @property
    def pyramid_level_inputs(self):
        return {
            level: tensor._keras_history.operation.name
            for level, tensor in self.pyramid_outputs.items()
        }

    @property
    def token_embedding(self):
        """None: images have no tokens. KerasHub asks every backbone for it."""
        return None

    def save_to_preset(self, preset_dir, max_shard_size=10):
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
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Read what `save_to_preset` wrote.

        KerasHub's own `keras_hub.models.Backbone.from_preset` reads subclasses of its class only,
        of which this is none: it works without KerasHub.

        Args:
            preset: the folder, or whatever else KerasHub's `from_preset` takes.
            load_weights: False leaves the weights random.
            **kwargs: arguments of the class that replace stored ones, such as `dtype`.

        Returns:
            An `InternImageBackbone`.

        Raises:
            ImportError: KerasHub is not installed.
            ValueError: the preset holds another backbone.
        """
        import keras_hub

        read = keras_hub.models.Backbone.from_preset.__func__
        return read(cls, preset, load_weights=load_weights, **kwargs)

    def get_config(self):
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
