"""The cascade's box head next to the same modules of PyTorch, in the official layout."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_internimage.checkpoints.names.cascade_mask_rcnn import TABLE
from keras_internimage.layers.detection import CascadeBoxHead

torch = pytest.importorskip("torch")
CHANNELS, UNITS, CLASSES = 4, 6, 3
PREFIX = "roi_head.bbox_head.1."


def as_array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def head(**arguments):
    layer = CascadeBoxHead(CLASSES, UNITS, name="box_head2", **arguments)
    layer.build((None, None, 7, 7, CHANNELS))
    return layer


def fill(layer):
    """Random values for all weights, and the same by their official names in PyTorch's layout."""
    rng = np.random.default_rng(0)
    state = {}
    for variable in layer.weights:
        low = 0.5 if "norm" in variable.path else -0.3
        value = rng.uniform(low, 1, variable.shape).astype("float32")
        variable.assign(value)
        for name, part in TABLE.to_official(variable.path, value).items():
            state[name.removeprefix(PREFIX)] = torch.from_numpy(part)
    return state


def modules(state):
    convolutions = []
    for k in range(4):
        convolution = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        norm = torch.nn.BatchNorm2d(CHANNELS)
        convolutions += [convolution, norm, torch.nn.ReLU()]
        convolution.weight.data = state[f"shared_convs.{k}.conv.weight"]
        name = f"shared_convs.{k}.bn."
        values = {key.removeprefix(name): v for key, v in state.items() if key.startswith(name)}
        norm.load_state_dict({**values, "num_batches_tracked": torch.tensor(0)})
    return torch.nn.Sequential(*convolutions)


def expected(state, convolutions, x):
    y = convolutions(torch.from_numpy(x.transpose(0, 3, 1, 2))).flatten(1)
    y = torch.relu(y @ state["shared_fcs.0.weight"].T + state["shared_fcs.0.bias"])
    pair = [y @ state[f"{name}.weight"].T + state[f"{name}.bias"] for name in ("fc_cls", "fc_reg")]
    return [x.detach().numpy() for x in pair]


def test_as_pytorch():
    layer = head()
    state = fill(layer)
    assert len(state) == 4 * 5 + 6
    convolutions = modules(state)
    x = np.random.default_rng(1).normal(size=(2, 3, 7, 7, CHANNELS)).astype("float32")
    logits, deltas = map(as_array, layer(ops.convert_to_tensor(x)))
    assert logits.shape == (2, 3, CLASSES + 1) and deltas.shape == (2, 3, CLASSES, 4)
    assert layer.compute_output_shape(x.shape) == (logits.shape, deltas.shape)
    convolutions.eval()
    for found, values in zip((logits, deltas), expected(state, convolutions, x[0]), strict=True):
        np.testing.assert_allclose(found[0].reshape(values.shape), values, rtol=2e-5, atol=1e-4)


def test_training_counts_the_regions_there_are():
    """Of five places in two images two are left over: neither statistics nor averages see them."""
    layer = head()
    state = fill(layer)
    convolutions = modules(state)
    x = np.random.default_rng(1).normal(size=(2, 5, 7, 7, CHANNELS)).astype("float32")
    valid = np.ones((2, 5), bool)
    valid[0, 4] = valid[1, 3] = False
    x[~valid] = 100
    outputs = layer(ops.convert_to_tensor(x), training=True, valid=ops.convert_to_tensor(valid))
    for found, values in zip(outputs, expected(state, convolutions, x[valid]), strict=True):
        found = as_array(found)[valid].reshape(values.shape)
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4)
    for k, norm in enumerate(convolutions[1::3]):
        own = layer.convolutions[k].norm
        np.testing.assert_allclose(as_array(own.moving_mean), norm.running_mean, rtol=1e-4)
        # PyTorch's is of a sample: n / (n - 1) of what this step adds.
        n = valid.sum() * 49
        before = state[f"shared_convs.{k}.bn.running_var"].numpy()
        added = (norm.running_var.numpy() - 0.9 * before) * (n - 1) / n
        np.testing.assert_allclose(as_array(own.moving_variance), 0.9 * before + added, rtol=1e-4)


@pytest.mark.any_backend
def test_config():
    layer = head(dtype="mixed_bfloat16")
    assert layer.scores.compute_dtype == "float32" and layer.fc.compute_dtype == "bfloat16"
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert (again.classes, again.units, again.name) == (CLASSES, UNITS, "box_head2")
    x = ops.ones((1, 2, 7, 7, CHANNELS))
    assert [str(y.dtype).removeprefix("torch.") for y in layer(x)] == ["float32"] * 2
