"""The official implementation's numbers for whole models, and models holding its weights.

`tests/data/models` describes each checkpoint by its names and shapes; the values come from
`deterministic.official_weight`, so that not a single weight is stored.
"""

import contextlib
import csv
import gzip
import pathlib

import keras
import numpy as np
from deterministic import image, model_config, official_weight
from keras import ops

import keras_internimage
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.checkpoints.read import official_name

DATA = pathlib.Path(__file__).parents[1] / "data" / "models"
TINY = ("tiny_prenorm", "tiny_postnorm", "tiny_h", "tiny_g", "tiny_remove_center")
# FlashInternImage: as T and T of dense tasks; S and B; L; no published one.
TINY_FLASH = (
    "tiny_flash_prenorm",
    "tiny_flash_dense_t",
    "tiny_flash_postnorm",
    "tiny_flash_l",
    "tiny_flash_res_post_norm",
)


def config(name):
    """The official constructor's arguments, as those of `InternImage`."""
    arguments = model_config(name)
    arguments["classes"] = arguments.pop("num_classes")
    return arguments


def numbers(name):
    return np.load(DATA / f"{name}.npz")


def official_shapes(name):
    """Dict of the checkpoint's tensors, name to shape, in its order."""
    with gzip.open(DATA / f"{name}.params.tsv.gz", "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return {row[0]: tuple(int(n) for n in row[1].split(",") if n) for row in rows}


def official_gradients(name):
    """Dict of name to (L2 norm, dot product with the probe)."""
    with open(DATA / f"{name}.grads.tsv") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["name"]: (float(row["norm"]), float(row["probe"])) for row in rows}


def check_places(model, shapes, table=TABLE):
    """Raise unless the model's variables hold exactly the official tensors of these shapes."""
    held = {}
    for variable in model.weights:
        entry = table.entry(variable.path)
        if entry is None:
            raise AssertionError(f"{variable.path} is no weight of InternImage")
        made_of = entry.layout.official_shapes(tuple(variable.shape))
        held.update(zip(entry.official, made_of, strict=True))
    shapes = {key: shape for key, shape in shapes.items() if "num_batches_tracked" not in key}
    if held != shapes:
        raise AssertionError(f"other names or shapes: {sorted(held.items() ^ shapes.items())}")


def fill(model, name, table=TABLE):
    """Give a model the reference weights, checking that it holds exactly the official tensors."""
    stored, seed = official_shapes(name), int(numbers(name)["seed"])
    # Those of dense tasks are stored below `backbone.`, and their values made from those names.
    names = {official_name(key): key for key in stored}
    check_places(model, {key: stored[name] for key, name in names.items()}, table)
    for variable in model.variables:
        official = table.entry(variable.path).official
        tensors = {key: official_weight(names[key], stored[names[key]], seed) for key in official}
        variable.assign(table.to_keras(variable.path, tensors))
    return model


def images(name):
    """The reference's input, channels last."""
    stored = numbers(name)
    height, width = (int(n) for n in stored["size"])
    batch = stored["logits"].shape[0]
    return image(height, width, batch, int(stored["seed"])).transpose(0, 2, 3, 1)


def classifier(name, **kwargs):
    """The model of a reference, with its weights and linear outputs."""
    size = tuple(int(n) for n in numbers(name)["size"])
    options = {"input_shape": (*size, 3), "classifier_activation": None, **config(name), **kwargs}
    return fill(keras_internimage.InternImage(**options), name)


@contextlib.contextmanager
def without_values():
    """Models built in here have shapes but no values, however large they are."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    # Keras remembers the variables, to give them values when it next leaves such a scope.
    keras.utils.clear_session(free_memory=False)


def call(model, x):
    """The model's output, without `predict`. JAX compiles it whole: singly its operations take
    longer to compile than to run.
    """
    if keras.config.backend() != "jax":
        return model(x)
    import jax

    trainable = [v.value for v in model.trainable_variables]
    rest = [v.value for v in model.non_trainable_variables]
    return jax.jit(model.stateless_call)(trainable, rest, x)[0]


def as_array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def pyramid(model):
    """The four stages' feature maps of a classifier, as outputs of one model."""
    maps = []
    for stage in range(1, 5):
        layers = [
            layer
            for layer in model.layers
            if layer.name.startswith(f"stage{stage}_") and not layer.name.endswith("_downsample")
        ]
        maps.append(layers[-1].output)
    return keras.Model(model.input, maps)


def gradients(model, x, weight, training=False):
    """Gradients of `sum(model(x) * weight)`: dict of each variable's path, and of "image"."""
    variables = model.trainable_variables
    backend = keras.config.backend()
    x, weight = ops.convert_to_tensor(x), ops.convert_to_tensor(weight)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(model(x, training=training) * weight)
        found = tape.gradient(loss, [v.value for v in variables] + [x])
    elif backend == "jax":
        import jax

        rest = [v.value for v in model.non_trainable_variables]

        def loss(values, x):
            y, _ = model.stateless_call(values, rest, x, training=training)
            return (y * weight).sum()

        values, image_gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(
            [v.value for v in variables], x
        )
        found = [*values, image_gradient]
    else:
        import torch

        x.requires_grad_()
        loss = (model(x, training=training) * weight).sum()
        found = torch.autograd.grad(loss, [v.value for v in variables] + [x])
    keys = [v.path for v in variables] + ["image"]
    return {key: as_array(value) for key, value in zip(keys, found, strict=True)}
