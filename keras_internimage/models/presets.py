"""Models of the hub's repositories in the published form."""

import os
from typing import Any

import keras

from keras_internimage.checkpoints import repositories
from keras_internimage.models.classifier import InternImage


def from_preset(
    preset: str | os.PathLike, *, load_weights: bool = True, **options: Any
) -> keras.Model:
    """Instantiates the classifier of a repository: architecture, classes and weights are its own.

    ```python
    model = keras_internimage.from_preset("hf://OpenGVLab/internimage_t_1k_224")
    model = keras_internimage.from_preset("hf://OpenGVLab/internimage_t_1k_224", classes=5)
    ```

    Images go in normalised (`preprocess_input`). `keras_internimage.load` takes the same addresses
    and has the preprocessing and the names of the classes, too.

    Args:
        preset: `hf://organisation/name`, with `@revision` for a branch, tag or commit, or a folder
            with the repository's files: `config.json`, `model.safetensors` (or
            `model.safetensors.index.json` and its parts), `preprocessor_config.json`.
        load_weights: False leaves the weights random, and does not download them.
        **options: arguments of `keras_internimage.InternImage` in place of the repository's, such
            as `include_top`, `classes`, `input_shape`, `drop_path_rate`.

    Returns:
        A Keras Functional model, as of `keras_internimage.InternImage`.

    Raises:
        CheckpointError: the repository is of another kind of model, or the weights do not fit.
        DownloadError: a file could not be downloaded.
        ValueError: as `keras_internimage.InternImage`.
    """
    found = repositories.open_repository(preset, load_weights)
    side = found.resolution
    arguments = {**found.config, "classes": found.classes, "default_size": side, **options}
    return InternImage(**arguments, weights=found.weights if load_weights else None)
