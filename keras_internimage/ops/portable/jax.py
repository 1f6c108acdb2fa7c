"""The gathers of the portable DCNv3 in JAX.

On a CPU, XLA writes out the gathered pixels, `4 * P` times the size of the output, and a training
step keeps them. Both cost far more than the arithmetic once they leave the cache. So images are
handled one after the other, in pieces of about 3 MB, which the backward pass gathers again.
Accelerators take the batch at once, and gather again too.

The sum over the points has to be a matrix product: XLA's CPU code for a product and a reduction
is several times slower. `promise_in_bounds` leaves out a clamp, since the indices are clamped.
"""

import functools

import jax
import jax.numpy as jnp

from keras_internimage.ops.partitioning_jax import differentiable_batch_parallel

_FLOATS = 3 << 18


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def map_images(sample_and_sum, inputs, offset, mask, geometry, mask_activation):
    """`sample_and_sum` for a batch, image after image where that is faster."""
    function = _one_device if jax.device_count() == 1 else _many_devices
    return function(sample_and_sum, geometry, mask_activation)(inputs, offset, mask)


def _one_device(sample_and_sum, geometry, mask_activation):
    def function(*tensors):
        return sample_and_sum(*tensors, geometry, mask_activation, gather_sum)

    @jax.checkpoint
    def one(tensors):
        return function(*(tensor[None] for tensor in tensors))[0]

    def images(inputs, offset, mask):
        batch = inputs.shape[0]
        if not _on_cpu() or not isinstance(batch, int) or batch < 2:
            return function(inputs, offset, mask)
        return jax.lax.map(one, (inputs, offset, mask))

    return images


@functools.cache
def _many_devices(*options):
    """XLA would have each device gather from the images of all."""
    images = _one_device(*options)
    return differentiable_batch_parallel(images, ("n h w c", "n p q o", "n p q m"), ("n p q c",))


def gather_sum(rows, index, weights):
    """`sum_k weights[r, k] * rows[index[r, k]]` for four corners, shape `(R, D)`.

    Args:
        rows: `(M, D)`.
        index: Four arrays `(R, P)`.
        weights: Four arrays `(R, P)`.
    """

    @jax.checkpoint
    def piece(rows, index, weights):
        total = 0
        for i, w in zip(index, weights, strict=True):
            values = rows.at[i].get(mode="promise_in_bounds")
            total = total + jnp.matmul(w[:, None, :], values)[:, 0]
        return total

    length, points = index[0].shape
    pieces = _pieces(length, 4 * points * rows.shape[1])
    if pieces == 1:
        return piece(rows, index, weights)
    index, weights = (
        [t.reshape(pieces, length // pieces, points) for t in four] for four in (index, weights)
    )
    output = jax.lax.map(lambda part: piece(rows, *part), (index, weights))
    return output.reshape(length, rows.shape[1])


def _pieces(length, floats):
    """The number of equal pieces of `length` rows, each with few enough floats."""
    if not _on_cpu() or not isinstance(length, int):
        return 1
    wanted = max(1, -(-length * floats // _FLOATS))
    # The next divisor, as long as there is one not far away.
    return next((n for n in range(wanted, min(4 * wanted, length) + 1) if length % n == 0), 1)


def _on_cpu():
    return jax.default_backend() == "cpu"
