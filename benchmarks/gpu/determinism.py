"""Stage: the same bits every time, where the whole process is asked for it: JAX and TensorFlow."""

from benchmarks.gpu import operator_calls
from benchmarks.gpu.correctness import Check, as_item


def items(context):
    if context.backend == "tensorflow":
        import keras
        import tensorflow as tf

        keras.utils.set_random_seed(0)  # without, what draws random numbers raises
        tf.config.experimental.enable_op_determinism()
    title = "same bits in deterministic mode"
    return [
        as_item(context, name, title, Check(context, name).same_bits)
        for name in operator_calls.running(context)
    ]
