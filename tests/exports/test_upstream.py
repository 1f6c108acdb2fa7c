"""What Keras and other projects' exporters get wrong for any model, on a model of two layers.

Each test names the versions it was seen with, and is skipped with others: whoever raises a pinned
version sees here which detours of `keras_internimage.exports` to try without.
"""

import importlib.metadata

import keras
import numpy as np
import pytest

BACKEND = keras.config.backend()


def upstream(backend, **versions):
    """Runs a test on `backend` with these versions of packages only."""
    different = [
        f"{package} {installed}"
        for package, version in versions.items()
        if (installed := importlib.metadata.version(package).partition("+")[0]) != version
    ]
    return pytest.mark.skipif(
        BACKEND != backend or bool(different), reason=f"{backend}; {different or 'no difference'}"
    )


def control(layer=None):
    images = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(4, 3)(images)
    model = keras.Model(images, (layer or keras.layers.Dense(4))(features))
    model(np.zeros((2, 8, 8, 3), "float32"))
    return model


@upstream("torch", keras="3.15.1", torch="2.13.0")
def test_keras_cannot_write_a_saved_model_by_pytorch(tmp_path):
    with pytest.raises(Exception, match="mismatch between the structure of `inputs`"):
        control().export(tmp_path / "model", format="tf_saved_model", verbose=False)


@upstream("torch", keras="3.15.1", torch="2.13.0")
def test_keras_cannot_write_onnx_of_any_batch_with_layer_normalization(tmp_path):
    control().export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)
    with pytest.raises(Exception, match="because it is not constant"):
        control(keras.layers.LayerNormalization()).export(
            str(tmp_path / "norm.onnx"), format="onnx", verbose=False
        )


@upstream("torch", keras="3.15.1", torch="2.13.0")
def test_keras_writes_pytorch_programs_for_one_image(tmp_path):
    import torch

    control().export(str(tmp_path / "model.pt2"), format="torch", verbose=False)
    program = torch.export.load(tmp_path / "model.pt2").module()
    program(torch.zeros(1, 8, 8, 3))
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.zeros(2, 8, 8, 3))


@upstream("tensorflow", keras="3.15.1")
def test_keras_writes_the_weights_of_a_saved_model_twice(tmp_path):
    images = keras.Input((8, 8, 512))
    model = keras.Model(images, keras.layers.Dense(1000)(images))
    model.export(tmp_path / "model", format="tf_saved_model", verbose=False)
    (values,) = (tmp_path / "model" / "variables").glob("*.data*")
    assert values.stat().st_size > 2 * 4 * model.count_params()


@upstream("jax", keras="3.15.1", openvino="2026.4.1")
def test_keras_cannot_write_openvino_by_jax(tmp_path):
    with pytest.raises(Exception, match="XlaCallModule"):
        control().export(str(tmp_path / "model.xml"), format="openvino", verbose=False)


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_keras_cannot_recompute_a_model(backend):
    marker = upstream(backend, keras="3.15.1")
    if marker.args[0]:
        pytest.skip(marker.kwargs["reason"])
    images = keras.Input((4,))
    features = keras.layers.BatchNormalization()(keras.layers.Dense(8)(images))
    with keras.RematScope(mode="full"):
        model = keras.Model(images, features)
        model.compile("sgd", "mse")
        with pytest.raises((RuntimeError, ValueError), match="custom_gradient|automatically build"):
            model.train_on_batch(np.zeros((2, 4)), np.zeros((2, 8)))


@upstream("torch", keras="3.15.1")
def test_keras_draws_anew_for_a_gradient():
    """The reason why blocks draw for stochastic depth before what is rematerialised."""
    import torch

    with keras.RematScope(mode="full"):
        layer = keras.layers.Dropout(0.5, seed=1)
    x = torch.ones((1, 64), requires_grad=True)
    y = layer(x * 1, training=True)
    (y**2).sum().backward()
    assert (x.grad[y > 0] == 0).any()


@upstream("torch", openvino="2026.4.1")
def test_openvino_cannot_read_deform_conv(tmp_path):
    import onnx
    import openvino

    shapes = {"x": (1, 2, 4, 4), "w": (2, 1, 1, 1), "o": (1, 2, 4, 4), "b": (2,), "m": (1, 1, 4, 4)}
    inputs = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in shapes.items()]
    output = onnx.helper.make_tensor_value_info("y", 1, (1, 2, 4, 4))
    node = onnx.helper.make_node("DeformConv", list(shapes), ["y"], group=2)
    graph = onnx.helper.make_graph([node], "control", inputs, [output])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(Exception, match="DeformConv"):
        openvino.convert_model(tmp_path / "model.onnx")


@upstream("tensorflow", keras="3.15.1")
def test_derivatives_of_a_layer_norms_gradient_are_wrong():
    """The reason for our own in the sub-layer fast path: `tf.nn.moments` stops a gradient."""
    import tensorflow as tf

    layer = keras.layers.LayerNormalization(dtype="float64")
    layer.build((1, 6))
    x, weights = np.random.default_rng(0).normal(size=(2, 1, 6))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(weights * layer(x) ** 3)
        return tape.gradient(total, x)

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        first = gradient(x)[0, 0]
    found = tape.gradient(first, x)[0, 0]
    step = np.eye(1, 6) * 1e-5
    expected = (gradient(x + step) - gradient(x - step))[0, 0] / 2e-5
    assert abs(found - expected) > 1e-3 * abs(expected)
