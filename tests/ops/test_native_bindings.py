"""What each framework asks of an operator: shapes, tracing, transformations, errors."""

import keras
import numpy as np
import oracle
import pytest
from gradients import relative_error

from keras_internimage.layers import DCNv3
from keras_internimage.ops import DCNv3Geometry, dcnv3, dispatch, native, tracing

BACKEND = keras.backend.backend()
OPTIONS = {"groups": 2, "mask_activation": "softmax"}
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX")


@pytest.fixture(autouse=True)
def _needs_kernels():
    reason = native.Native().why_not()
    if reason is not None:
        pytest.skip(f"the kernels do not run here: {reason}")


def arrays(batch=2, size=(6, 5), groups=2, depth=4, points=9, seed=0):
    rng = np.random.default_rng(seed)
    last = (groups * depth, groups * points * 3, groups * depth)
    return [rng.normal(size=(batch, *size, c)).astype("float32") for c in last]


def truth(inputs, offset_mask):
    split = offset_mask.shape[-1] // 3 * 2
    return oracle.forward(inputs, offset_mask[..., :split], offset_mask[..., split:], **OPTIONS)


def torch_arguments(dtype="float32", **changes):
    """Arguments of `torch.ops.keras_internimage.dcnv3`, and an upstream gradient."""
    import torch

    inputs, offset_mask, upstream = (
        torch.from_numpy(a).to(getattr(torch, dtype)) for a in arrays()
    )
    named = {
        "inputs": inputs,
        "offset_mask": offset_mask,
        "kernel_size": [3, 3],
        "strides": [1, 1],
        "padding": [1, 1],
        "dilation_rate": [1, 1],
        "groups": 2,
        "offset_scale": 1.0,
        "remove_center": False,
        "softmax": True,
        **changes,
    }
    return tuple(named.values()), upstream


@on_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_opcheck(dtype):
    import torch

    arguments, upstream = torch_arguments(dtype)
    inputs, offset_mask, *geometry = arguments
    leaves = inputs.requires_grad_(), offset_mask.requires_grad_()
    operators = torch.ops.keras_internimage
    torch.library.opcheck(operators.dcnv3.default, (*leaves, *geometry))
    torch.library.opcheck(
        operators.dcnv3_backward.default,
        (upstream, inputs.detach(), offset_mask.detach(), *geometry, False),
    )


@on_torch
def test_gradcheck():
    import torch

    arguments, _ = torch_arguments("float64")
    inputs, offset_mask, *geometry = arguments
    # Away from the lines between cells, where the gradient jumps.
    offset_mask = offset_mask.floor() + 0.2 + 0.6 * (offset_mask - offset_mask.floor())
    inputs, offset_mask = (t[:1, :3, :3].contiguous() for t in (inputs, offset_mask))
    leaves = inputs.requires_grad_(), offset_mask.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *t: torch.ops.keras_internimage.dcnv3(*t, *geometry), leaves, eps=1e-6
    )


@on_torch
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 1)])
def test_torch_vmap(in_dims):
    import torch

    inputs, offset_mask, _ = (torch.from_numpy(a) for a in arrays(batch=3))
    pairs = list(zip((inputs, offset_mask), in_dims, strict=True))
    tensors = [t if d is None else torch.stack([t, 2 * t], dim=d) for t, d in pairs]

    def run(*tensors):
        return dcnv3(*tensors, **OPTIONS, implementation="native")

    mapped = torch.vmap(run, in_dims=in_dims)(*tensors)
    for k, factor in enumerate((1, 2)):
        one = [t if d is None else factor * t for t, d in pairs]
        assert relative_error(mapped[k].numpy(), truth(*(t.numpy() for t in one))) < 4e-6

    def loss(*tensors):
        return run(*tensors).square().sum()

    grads = torch.vmap(torch.func.grad(loss), in_dims=in_dims)(*tensors)
    for k, factor in enumerate((1, 2)):
        one = [t if d is None else factor * t for t, d in pairs]
        torch.testing.assert_close(grads[k], torch.func.grad(loss)(*one))


@on_torch
def test_torch_export_can_keep_the_operator_and_unknown_sizes():
    import torch

    class Module(torch.nn.Module):
        def forward(self, inputs, offset_mask):
            return dcnv3(inputs, offset_mask, **OPTIONS)

    example = tuple(torch.from_numpy(a) for a in arrays()[:2])
    shapes = {0: torch.export.Dim("n"), 1: torch.export.Dim("h"), 2: torch.export.Dim("w")}
    with tracing.operators("native"):
        program = torch.export.export(Module(), example, dynamic_shapes=(shapes, shapes))
    assert "keras_internimage.dcnv3" in str(program.graph)
    tensors = arrays(batch=3, size=(4, 7))[:2]
    output = program.module()(*(torch.from_numpy(a) for a in tensors))
    assert relative_error(output.numpy(), truth(*tensors)) < 4e-6


@on_torch
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, r"multiple of `groups`.*Received: .*groups=3"),
        ({"strides": [2, 2]}, r"`offset_mask` must have the shape .*Received"),
        ({"kernel_size": [3]}, r"must have two elements\. Received: 1"),
        ({"padding": [1, -5]}, r"`padding` must not be negative"),
    ],
)
def test_torch_operator_checks_what_it_is_given(changes, message):
    import torch

    arguments, _ = torch_arguments(**changes)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.keras_internimage.dcnv3(*arguments)


@on_torch
def test_torch_views_are_read_as_they_are_seen():
    import torch

    inputs, offset_mask, _ = (torch.from_numpy(a) for a in arrays())
    run = lambda *t: dcnv3(*t, **OPTIONS, implementation="native")  # noqa: E731
    seen = run(inputs.transpose(1, 2).contiguous().transpose(1, 2), offset_mask.flip(0).flip(0))
    torch.testing.assert_close(seen, run(inputs, offset_mask), rtol=0, atol=0)


@on_jax
def test_jax_nested_vmap_with_gradients():
    import jax

    inputs, offset_mask, upstream = (
        np.stack([a, 2 * a, 3 * a])[:, None].repeat(2, 1) for a in arrays()
    )

    def loss(*tensors):
        return (dcnv3(*tensors, **OPTIONS, implementation="native") * upstream[0, 0]).sum()

    grad = jax.grad(loss, argnums=(0, 1))
    mapped = jax.jit(jax.vmap(jax.vmap(grad), in_axes=(0, 0)))(inputs, offset_mask)
    for i in range(3):
        for one, many in zip(grad(inputs[i, 0], offset_mask[i, 0]), mapped, strict=True):
            np.testing.assert_allclose(many[i, 1], one, rtol=1e-6, atol=1e-6)
    only_inputs = jax.vmap(grad, in_axes=(0, None))(inputs[:, 0], offset_mask[0, 0])
    assert only_inputs[1].shape == (3, *offset_mask.shape[2:])


@on_jax
def test_jax_calls_the_kernels_inside_a_jit():
    import jax

    tensors = arrays()[:2]
    run = jax.jit(lambda *t: dcnv3(*t, **OPTIONS))
    assert "keras_internimage_dcnv3" in run.lower(*tensors).compile().as_text()
    assert relative_error(np.asarray(run(*tensors)), truth(*tensors)) < 4e-6


@on_tensorflow
def test_tensorflow_infers_shapes_from_what_is_known():
    import tensorflow as tf

    def output(inputs, offset_mask, **geometry):
        @tf.function(input_signature=[tf.TensorSpec(inputs), tf.TensorSpec(offset_mask)])
        def run(*tensors):
            return dcnv3(*tensors, **OPTIONS, **geometry, implementation="native")

        return run.get_concrete_function().output_shapes.as_list()

    assert output((None, None, None, 8), (None, None, None, 54)) == [None, None, None, 8]
    assert output((None, 9, None, 8), (2, None, 4, 54), strides=2) == [2, 5, 4, 8]


@on_tensorflow
def test_tensorflow_under_xla_takes_the_portable_operator():
    import tensorflow as tf

    tensors = arrays()[:2]
    plain = tf.function(lambda *t: dcnv3(*t, **OPTIONS))
    compiled = tf.function(lambda *t: dcnv3(*t, **OPTIONS), jit_compile=True)
    for run, kernels in ((plain, True), (compiled, False)):
        graph = run.get_concrete_function(*map(tf.constant, tensors)).graph
        found = any(op.type == "KerasInternimageDcnv3" for op in graph.get_operations())
        assert found is kernels
        assert relative_error(run(*tensors).numpy(), truth(*tensors)) < 4e-6


@on_tensorflow
def test_keras_does_not_choose_xla_for_the_kernels(monkeypatch):
    layer = DCNv3(2)
    assert not layer.supports_jit
    assert DCNv3(2, implementation="portable").supports_jit
    monkeypatch.setenv(native.VARIABLE, "off")
    assert layer.supports_jit


@on_tensorflow
def test_tensorflow_operation_checks_what_it_is_given():
    import tensorflow as tf

    from keras_internimage.ops.native import tensorflow as native_tensorflow

    inputs, offset_mask, _ = arrays()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"multiple of `groups`.*groups=3"):
        native_tensorflow.call(inputs, offset_mask, DCNv3Geometry(groups=3), True)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="there the choice is made for each call")
def test_layers_leave_jit_to_keras():
    assert DCNv3(2).supports_jit


def test_scale_is_passed_in_double_precision():
    """In float64 a scale of single precision would show."""
    if BACKEND == "jax":
        pytest.skip("JAX computes in float64 only where the user enables it")
    inputs, offset_mask, _ = (a.astype("float64") for a in arrays())
    options = {**OPTIONS, "offset_scale": 0.7}
    output = dcnv3(
        *(keras.ops.convert_to_tensor(t, "float64") for t in (inputs, offset_mask)),
        **options,
        implementation="native",
    )
    exact = oracle.forward(inputs, offset_mask[..., :36], offset_mask[..., 36:], **options)
    assert relative_error(keras.ops.convert_to_numpy(output), exact) < 1e-13


def test_the_table_names_the_kernels_first():
    rows = dispatch.table()
    assert rows[0][0] == "native" and rows[0][2]
