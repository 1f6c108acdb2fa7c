"""RoIAlign and suppression in JAX: calls through XLA's foreign function interface."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from keras_internimage.ops.partitioning_jax import batch_parallel

NAMES = tuple(f"keras_internimage_{name}" for name in ("roi_align", "roi_align_backward", "nms"))
_ALIGN, _BACKWARD, _NMS = NAMES


def roi_align(maps, boxes, levels, strides, bins):
    """See `keras_internimage.ops.roi_align`; arrays are of the types that the kernels take."""
    sizes = tuple(x.shape[1:3] for x in maps)
    align = _functions(sizes, tuple(float(stride) for stride in strides), bins)
    return align(boxes, levels, *maps)


def nms(boxes, scores, classes, threshold, count):
    """See `keras_internimage.ops.boxes.nms`, likewise."""
    return _suppression(float(threshold), count)(boxes, scores, classes)


@functools.cache
def _functions(sizes, strides, bins):
    """RoIAlign of maps of some sizes; it and its gradient are the transposed of one another."""
    options = {"strides": np.array(strides, np.float64), "bins": np.int64(bins)}
    maps = ", ".join(f"n h{k} w{k} c" for k in range(len(sizes)))

    def run(boxes, levels, *maps):
        shape = (*levels.shape, bins, bins, maps[0].shape[-1])
        kernel = jax.ffi.ffi_call(_ALIGN, jax.ShapeDtypeStruct(shape, maps[0].dtype))
        return kernel(boxes, levels, *maps, **options)

    def run_backward(upstream, boxes, levels):
        count, channels = upstream.shape[0], upstream.shape[-1]
        shapes = [jax.ShapeDtypeStruct((count, *size, channels), upstream.dtype) for size in sizes]
        return tuple(jax.ffi.ffi_call(_BACKWARD, shapes)(upstream, boxes, levels, **options))

    run = batch_parallel(run, f"n r k, n r, {maps} -> n r p q c")
    run_backward = batch_parallel(run_backward, f"n r p q c, n r k, n r -> {maps}")
    align, gradient = jax.custom_vjp(run), jax.custom_vjp(run_backward)

    def backward(kept, upstream):
        boxes, levels = kept
        return jnp.zeros_like(boxes), None, *gradient(upstream, boxes, levels)

    def backward_of_gradient(kept, upstreams):
        boxes, levels = kept
        return align(boxes, levels, *upstreams), jnp.zeros_like(boxes), None

    align.defvjp(lambda b, of, *maps: (align(b, of, *maps), (b, of)), backward)
    gradient.defvjp(lambda g, b, of: (gradient(g, b, of), (b, of)), backward_of_gradient)
    return align


@functools.cache
def _suppression(threshold, count):
    def run(boxes, scores, classes):
        shape = (scores.shape[0], count)
        results = [jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)]
        kernel = jax.ffi.ffi_call(_NMS, results)
        return tuple(kernel(boxes, scores, classes, threshold=np.float64(threshold)))

    return batch_parallel(run, "n k d, n k, n k -> n r, n r")
