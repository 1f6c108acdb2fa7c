"""Random geometries against the float64 oracle."""

import hypothesis
import keras
import numpy as np
import oracle
import pytest
from gradients import relative_error, value_and_grads
from hypothesis import strategies as st

from keras_internimage.ops import DCNv3Geometry, dcnv3

pytestmark = pytest.mark.usefixtures("implementation")


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def calls(draw):
    kernel_size = draw(pairs(1, 4))
    odd = all(k % 2 for k in kernel_size) and kernel_size != (1, 1)
    options = {
        "groups": draw(st.integers(1, 3)),
        "kernel_size": kernel_size,
        "strides": draw(pairs(1, 3)),
        "dilation_rate": draw(pairs(1, 2)),
        "padding": draw(pairs(0, 3)),
        "offset_scale": draw(st.sampled_from([0.5, 1.0, 1.7, 2.0])),
        "remove_center": odd and draw(st.booleans()),
        "mask_activation": draw(st.sampled_from([None, "softmax"])),
    }
    size = []
    for k, d, p in zip(kernel_size, options["dilation_rate"], options["padding"], strict=True):
        size.append(draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 9)))
    return (
        draw(st.integers(1, 2)),
        tuple(size),
        draw(st.integers(1, 5)),
        options,
        draw(st.sampled_from([0.3, 2.0, 10.0])),
        draw(st.integers(0, 2**16)),
    )


def away_from_pixels(offset, geometry, out_size, rng):
    """Offsets moved so that no sample lies within 0.05 of a line between cells.

    There the gradient jumps, and rounding decides on which side it is taken.
    """
    grid = np.tile(geometry.grid(), (geometry.groups, 1)).reshape(-1)
    position = grid + geometry.offset_scale * offset
    fraction = np.clip(position - np.floor(position), 0.05, 0.95)
    return ((np.floor(position) + fraction - grid) / geometry.offset_scale).astype("float32")


@hypothesis.settings(
    # Every example is a new shape, which JAX compiles.
    max_examples=10 if keras.backend.backend() == "jax" else 40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(calls())
def test_any_geometry(call):
    batch, size, depth, options, spread, seed = call
    rng = np.random.default_rng(seed)
    geometry = DCNv3Geometry(**{k: v for k, v in options.items() if k != "mask_activation"})
    out = oracle.output_size(*size, **options)
    assert geometry.output_size(*size) == out
    samples = geometry.groups * geometry.points
    inputs = rng.normal(size=(batch, *size, geometry.groups * depth)).astype("float32")
    mask = rng.normal(size=(batch, *out, samples)).astype("float32")
    upstream = rng.normal(size=(batch, *out, geometry.groups * depth)).astype("float32")
    offset = spread * rng.normal(size=(batch, *out, 2 * samples))
    offset = away_from_pixels(offset, geometry, out, rng)

    output, grads = value_and_grads(
        lambda *tensors: dcnv3(*tensors, **options), [inputs, offset, mask], upstream
    )
    # Errors are judged against the size of the terms, for a sum may vanish by itself.
    terms = oracle.forward(
        np.abs(inputs),
        offset,
        np.abs(mask) if options["mask_activation"] is None else mask,
        **options,
    )
    error = np.abs(output - oracle.forward(inputs, offset, mask, **options)).max()
    assert error <= 4e-6 * max(np.abs(terms).max(), 1e-3)
    truth = oracle.gradients(inputs, offset, mask, upstream, **options)
    for grad, expected in zip(grads, truth, strict=True):
        if np.abs(expected).max() > 1e-3:
            assert relative_error(grad, expected) < 2e-5
        else:
            assert np.abs(grad).max() < 1e-3
