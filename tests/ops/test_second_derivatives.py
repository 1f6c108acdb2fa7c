"""Derivatives of gradients, as gradient penalties and meta-learning ask for, by differences."""

import keras
import numpy as np
import oracle
import pytest
from gradients import penalty_grads, relative_error

from keras_internimage.ops import dcnv3

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.usefixtures("implementation")


def arrays(points=9, groups=2, depth=3, size=(4, 5), out=None, joined=False):
    """Inputs, offsets and masks, with all samples away from the lines between cells."""
    rng = np.random.default_rng(0)
    out = out or size
    offset = rng.integers(-1, 2, (2, *out, 2 * groups * points))
    offset = offset + rng.uniform(0.2, 0.8, offset.shape)
    return [
        rng.normal(size=(2, *size, groups * depth)),
        offset,
        rng.normal(size=(2, *out, groups * points)),
    ]


def penalty(tensors, options):
    output = oracle.forward(*tensors, **options)
    grads = oracle.gradients(*tensors, 2 * output, **options)
    return sum((grad**2).sum() for grad in grads)


def check_by_differences(grads, tensors, options, tolerance):
    """Along random directions, against differences of the penalty in float64."""
    rng = np.random.default_rng(1)
    for i, grad in enumerate(grads):
        assert np.abs(grad).max() > 0.1
        for _ in range(2):
            direction = rng.normal(size=grad.shape)
            ahead, behind = list(tensors), list(tensors)
            ahead[i] = tensors[i] + 1e-5 * direction
            behind[i] = tensors[i] - 1e-5 * direction
            expected = (penalty(ahead, options) - penalty(behind, options)) / 2e-5
            size = np.linalg.norm(grad.astype("float64"))
            assert abs((grad * direction).sum() - expected) < tolerance * size, i


# JAX computes in float64 only where that is switched on before anything else.
DTYPE, TOLERANCE = ("float32", 1e-5) if BACKEND == "jax" else ("float64", 1e-6)
GEOMETRIES = [
    {},
    {"mask_activation": "softmax"},
    {"strides": 2, "offset_scale": 0.7, "remove_center": True, "mask_activation": "softmax"},
]


@pytest.mark.parametrize("changes", GEOMETRIES, ids=lambda changes: "-".join(changes) or "default")
def test_a_gradient_penalty(implementation, changes):
    options = {"groups": 2, **changes}
    out = oracle.output_size(4, 5, **options)
    tensors = arrays(points=9 - changes.get("remove_center", False), out=out)
    if options.get("offset_scale", 1) != 1:  # the kernel's grid has fractions then
        tensors[1] = tensors[1] / options["offset_scale"]
    given = [t.astype(DTYPE) for t in tensors]
    grads = penalty_grads(lambda *t: dcnv3(*t, **options, implementation=implementation), given)
    check_by_differences(grads, tensors, options, TOLERANCE)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's transformations")
def test_a_gradient_penalty_by_functorch(implementation):
    """Also mapped, and the same as by `create_graph=True`."""
    import torch

    options = {"groups": 2, "mask_activation": "softmax", "implementation": implementation}
    tensors = [torch.from_numpy(t) for t in arrays()]

    def penalty(*tensors):
        first = torch.func.grad(lambda *t: dcnv3(*t, **options).square().sum(), (0, 1, 2))
        return sum(grad.square().sum() for grad in first(*tensors))

    expected = penalty_grads(lambda *t: dcnv3(*t, **options), tensors)
    second = torch.func.grad(penalty, (0, 1, 2))
    twice = [torch.stack([t, t]) for t in tensors]
    for found, mapped, want in zip(
        second(*tensors), torch.vmap(second)(*twice), expected, strict=True
    ):
        assert relative_error(found, want) < 1e-12
        assert relative_error(mapped[1], want) < 1e-12
