"""Calls of the operator that the stages share: implementations, arguments, and what is true."""

import functools

import numpy as np

from benchmarks.gpu.worker import Item


def implementations(context):
    """Pairs of each implementation of the backend and None, or why it cannot run here."""
    from keras_internimage.ops import DCNv3Geometry, dispatch

    request = dispatch.Request(
        backend=context.backend,
        geometry=DCNv3Geometry(groups=2),
        input_shape=(2, 8, 9, 32),
        device=context.device,
    )
    return [(i.name, i.why_not(request)) for i in dispatch.candidates(context.backend)]


def running(context):
    """The names of those that can run, preferred first."""
    return [name for name, reason in implementations(context) if reason is None]


def not_running(context, item):
    """Items that say of the others why they cannot run; `item` names what they would have done."""

    def say(name, reason):
        context.row(implementation=name, check=item, outcome="not run", note=reason)

    return [
        Item(name, functools.partial(say, name, reason))
        for name, reason in implementations(context)
        if reason is not None
    ]


def arrays(size=(8, 9), batch=2, depth=16, spread=1.0, seed=0, **options):
    """Random `inputs, offset, mask, grad_output` in float32 for options of `dcnv3`."""
    from keras_internimage.ops import DCNv3Geometry

    geometry = DCNv3Geometry(**{k: v for k, v in options.items() if k != "mask_activation"})
    rng = np.random.default_rng(seed)
    out, samples = geometry.output_size(*size), geometry.groups * geometry.points
    channels = geometry.groups * depth
    drawn = [
        rng.standard_normal((batch, *sizes, last), "float32")
        for sizes, last in ((size, channels), (out, 2 * samples), (out, samples), (out, channels))
    ]
    drawn[1] *= np.float32(spread)
    return drawn


def joined(tensors):
    """`inputs, offset_mask`: what the layer gives."""
    inputs, offset, mask = tensors
    return [inputs, np.concatenate([offset, mask], axis=-1)]


def split(offset_mask, axis=-1):
    """Its offsets and masks."""
    return np.split(offset_mask, [offset_mask.shape[axis] // 3 * 2], axis=axis)


def operator(name, **options):
    """`dcnv3` by the implementation of that name, or by the one that is chosen (None)."""
    from keras_internimage.ops import dcnv3

    return lambda *tensors: dcnv3(*tensors, implementation=name, **options)
