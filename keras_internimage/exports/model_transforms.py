"""Models transformed for an export: to another image size or dtype, or with preprocessing."""

import keras
import numpy as np

from keras_internimage import preprocessing
from keras_internimage.layers import BilinearResizing

OTHER_FLOATS = ("float16", "bfloat16", "float64")


def with_input_shape(model: keras.Model, input_shape: tuple) -> keras.Model:
    """The same model and weights for images of another size."""
    try:
        clone = keras.models.clone_model(model, input_tensors=keras.Input(tuple(input_shape)))
    except ValueError as error:
        raise ValueError(
            "`input_shape` must be one that all layers of the model can take. "
            f"Received: input_shape={tuple(input_shape)}: {error}"
        ) from error
    clone.set_weights(model.get_weights())
    return clone


def with_preprocessing(model: keras.Model) -> keras.Model:
    """The model with ImageNet's normalisation before it, for uint8 images."""
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    return keras.Model(images, model(normalised(images)), name=model.name)


def normalised(images):
    """uint8 images by ImageNet's normalisation, in float32."""
    mean, deviation = (np.asarray(v, "float64") for v in (preprocessing.MEAN, preprocessing.STD))
    scale, offset = (1 / (255 * deviation)).astype("float32"), (-mean / deviation).astype("float32")
    # Not Keras' `Rescaling`, which asks for TensorFlow where a command hides that.
    return keras.ops.add(keras.ops.multiply(keras.ops.cast(images, "float32"), scale), offset)


def at_input_size(model: keras.Model) -> keras.Model:
    """The model with its one output, logits `(N, h, w, classes)`, resized to the images' size."""
    images, logits = model.inputs[0], keras.tree.flatten(model.outputs)[0]
    if logits.shape[1:3] == images.shape[1:3] and None not in images.shape[1:3]:
        return model
    history = logits._keras_history
    if isinstance(history.operation, BilinearResizing):
        node = history.operation._inbound_nodes[history.node_index]
        if node.input_tensors[1] is images:  # as `UperNet`
            return model
    return keras.Model(images, BilinearResizing()([logits, images]), name=model.name)


def with_dtype(model: keras.Model, dtype: str) -> keras.Model:
    """The same model and weights, computing in another dtype.

    Its images keep their dtype, unless that is another floating-point one than float32.
    """

    def cast(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.InputLayer):
            if config["dtype"] in OTHER_FLOATS:
                config["dtype"] = "float32"
        # An operation of `keras.ops`, which is no layer, computes in the type of what it gets.
        elif isinstance(layer, keras.layers.Layer):
            config["dtype"] = dtype
        return type(layer).from_config(config)

    try:
        clone = keras.models.clone_model(model, clone_function=cast, recursive=True)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`model` must have layers that can be made from their config with dtype={dtype!r}. "
            f"Received: the data type policy {policies(model)}: {error}"
        ) from error
    clone.set_weights(model.get_weights())
    return clone


def policies(model: keras.Model) -> str:
    """The names of the data type policies by which a model's layers compute, most common first."""
    names = [layer.dtype_policy.name for layer in _computing(model)]
    return ", ".join(sorted(set(names), key=lambda name: (-names.count(name), name)))


def is_float32(model: keras.Model) -> bool:
    """Whether no layer computes, or keeps its variables, in another floating-point dtype."""
    return not any(
        dtype in OTHER_FLOATS
        for layer in _computing(model)
        for dtype in (layer.compute_dtype, layer.variable_dtype)
    )


def quantized_layer(model: keras.Model) -> keras.layers.Layer | None:
    """A layer that `model.quantize` changed, or None."""
    return next((layer for layer in _computing(model) if layer.quantization_mode is not None), None)


def _computing(model):
    """All layers, nested ones too, but inputs and the models that hold others."""
    skipped = (keras.layers.InputLayer, keras.Model)
    return [layer for layer in model._flatten_layers() if not isinstance(layer, skipped)]
