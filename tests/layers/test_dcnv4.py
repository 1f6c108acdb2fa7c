"""The DCNv4 module against the official one's numbers, and what a new one computes."""

import json
import pathlib

import keras
import numpy as np
import pytest
from deterministic import official_weight
from gradients import relative_error
from keras import ops
from models.reference import gradients

from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.layers import DCNv3, DCNv4, InternImageBlock
from keras_internimage.ops.dcnv4 import packing

DATA = pathlib.Path(__file__).parents[1] / "data" / "dcnv4_layer"
CASES = json.loads((DATA / "cases.json").read_text())
FORWARD, GRADIENT = 1e-5, 1e-4


def build(name, height, width):
    """A model of one layer, and its arguments."""
    options = dict(CASES[name])
    options.pop("parameters")
    channels, groups = options.pop("channels"), options.pop("group")
    # Named as in a block, for the table of names.
    inputs = keras.Input((height, width, channels))
    layer = DCNv4(groups, name="dcn", **options)
    return keras.Model(inputs, layer(inputs)), layer


def to_official(layer, path, value):
    """`{name: array}` in the official layout of a variable's value or gradient."""
    if "offset_mask_proj" in path and layer.remove_center:
        # No model has such a layer, hence no table.
        order = np.argsort(packing(layer.groups, layer.geometry.points))
        leaf = "weight" if path.endswith("kernel") else "bias"
        return {f"offset_mask.{leaf}": value.T[order]}
    found = TABLE.to_official(f"stage1_block1/dcn/{path}", value)
    return {key.partition(".dcn.")[2]: array for key, array in found.items()}


def fill(layer, name, seed):
    shapes = CASES[name]["parameters"]
    for variable in layer.variables:
        path = variable.path.partition("dcn/")[2]
        official = to_official(layer, path, np.zeros(variable.shape, "float32"))
        values = {
            key: official_weight(f"dcn.{key}", shapes[f"dcn.{key}"], seed) for key in official
        }
        if "offset_mask_proj" in path and layer.remove_center:
            (value,) = values.values()
            value = value[packing(layer.groups, layer.geometry.points)].T
        else:
            block = f"stage1_block1/dcn/{path}"
            value = TABLE.to_keras(
                block, {f"levels.0.blocks.0.dcn.{k}": v for k, v in values.items()}
            )
        variable.assign(value)


@pytest.mark.parametrize("name", CASES)
def test_reference(name):
    case = np.load(DATA / f"{name}.npz")
    height, width = (int(n) for n in case["size"])
    model, layer = build(name, height, width)
    fill(layer, name, int(case["seed"]))
    assert sum(np.prod(v.shape) for v in layer.variables) <= sum(
        np.prod(shape) for shape in CASES[name]["parameters"].values()
    )
    image = (-1, height, width, CASES[name]["channels"])
    x = case["input"].reshape(image)
    output = ops.convert_to_numpy(model(x)).reshape(case["output"].shape)
    assert relative_error(output, case["output"]) < FORWARD
    found = gradients(model, x, case["grad_output"].reshape(image))
    to_inputs = found.pop("image").reshape(case["grad_input"].shape)
    assert relative_error(to_inputs, case["grad_input"]) < GRADIENT
    official = {}
    for path, gradient in found.items():
        official.update(to_official(layer, path.partition("dcn/")[2], gradient))
    assert {f"dcn.{key}" for key in official} == set(CASES[name]["parameters"])
    for key, gradient in official.items():
        assert relative_error(gradient, case[f"grad.{key}"]) < GRADIENT, key


def test_a_new_layer_gives_its_bias():
    """And only its masks have a gradient, but for the output projection."""
    inputs = keras.Input((5, 6, 32))
    layer = DCNv4(2, dw_kernel_size=3, center_feature_scale=False)
    model = keras.Model(inputs, layer(inputs))
    layer.output_proj.bias.assign(np.arange(32))
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 32)).astype("float32")
    output = ops.convert_to_numpy(model(x))
    np.testing.assert_array_equal(output, np.broadcast_to(np.arange(32), output.shape))
    found = gradients(model, x, np.random.default_rng(1).normal(size=x.shape).astype("float32"))
    kernel = next(v for path, v in found.items() if path.endswith("offset_mask_proj/kernel"))
    assert not kernel[:, :36].any() and np.abs(kernel[:, 36:]).min(axis=0).all()
    moving = {path for path, gradient in found.items() if np.abs(gradient).max() > 0}
    assert {path.partition("/")[2] for path in moving} == {
        "offset_mask_proj/kernel", "offset_mask_proj/bias", "output_proj/bias",
    }  # fmt: skip


@pytest.mark.any_backend
def test_it_has_no_more_than_it_needs():
    def names(**options):
        layer = DCNv4(2, **options)
        layer.build((1, 4, 4, 32))
        return [v.path.partition("/")[2] for v in layer.variables]

    points = ["offset_mask_proj/kernel", "offset_mask_proj/bias"]
    assert names(without_pointwise=True) == points
    assert "output_proj/bias" in names() and "output_proj/bias" not in names(output_bias=False)
    assert "offset_mask_dw/kernel" in names(dw_kernel_size=3)
    assert not any("dw" in name or "norm" in name for name in names())


@pytest.mark.any_backend
@pytest.mark.parametrize("dw_kernel_size", [None, 3])
def test_strides_predict_where_they_sample(dw_kernel_size):
    """Every second pixel of what the layer computes without strides."""
    x = np.random.default_rng(0).normal(size=(1, 7, 6, 32)).astype("float32")
    plain = DCNv4(2, dw_kernel_size=dw_kernel_size)
    strided = DCNv4(2, dw_kernel_size=dw_kernel_size, strides=2)
    plain(x), strided(x)
    rng = np.random.default_rng(1)
    for one, other in zip(plain.variables, strided.variables, strict=True):
        value = rng.normal(scale=0.2, size=one.shape)
        one.assign(value), other.assign(value)
    expected = ops.convert_to_numpy(plain(x))[:, ::2, ::2]
    np.testing.assert_allclose(ops.convert_to_numpy(strided(x)), expected, rtol=0, atol=1e-5)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DCNv4(3).build((1, 4, 4, 32)), "groups=3, input channels=32"),
        (lambda: DCNv4(2, dw_kernel_size=2), "dw_kernel_size"),
        (lambda: DCNv4(2, offset_scale=None), "`offset_scale` must be .* offset_scale=None"),
        (lambda: DCNv4(2, strides=2, center_feature_scale=True), "strides of 1"),
        (lambda: InternImageBlock(2, core_op="DCNv5"), "core_op='DCNv5'"),
        (lambda: InternImageBlock(2, dcn_output_bias=False), "must be True with DCNv3"),
        (
            lambda: InternImageBlock(2, core_op="DCNv4", mask_activation="sigmoid"),
            "mask_activation='sigmoid'",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.any_backend
def test_a_block_has_the_operator_asked_for():
    assert isinstance(InternImageBlock(2).dcn, DCNv3)
    block = InternImageBlock(2, core_op="DCNv4", dcn_output_bias=False, mlp_fc2_bias=False)
    block.build((1, 4, 4, 32))
    assert isinstance(block.dcn, DCNv4) and not block.dcn.output_bias
    assert block.mlp_fc2.bias is None and block.mlp_fc1.bias is not None
