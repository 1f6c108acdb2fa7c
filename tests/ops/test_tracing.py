"""The operator while it is traced: compiled, with unknown sizes, in saved models."""

import keras
import numpy as np
import oracle
import pytest
from gradients import relative_error, to_numpy, value_and_grads

from keras_internimage.ops import dcnv3

BACKEND = keras.backend.backend()
OPTIONS = {"groups": 2, "mask_activation": "softmax"}

pytestmark = pytest.mark.usefixtures("implementation")


def arrays(batch, height, width, channels=8, groups=2, seed=0):
    rng = np.random.default_rng(seed)
    last = (channels, groups * 18, groups * 9, channels)
    return [rng.normal(size=(batch, height, width, c)).astype("float32") for c in last]


def check(output, grads, tensors, upstream):
    assert relative_error(output, oracle.forward(*tensors, **OPTIONS)) < 4e-6
    truth = oracle.gradients(*tensors, upstream, **OPTIONS)
    for grad, expected in zip(grads, truth, strict=True):
        assert relative_error(grad, expected) < 2e-5


@pytest.mark.parametrize(
    ("mode", "batch"), [("jit", 3)] + [("graph", 1), ("graph", 3)] * (BACKEND == "tensorflow")
)
def test_compiled(mode, batch):
    *tensors, upstream = arrays(batch, 6, 5)
    output, grads = value_and_grads(lambda *t: dcnv3(*t, **OPTIONS), tensors, upstream, mode=mode)
    check(output, grads, tensors, upstream)


def model():
    """Offsets and masks come in as inputs, so that the operator is all there is."""
    inputs = [keras.Input((None, None, c)) for c in (8, 36, 18)]
    return keras.Model(inputs, dcnv3(*inputs, **OPTIONS))


def test_functional_model_with_unknown_sizes(tmp_path):
    net = model()
    assert net.output_shape == (None, None, None, 8)
    net.save(tmp_path / "net.keras")
    reloaded = keras.saving.load_model(tmp_path / "net.keras")
    for batch, height, width in ((1, 4, 5), (3, 5, 4), (2, 1, 1)):
        tensors = arrays(batch, height, width)[:3]
        expected = oracle.forward(*tensors, **OPTIONS)
        for one in (net, reloaded):
            assert relative_error(to_numpy(one(tensors)), expected) < 4e-6
        assert relative_error(net.predict(tensors, verbose=0), expected) < 4e-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_tf_function_with_unknown_sizes(jit_compile):
    import tensorflow as tf

    signature = [tf.TensorSpec((None, None, None, c)) for c in (8, 8, 36, 18)]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def run(upstream, *tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = dcnv3(*tensors, **OPTIONS)
        return output, tape.gradient(output, tensors, output_gradients=upstream)

    for shape in ((1, 4, 5), (3, 5, 4)):
        *tensors, upstream = arrays(*shape)
        output, grads = run(upstream, *tensors)
        check(output, grads, tensors, upstream)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.vmap")
def test_vmap():
    import jax

    *tensors, upstream = (a[:, None] for a in arrays(3, 5, 4))

    def loss(*tensors):
        return (dcnv3(*tensors, **OPTIONS) * upstream[0]).sum()

    value, grads = jax.vmap(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*tensors)
    flat = [t[:, 0] for t in tensors]
    same = np.broadcast_to(upstream[0], upstream.shape)[:, 0]
    expected = (oracle.forward(*flat, **OPTIONS) * same).sum(axis=(1, 2, 3))
    assert relative_error(value, expected) < 4e-6
    for grad, truth in zip(grads, oracle.gradients(*flat, same, **OPTIONS), strict=True):
        assert relative_error(grad[:, 0], truth) < 2e-5


@pytest.mark.skipif(BACKEND != "torch", reason="torch.export")
def test_torch_export_with_unknown_batch():
    import torch

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return dcnv3(*tensors, **OPTIONS)

    example = tuple(torch.from_numpy(a) for a in arrays(2, 5, 4)[:3])
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Module(), example, dynamic_shapes={"tensors": ({0: batch}, {0: batch}, {0: batch})}
    )
    tensors = arrays(5, 5, 4)[:3]
    output = program.module()(*(torch.from_numpy(a) for a in tensors))
    assert relative_error(output.detach().numpy(), oracle.forward(*tensors, **OPTIONS)) < 4e-6


def test_fit_moves_the_offsets():
    """From zero offsets, the official initialisation, one step changes them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 6, 8)).astype("float32")
    image = keras.Input((6, 6, 8))
    offset = keras.layers.Dense(36, kernel_initializer="zeros", name="offset")(image)
    mask = keras.layers.Dense(18, kernel_initializer="zeros")(image)
    net = keras.Model(image, dcnv3(image, offset, mask, **OPTIONS))
    net.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
    net.fit(x, x, batch_size=4, epochs=1, verbose=0)
    assert np.abs(net.get_layer("offset").get_weights()[0]).max() > 1e-6
