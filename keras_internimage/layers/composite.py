"""What every layer made of sub-layers shares: their data types, initial values, checks."""

import keras
from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.initial_values import InitialValues, initial_scale_and_shift

LAYER_NORM_EPSILON = 1e-6


def registered(cls):
    """Register a class for Keras' serialisation, so that loading needs no `custom_objects`."""
    return keras.saving.register_keras_serializable(package="keras_internimage")(cls)


class CompositeLayer(keras.layers.Layer):
    """A layer whose sub-layers may have data type policies of their own, kept in its config.

    Quantisation gives single sub-layers another policy. Keras saves one policy per
    layer of a model, so that a composite layer has to say which of its sub-layers
    differ; without it the file would be read back into sub-layers of the wrong type.
    """

    def get_config(self):
        return {**super().get_config(), "dtype": serialized_dtype_policy(self)}

    def build_from_config(self, config):
        """As Keras' own, after which sub-layers made in `build` are as frozen as the layer is."""
        super().build_from_config(config)
        if not self.trainable:
            self.trainable = True  # in TensorFlow, setting what is set already does nothing
            self.trainable = False

    def _run(self, layer, inputs, **kwargs):
        """`layer(inputs)` for a sub-layer; see `sublayers`."""
        return sublayers.run(self, layer, inputs, **kwargs)

    def _chain(self, inputs, *layers, training):
        """`_run` of several in turn, with nothing but their input kept for the gradient."""
        return sublayers.chain(self, layers, inputs, training)

    def _layer_norm(self, name, epsilon=LAYER_NORM_EPSILON):
        return keras.layers.LayerNormalization(
            epsilon=epsilon,
            name=name,
            dtype=self.dtype_policy,
            **initial_scale_and_shift(),
        )

    def _dense(self, units, name, kernel_initializer="glorot_uniform", use_bias=True):
        return keras.layers.Dense(
            units,
            use_bias=use_bias,
            kernel_initializer=InitialValues(kernel_initializer),
            bias_initializer=InitialValues("zeros"),
            name=name,
            dtype=self.dtype_policy,
        )


def without_remat(layers):
    """Takes layers out of the `keras.RematScope` they were made in; Keras has no other way to."""
    for layer in layers:
        layer._remat_mode = None


def serialized_dtype_policy(layer):
    """The config of a layer's or model's data type policy, and of its quantised sub-layers'."""
    policy = layer.dtype_policy
    if not isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        quantized = {
            part.path: part.dtype_policy
            for part in layer._flatten_layers(include_self=False)
            if part.quantization_mode is not None
        }
        if quantized:
            policy = keras.dtype_policies.DTypePolicyMap(policy, quantized)
    return keras.dtype_policies.serialize(policy)


def linear_initializer():
    """Truncated normal of standard deviation 0.02, for linear layers outside DCNv3 and DCNv4."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def convolution_initializer(fan_in):
    """Uniform in +-1/sqrt(fan_in), for a convolution's kernel and bias (PyTorch's default)."""
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


def check_image_features(layer, shape):
    """Raise unless `shape` is (batch, height, width, channels) with known channels."""
    if len(shape) != 4 or shape[-1] is None:
        raise ValueError(
            f"The input of {type(layer).__name__} '{layer.name}' must have the shape (batch, "
            f"height, width, channels) with a known number of channels. Received: shape={shape}"
        )


def pad_image(x, height, width):
    """Zeros on all four sides. Keras' "same" pads only the lower right side of a strided window."""
    return ops.pad(x, ((0, 0), (height, height), (width, width), (0, 0)))


def padded_shape(shape, height, width):
    """The shape of `pad_image(x, height, width)`."""
    sides = zip(shape[1:3], (height, width), strict=True)
    return (shape[0], *(None if n is None else n + 2 * by for n, by in sides), shape[3])


def halved(size):
    """Output size of a 3x3 convolution with stride 2 and padding 1 (None stays None)."""
    return None if size is None else (size + 1) // 2
