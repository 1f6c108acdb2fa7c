"""Convolutions by the kernels on the backend in use: chosen where they help, exact, transformed."""

import keras
import numpy as np
import pytest
from gradients import penalty_grads, relative_error, to_numpy, value_and_grads
from keras import ops

from keras_internimage.ops import convolution as module
from keras_internimage.ops import dispatch, native
from keras_internimage.ops.convolution import convolution, runs
from keras_internimage.ops.tracing import portable_ops

BACKEND = keras.config.backend()
GRAPH = {"tensorflow": "graph", "jax": "jit", "torch": "jit"}[BACKEND]
SHAPES = ((1, 29, 30, 64), (3, 3, 64, 70), (70,))


@pytest.fixture(autouse=True)
def _needs_kernels():
    reason = native.Native().why_not()
    if reason is not None:
        pytest.skip(f"the kernels do not run here: {reason}")


def case(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for shape in shapes or SHAPES]


def plain(x, kernel, bias, relu):
    y = ops.conv(x, kernel, padding="same", data_format="channels_last") + bias
    return ops.relu(y) if relu else y


@pytest.mark.parametrize("mode", ["eager", GRAPH])
@pytest.mark.parametrize("relu", [False, True])
def test_values_and_gradients(relu, mode):
    arrays = case()
    upstream = case((*SHAPES[0][:3], SHAPES[1][3]))[0]
    assert runs(*map(ops.convert_to_tensor, arrays[:2]))
    found, grads = value_and_grads(lambda *t: convolution(*t, relu), arrays, upstream, mode)
    expected, others = value_and_grads(lambda *t: plain(*t, relu), arrays, upstream)
    assert relative_error(found, expected) < 5e-6
    # A ReLU near its kink may differ: of all sums that a gradient is of, one or two terms.
    for own, other in zip(grads, others, strict=True):
        assert np.median(abs(own - other)) < 1e-6 * abs(other).max()
        assert relative_error(own, other) < (5e-2 if relu else 5e-6)


def test_second_derivatives():
    arrays = [a / 8 for a in case()]
    found = penalty_grads(lambda *t: convolution(*t, False), arrays)
    expected = penalty_grads(lambda *t: plain(*t, False), arrays)
    for own, other in zip(found, expected, strict=True):
        assert relative_error(own, other) < 1e-4


def test_several_images_are_each_for_itself():
    x, kernel, bias = map(ops.convert_to_tensor, case((3, 29, 30, 64), *SHAPES[1:]))
    together = to_numpy(convolution(x, kernel, bias))
    alone = to_numpy(convolution(x[1:2], kernel, bias))
    np.testing.assert_array_equal(together[1:2], alone)


def test_without_a_bias():
    x, kernel, bias = map(ops.convert_to_tensor, case())
    found = convolution(x, kernel)
    np.testing.assert_array_equal(found, convolution(x, kernel, ops.zeros_like(bias)))


@pytest.mark.parametrize(
    ("x", "kernel", "dtype"),
    [
        ((1, 29, 30, 64), (5, 5, 64, 64), "float32"),
        ((1, 29, 30, 64), (1, 1, 64, 64), "float32"),
        ((1, 29, 30, 32), (3, 3, 32, 64), "float32"),
        ((1, 29, 30, 64), (3, 3, 64, 32), "float32"),
        ((1, 16, 16, 64), (3, 3, 64, 64), "float32"),
        ((0, 29, 30, 64), (3, 3, 64, 64), "float32"),
        ((1, 29, 30, 64), (3, 3, 64, 64), "bfloat16"),
        ((1, 29, 30, 64), (3, 3, 64, 64), "float16"),
    ],
)
def test_what_the_backend_computes_as_fast(x, kernel, dtype):
    assert convolution(ops.zeros(x, dtype), ops.zeros(kernel, dtype)) is None


def test_what_the_kernels_cannot_run(monkeypatch):
    x, kernel, _ = map(ops.convert_to_tensor, case())
    with portable_ops():
        assert convolution(x, kernel) is None
    assert convolution(keras.KerasTensor(x.shape), kernel) is None
    with monkeypatch.context() as patch:
        patch.setenv(native.VARIABLE, "off")
        assert convolution(x, kernel) is None
    monkeypatch.setattr(dispatch, "device_of", lambda tensor: "cuda")
    assert convolution(x, kernel) is None


@pytest.mark.skipif(BACKEND != "jax", reason="jax.vmap and several devices")
def test_jax_transformations(monkeypatch):
    """What is mapped is the plain sum; so it is on several devices, each with its own images."""
    import jax

    x, kernel, bias = case((2, 29, 30, 64), (2, 3, 3, 64, 70), (2, 70))
    for axes in ((0, 0, 0), (0, None, None), (None, 0, None)):
        arguments = [a if b == 0 else a[0] for a, b in zip((x, kernel, bias), axes, strict=True)]
        arguments[0] = arguments[0][:, None] if axes[0] == 0 else arguments[0][None]
        found = jax.vmap(lambda *t: convolution(*t, True), axes)(*arguments)
        expected = jax.vmap(lambda *t: plain(*t, True), axes)(*arguments)
        assert relative_error(found, expected) < 5e-6
    _, tangent = jax.jvp(
        lambda x: convolution(x, kernel[0], bias[0]), (x[:1],), (np.ones_like(x[:1]),)
    )
    expected = plain(np.ones_like(x[:1]), kernel[0], 0 * bias[0], False)
    assert relative_error(tangent, expected) < 5e-6
    monkeypatch.setattr(module, "_several_devices", lambda: True)
    assert convolution(x, kernel[0]) is None


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA and unknown sizes, in TensorFlow")
def test_tensorflow_functions():
    import tensorflow as tf

    x, kernel, bias = case()
    expected = to_numpy(plain(x, kernel, bias, False))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 64))])
    def unknown(x):
        return convolution(x, kernel, bias)

    assert relative_error(unknown(x), expected) < 5e-6
    assert unknown(x[:0]).shape == (0, *expected.shape[1:])

    @tf.function(jit_compile=True)
    def compiled(x):
        assert convolution(x, kernel, bias) is None
        return plain(x, kernel, bias, False)

    assert relative_error(compiled(x), expected) < 5e-6


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's operators")
def test_torch_operator():
    import torch

    x, kernel, bias = (torch.from_numpy(a).requires_grad_() for a in case())
    for relu in (False, True):
        torch.library.opcheck(torch.ops.keras_internimage.convolution, (x, kernel, bias, relu))
    # `torch.func` has no rule for it.
    grads = torch.func.grad(lambda x: plain(x, kernel, bias, False).square().sum())(x)
    found = torch.func.grad(
        lambda x: (convolution(x, kernel, bias) or plain(x, kernel, bias, False)).square().sum()
    )
    torch.testing.assert_close(found(x), grads)
    with pytest.raises(RuntimeError, match="must be float32 on a processor"):
        torch.ops.keras_internimage.convolution(x.double(), kernel, bias, False)
    with pytest.raises(RuntimeError, match=r"`kernel` \(3, 3, C, F\)"):
        torch.ops.keras_internimage.convolution(x, kernel[:2], bias, False)
