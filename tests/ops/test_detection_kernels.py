"""The kernels of RoIAlign and suppression on the backend in use: chosen, exact, transformed."""

import keras
import numpy as np
import pytest
from gradients import relative_error, to_numpy, value_and_grads
from keras import ops

from keras_internimage.ops import boxes as box_ops
from keras_internimage.ops import dispatch, native
from keras_internimage.ops.roi_align import roi_align
from keras_internimage.ops.tracing import portable_ops

BACKEND = keras.config.backend()
GRAPH = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}[BACKEND]
STRIDES = (4, 8)


@pytest.fixture(autouse=True)
def _needs_kernels():
    reason = native.Native().why_not()
    if reason is not None:
        pytest.skip(f"the kernels do not run here: {reason}")


def case(images=2, rois=6, channels=20):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(images, *size, channels)) for size in ((9, 13), (5, 7))]
    corner = rng.uniform(-10, 40, (images, rois, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(20, (images, rois, 2))], 2)
    levels = rng.integers(0, 2, (images, rois)).astype("int32")
    return [x.astype("float32") for x in maps], boxes.astype("float32"), levels


def align(maps, boxes, levels, implementation="native"):
    return roi_align(list(maps), boxes, STRIDES, levels, 3, implementation=implementation)


def as_tensors(*arrays):
    return [ops.convert_to_tensor(x) for x in arrays]


def test_they_are_chosen_where_they_can_run(monkeypatch):
    x = ops.zeros((1, 2, 2, 1))
    assert dispatch.native_kernels("roi_align", x) is not None
    assert dispatch.native_kernels("nms", x, "native") is not None
    assert dispatch.native_kernels("nms", x, "portable") is None
    with portable_ops():
        assert dispatch.native_kernels("roi_align", x) is None
    monkeypatch.setenv(native.VARIABLE, "off")
    with pytest.raises(RuntimeError, match="nms cannot run: switched off"):
        dispatch.native_kernels("nms", x, "native")


def test_gpus_run_roi_align_where_they_run_dcnv3(monkeypatch):
    """Of a library whose CUDA kernels the GPU can run, or cannot; suppression is portable."""
    reasons = {}
    monkeypatch.setattr(dispatch, "device_of", lambda tensor: "cuda")
    monkeypatch.setattr(native._binding, "why_not_cuda", lambda index=None: reasons.get("gpu"))
    x = ops.zeros((1, 2, 2, 1))
    assert dispatch.native_kernels("roi_align", x, "native") is native.Native().module_of("nms")
    assert dispatch.native_kernels("nms", x) is None
    with pytest.raises(RuntimeError, match="nms cannot run: .* suppression is portable on GPUs"):
        dispatch.native_kernels("nms", x, "native")
    request = dispatch.Request(BACKEND, dtype="float64", device="cuda", operator="roi_align")
    assert "float32, float16 and bfloat16" in native.Native().why_not(request)
    reasons["gpu"] = "too old"
    assert dispatch.native_kernels("roi_align", x) is None
    with pytest.raises(RuntimeError, match="roi_align cannot run: too old"):
        dispatch.native_kernels("roi_align", x, "native")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_types(dtype):
    """As the portable implementation, forward and backward, up to the type's rounding."""
    if BACKEND == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 unless it is asked for")
    maps, boxes, levels = case()
    boxes, levels = as_tensors(boxes, levels)
    upstream = np.random.default_rng(1).normal(size=(2, 6, 3, 3, 20)).astype("float32")
    found = {}
    for name in ("native", "portable"):

        def run(*maps, name=name):
            y = align([ops.cast(x, dtype) for x in maps], boxes, levels, name)
            assert keras.backend.standardize_dtype(y.dtype) == dtype
            return ops.cast(y, "float32")

        found[name] = value_and_grads(run, maps, upstream, GRAPH)
    bound = {"float64": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    for a, b in zip(*([value, *grads] for value, grads in found.values()), strict=True):
        assert relative_error(a, to_numpy(b).astype("float64")) < bound


def test_second_derivatives():
    """RoIAlign is linear in the maps: the derivative of <gradient, v> by upstream is that of v."""
    maps, boxes, levels = case()
    boxes, levels, upstream, *maps = as_tensors(
        boxes, levels, np.ones((2, 6, 3, 3, 20), "float32"), *maps
    )
    other = [x * x for x in maps]
    if BACKEND == "torch":
        import torch

        maps = [x.requires_grad_() for x in maps]
        upstream.requires_grad_()
        grads = torch.autograd.grad(align(maps, boxes, levels), maps, upstream, create_graph=True)
        total = sum((g * v).sum() for g, v in zip(grads, other, strict=True))
        (found,) = torch.autograd.grad(total, upstream)
    elif BACKEND == "jax":
        import jax

        def total(upstream):
            grads = jax.vjp(lambda *maps: align(maps, boxes, levels), *maps)[1](upstream)
            return sum((g * v).sum() for g, v in zip(grads, other, strict=True))

        found = jax.grad(total)(upstream)
    else:
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(upstream)
            with tf.GradientTape() as inner:
                inner.watch(maps)
                y = align(maps, boxes, levels)
            grads = inner.gradient(y, maps, upstream)
            total = sum(tf.reduce_sum(g * v) for g, v in zip(grads, other, strict=True))
        found = outer.gradient(total, upstream)
    assert relative_error(found, to_numpy(align(other, boxes, levels)).astype("float64")) < 1e-5


@pytest.mark.skipif(BACKEND != "jax", reason="JAX' transformations")
def test_vmap_and_grad_of_jax():
    import jax

    maps, boxes, levels = case(images=3)
    scores = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")

    def loss(x, y, boxes, levels, scores):
        index, valid = box_ops.nms(boxes, scores, levels, 0.5, 4, implementation="native")
        chosen = ops.take_along_axis(boxes, index[..., None], axis=1)
        pooled = align([x, y], chosen, ops.take_along_axis(levels, index, axis=1))
        return (pooled**2 * valid[..., None, None, None]).sum()

    arguments = as_tensors(*maps, boxes, levels, scores)
    expected = jax.grad(loss, (0, 1))(*arguments)
    one_by_one = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(*(a[:, None] for a in arguments))
    for a, b in zip(one_by_one, expected, strict=True):
        assert float(abs(b).max()) > 0
        np.testing.assert_allclose(a[:, 0], b, rtol=1e-5, atol=1e-6)
    shared = jax.vmap(lambda boxes: align([x[:1] for x in maps], boxes[None], levels[:1]))(
        arguments[2][:, :6]
    )
    np.testing.assert_allclose(
        shared[1], align([x[:1] for x in maps], arguments[2][1:2], levels[:1]), atol=1e-6
    )


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's transformations")
def test_transformations_of_pytorch():
    """`torch.func` takes the portable implementation; the compiler the kernels."""
    import torch

    maps, boxes, levels = case(images=1)
    *maps, boxes, levels = as_tensors(*maps, boxes, levels)

    def loss(*maps):
        return (roi_align(list(maps), boxes, STRIDES, levels, 3) ** 2).sum()

    inputs = [x.clone().requires_grad_() for x in maps]
    expected = torch.autograd.grad(loss(*inputs), inputs)
    for a, b in zip(torch.func.grad(loss, (0, 1))(*maps), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def suppress(boxes, scores):
        return box_ops.nms(boxes, scores, levels, 0.5, 4)

    scores = torch.arange(6.0)[None]
    compiled = torch.compile(suppress, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(boxes, scores), suppress(boxes, scores), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["roi_align", "roi_align_backward", "nms"])
@pytest.mark.skipif(BACKEND != "torch", reason="operators of PyTorch")
def test_pytorch_finds_the_operators_well_defined(name):
    import torch

    maps, boxes, levels = case()
    *maps, boxes, levels = as_tensors(*maps, boxes, levels)
    strides, bins = [4.0, 8.0], 3
    arguments = {
        "roi_align": ([x.requires_grad_() for x in maps], boxes, levels, strides, bins),
        "roi_align_backward": (
            torch.ones(2, 6, 3, 3, 20, requires_grad=True),
            boxes,
            levels,
            [9, 13, 5, 7],
            strides,
            bins,
        ),
        "nms": (boxes, boxes[..., 0].contiguous(), levels, 0.5, 4),
    }[name]
    torch.library.opcheck(getattr(torch.ops.keras_internimage, name).default, arguments)
