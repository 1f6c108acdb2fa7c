"""Losses of a detector and their gradients, the same call on every backend."""

import keras
from keras import ops


def losses_and_gradients(model, x, y, record=tuple):
    """The losses of a batch by name, what `record` returns after that, and the gradients.

    Compiled in TensorFlow and JAX. The gradients are those of the losses' sum, by the paths of
    the variables.
    """
    x, y = (keras.tree.map_structure(ops.convert_to_tensor, z) for z in (x, y))
    variables = model.trainable_variables
    values = [v.value for v in variables]
    backend = keras.config.backend()

    def forward():
        found = model.losses_by_name(x, y, model(x, training=True), True)
        return sum(found.values()), (found, record())

    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def run():
            with tf.GradientTape() as tape:
                total, aside = forward()
            unconnected = tf.UnconnectedGradients.ZERO
            return aside, tape.gradient(total, values, unconnected_gradients=unconnected)

        aside, gradients = run()
        gradients = [tf.convert_to_tensor(g) for g in gradients]
    elif backend == "jax":
        import jax

        def run(values):
            with keras.StatelessScope(list(zip(variables, values, strict=True))):
                return forward()

        (_, aside), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(values)
    else:
        import torch

        total, aside = forward()
        gradients = torch.autograd.grad(total, values, allow_unused=True, materialize_grads=True)
    found, recorded = keras.tree.map_structure(lambda x: ops.convert_to_numpy(x), aside)
    paths = [v.path for v in variables]
    arrays = [ops.convert_to_numpy(g) for g in gradients]
    return found, recorded, dict(zip(paths, arrays, strict=True))
