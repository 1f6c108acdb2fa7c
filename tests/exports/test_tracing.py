"""No native operator slips into what others write, and nobody has to do anything for it."""

import keras
import numpy as np
import pytest
from small_models import one_block

from keras_internimage import layers, portable_ops
from keras_internimage.exports import formats
from keras_internimage.ops import dispatch

BACKEND = keras.config.backend()
if not dispatch.runs("native"):
    pytest.skip("there are no native kernels to leave out", allow_module_level=True)


@pytest.fixture(scope="module")
def model():
    """A model within a user's own, after `fit` and `predict`."""
    images = keras.Input((32, 32, 3))
    model = keras.Model(images, keras.layers.Dense(3)(one_block((32, 32))(images)))
    model.compile("sgd", "mse")
    x = np.zeros((2, 32, 32, 3), "float32")
    model.fit(x, np.zeros((2, 3)), verbose=0)
    model.predict(x, verbose=0)
    return model


@pytest.fixture
def used(monkeypatch):
    """The names of the implementations that ran."""
    names = []
    for implementation in dispatch.IMPLEMENTATIONS:

        def run(*arguments, _run=implementation.run, _name=implementation.name):
            names.append(_name)
            return _run(*arguments)

        monkeypatch.setattr(implementation, "run", run)
    return names


OWN = {
    "tensorflow": {"tf_saved_model": "model", "litert": "model.tflite", "openvino": "model.xml"},
    "jax": {"tf_saved_model": "model"},
    "torch": {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"},
}[BACKEND]


@pytest.mark.parametrize("kind", OWN)
def test_keras_own_export(tmp_path, model, used, kind):
    """And what it writes computes the same, in its runtime."""
    one = [keras.InputSpec(shape=(1, 32, 32, 3), dtype="float32")]
    model.export(str(tmp_path / OWN[kind]), format=kind, input_signature=one, verbose=False)
    # OpenVINO's converter also calls the model once, with numbers.
    assert set(used) == {"portable"} or (kind == "openvino" and "portable" in used)
    for file in [tmp_path / OWN[kind], *tmp_path.rglob("*")]:
        assert file.is_dir() or b"dcnv3.default" not in file.read_bytes()
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    (found,) = formats.runner(tmp_path / OWN[kind])(x).values()
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's")
def test_tensorflows_exporters(tmp_path, model, used):
    import tensorflow as tf

    module = tf.Module()
    module.variables_ = [v.value for v in model.variables]
    signature = [tf.TensorSpec((None, 32, 32, 3))]
    module.serve = tf.function(model, input_signature=signature, autograph=False)
    tf.saved_model.save(module, str(tmp_path / "model"))
    assert set(used) == {"portable"}


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's")
def test_pytorchs_exporter(model, used):
    import torch

    torch.export.export(model, (torch.zeros(2, 32, 32, 3),), strict=False)
    assert set(used) == {"portable"}


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's")
def test_jaxs_exporter(model, used):
    import jax
    from jax import export

    trainable = len(model.trainable_variables)
    values = [v.value for v in model.trainable_variables + model.non_trainable_variables]

    def call(values, x):
        return model.stateless_call(values[:trainable], values[trainable:], x)[0]

    exported = export.export(jax.jit(call))(values, jax.ShapeDtypeStruct((2, 32, 32, 3), "float32"))
    assert set(used) == {"portable"}
    assert "custom_call @keras_internimage" not in exported.mlir_module()


def test_by_hand(model, used):
    x = np.zeros((1, 32, 32, 3), "float32")
    with portable_ops():
        model(x)
    assert set(used) == {"portable"}
    used.clear()
    model(x)
    assert set(used) == {"native"}


def test_a_model_forgets_what_it_traced(model, used):
    x = np.zeros((2, 32, 32, 3), "float32")
    layers.set_implementation(model, "portable")
    model.predict(x, verbose=0)
    assert set(used) == {"portable"}
    used.clear()
    layers.set_implementation(model, None)
    model.predict(x, verbose=0)
    assert set(used) == {"native"}
    with pytest.raises(ValueError, match="`implementation` must be"):
        layers.set_implementation(model, "fast")
