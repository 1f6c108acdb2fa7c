"""The gathers of the portable DCNv3 in TensorFlow.

- The forward pass is `tf.gather` and a batched product, in a few pieces one after the other, so
  that the gathered pixels of the whole batch never exist together. These are ordinary ops, which
  XLA and the exporters understand.
- The gradient of `tf.gather` is `tf.math.unsorted_segment_sum`, by far the slowest part of a
  training step. On a CPU without XLA, the gradient is instead the product of a sparse matrix and
  the upstream gradient, image after image, and gathers once more rather than keeping the pixels.
- LiteRT computes a batched product of matrices this small one by one: there, the sum is one.
"""

import sys

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from keras_internimage.ops import tracing

_PIECES = 8
# Numbers that LiteRT gathers at once: slices cost it time, what is gathered memory.
_LITERT_PIECE = 1 << 24


def gather_sum(rows, index, weights, images):
    """`sum_k weights[r, k] * rows[index[r, k]]`, shape `(R, D)`.

    Args:
        rows: `(M, D)`.
        index: int32 or int64 `(R, K)`.
        weights: `(R, K)`.
        images: Number of images, scalar; of both `M` and `R`, each image has an equal share.
    """
    if not tf.executing_eagerly() and tracing.for_litert():
        return _for_litert(rows, index, weights)
    # An exported file holds a gradient of its own too, which would be half of its graph.
    if _plain_cpu() and tracing.required_implementation() is None:
        return _with_sparse_gradient(images)(rows, index, weights)
    return _forward(rows, index, weights)


def device_type():
    """Where TensorFlow places operations by itself: "cpu", "cuda" or "tpu"."""
    for kind, name in (("TPU", "tpu"), ("GPU", "cuda")):
        if tf.config.list_logical_devices(kind):
            return name
    return "cpu"


def in_xla():
    """Whether what is being traced will be compiled by XLA."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def _plain_cpu():
    """Whether the ops of the sparse gradient can run: they have no XLA kernel."""
    return (
        sys.byteorder == "little"  # see `_scatter`
        and device_type() == "cpu"
        and not in_xla()
    )


def _forward(rows, index, weights):
    length = index.shape[0]
    if length is not None and length < 64 * _PIECES:
        return _product(rows, index, weights)
    length = tf.shape(index)[0]
    outputs = []
    for piece in range(_PIECES):
        part = slice(length * piece // _PIECES, length * (piece + 1) // _PIECES)
        # One after the other: run side by side, the pieces would need the memory of the whole.
        with tf.control_dependencies(outputs[-1:]):
            outputs.append(_product(rows, index[part], weights[part]))
    return tf.concat(outputs, axis=0)


def _product(rows, index, weights):
    return tf.matmul(weights[:, None, :], tf.gather(rows, index))[:, 0]


def _for_litert(rows, index, weights):
    # Where the number of samples is unknown, that of images is, and as a rule small.
    length = index.shape[0] or 1
    pieces = -(-length * index.shape[1] * rows.shape[1] // _LITERT_PIECE)
    if pieces == 1:
        return tf.reduce_sum(weights[..., None] * tf.gather(rows, index), axis=1)
    sizes = [length * (i + 1) // pieces - length * i // pieces for i in range(pieces)]
    parts = zip(tf.split(index, sizes), tf.split(weights, sizes), strict=True)
    return tf.concat(
        [tf.reduce_sum(w[..., None] * tf.gather(rows, i), axis=1) for i, w in parts], axis=0
    )


def _with_sparse_gradient(images):
    @tf.custom_gradient
    def function(rows, index, weights):
        def gradient(upstream):
            d_rows, d_weights = _gradient(rows, index, weights, upstream, images)
            return d_rows, None, d_weights

        return _forward(rows, index, weights), gradient

    return function


def _gradient(rows, index, weights, upstream, images):
    images = tf.maximum(images, 1)  # none are one of no pixel: arrays of nothing cannot be joined
    of_image = tf.shape(rows)[0] // images
    length = tf.shape(index)[0] // images

    def body(image, d_rows, d_weights):
        own = rows[image * of_image : (image + 1) * of_image]
        sums, dots = [], []
        for piece in range(_PIECES):
            low, high = length * piece // _PIECES, length * (piece + 1) // _PIECES
            part = slice(image * length + low, image * length + high)
            with tf.control_dependencies(sums[-1:] + dots[-1:]):
                where = index[part] - tf.cast(image * of_image, index.dtype)
                factors = upstream[part]
                sums.append(_scatter(where, weights[part], factors, of_image))
                values = tf.gather(own, where)
                dots.append(tf.matmul(factors[:, None, :], values, transpose_b=True)[:, 0])
        d_rows = d_rows.write(image, tf.add_n(sums))
        return image + 1, d_rows, d_weights.write(image, tf.concat(dots, axis=0))

    arrays = [
        tf.TensorArray(rows.dtype, size=images, element_shape=(None, tensor.shape[1]))
        for tensor in (rows, weights)
    ]
    _, d_rows, d_weights = tf.while_loop(
        lambda image, *_: image < images, body, [0, *arrays], parallel_iterations=1
    )
    return (
        tf.reshape(d_rows.concat(), tf.shape(rows)),
        tf.reshape(d_weights.concat(), tf.shape(weights)),
    )


def _scatter(index, weights, upstream, size):
    """`sum_{r, k: index[r, k] = m} weights[r, k] * upstream[r]` for each `m < size`."""
    length = tf.shape(index, out_type="int64")[0]
    # Pairs (index, r) of int32, made as one int64: the low half comes first.
    pairs = tf.cast(index, "int64") + tf.range(length, dtype="int64")[:, None] * 2**32
    pairs = tf.bitcast(tf.reshape(pairs, (-1,)), "int32")
    return tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=tf.cast(pairs, "int64"),
        a_values=tf.reshape(weights, (-1,)),
        a_shape=tf.stack([tf.cast(size, "int64"), length]),
        b=upstream,
    )
