"""A model changed for an export: for another image size, another dtype, or with preprocessing."""

import keras
import numpy as np

from keras_internimage import preprocessing


def with_input_shape(model, input_shape):
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


def with_preprocessing(model):
    """The model with ImageNet's normalisation before it, for uint8 images."""
    mean, deviation = (np.asarray(v, "float64") for v in (preprocessing.MEAN, preprocessing.STD))
    normalise = keras.layers.Rescaling(
        scale=(1 / (255 * deviation)).tolist(),
        offset=(-mean / deviation).tolist(),
        dtype="float32",
    )
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    return keras.Model(images, model(normalise(images)), name=model.name)


def with_dtype(model, dtype):
    """The same model and weights, computing in another dtype; its input keeps its own."""

    def cast(layer):
        config = layer.get_config()
        if not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = dtype
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=cast, recursive=True)
    clone.set_weights(model.get_weights())
    return clone
