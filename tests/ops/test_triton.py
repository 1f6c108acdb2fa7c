"""The Triton kernels, on a GPU or interpreted, against the reference and the float64 truth."""

import dataclasses
import json
import pathlib
import sys

import keras
import numpy as np
import oracle
import pytest
from gradients import penalty_grads, relative_error, to_numpy, value_and_grads

from keras_internimage.ops import DCNv3Geometry, dcnv3, dispatch

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch's", allow_module_level=True)

import torch

from keras_internimage.ops import native
from keras_internimage.ops import triton as binding

DATA = pathlib.Path(__file__).parents[1] / "data" / "op"
CASES = json.loads((DATA / "cases.json").read_text())
WHY_NO_LAUNCHER = binding._why_no_launcher.__wrapped__
OPTIONS = {"groups": 2, "mask_activation": "softmax", "implementation": "triton"}


@pytest.fixture(autouse=True)
def operators(monkeypatch):
    """The operators' module. Interpreted programs are slow, and so they are few and large here."""
    reason = binding._why_not_here()
    if reason is not None and native.mode() == "require" and sys.platform == "linux":
        pytest.fail(f"the kernels must run where the native ones must: {reason}")
    if reason is not None:
        pytest.skip(f"the kernels do not run here: {reason}")
    from keras_internimage.ops.triton import operators

    if binding.interpreted():
        monkeypatch.setattr(operators, "MANY", 0)
        monkeypatch.setattr(operators, "WARPS", 64)
        monkeypatch.setattr(operators, "KEPT", 1 << 20)
        monkeypatch.setattr(operators, "_capability", lambda tensor: (9, 0))
    return operators


def arrays(batch=2, size=(4, 5), groups=2, depth=4, points=9, scale=1.0, seed=0):
    """Inputs, offsets, masks and an upstream gradient."""
    rng = np.random.default_rng(seed)
    last = (groups * depth, groups * points * 2, groups * points, groups * depth)
    return [(scale * rng.normal(size=(batch, *size, c))).astype("float32") for c in last]


def request(**changes):
    changes = {"backend": "torch", "geometry": DCNv3Geometry(), "device": "cuda", **changes}
    return dispatch.Request(**changes)


# Of each kind of geometry one; the others take as long again.
QUICK = (
    "basic",
    "scale_half",
    "kernel5_remove_center_scale_two",
    "stride2",
    "kernel3x5_dilation_2x1",
    "one_pixel",
    "one_channel_group",
)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_reference(name):
    case = np.load(DATA / f"{name}.npz")
    output, grads = value_and_grads(
        lambda *tensors: dcnv3(*tensors, **CASES[name], implementation="triton"),
        [case["input"], case["offset"], case["mask"]],
        case["grad_output"],
    )
    assert relative_error(output, case["output"]) < 4e-6
    for grad, of in zip(grads, ("input", "offset", "mask"), strict=True):
        assert relative_error(grad, case[f"grad_{of}"]) < 4e-6, of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_softmax_and_less_precision(dtype):
    """Arithmetic is in float32: the only error is that of storing."""
    options = {"groups": 2, "mask_activation": "softmax", "remove_center": True}
    # A depth that is no power of two, and positions outside the image.
    tensors = arrays(size=(5, 4), depth=6, points=8, scale=2.0)
    *tensors, upstream = [to_numpy(keras.ops.cast(t, dtype)) for t in tensors]
    output, grads = value_and_grads(
        lambda *t: dcnv3(
            *(keras.ops.cast(x, dtype) for x in t), **options, implementation="triton"
        ),
        tensors,
        upstream,
    )
    tolerance = {"float32": 4e-6, "bfloat16": 2**-8, "float16": 2**-10}[dtype]
    if dtype == "bfloat16" and binding.interpreted():
        tolerance *= 2  # the interpreter cuts off what a GPU rounds
    assert relative_error(output, oracle.forward(*tensors, **options)) < tolerance
    truth = oracle.gradients(*tensors, upstream, **options)
    for grad, exact in zip(grads, truth, strict=True):
        assert relative_error(grad, exact) < tolerance


def test_offsets_that_lead_nowhere_sample_nothing():
    inputs, offset, mask, upstream = arrays()
    hostile = (np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**24, -(2.0**31), 40.0)
    places = np.random.default_rng(1).choice(offset.size, 10 * len(hostile), replace=False)
    offset.flat[places] = np.tile(hostile, 10)
    output, grads = value_and_grads(
        lambda *t: dcnv3(*t, **OPTIONS), [inputs, offset, mask], upstream
    )
    options = {k: v for k, v in OPTIONS.items() if k != "implementation"}
    assert relative_error(output, oracle.forward(inputs, offset, mask, **options)) < 4e-6
    truth = oracle.gradients(inputs, offset, mask, upstream, **options)
    for grad, exact in zip(grads, truth, strict=True):
        assert relative_error(grad, exact) < 4e-6


def test_programs_end_within_a_row_and_behind_the_last_sample(operators, monkeypatch):
    """With the blocks of a GPU, whose last one is not full."""
    monkeypatch.undo()
    assert operators.Plan.forward(30, 16, 9, 4).block == 8
    *tensors, upstream = arrays(batch=1, size=(3, 5), depth=16)
    output, grads = value_and_grads(lambda *t: dcnv3(*t, **OPTIONS), tensors, upstream)
    options = {"groups": 2, "mask_activation": "softmax"}
    assert relative_error(output, oracle.forward(*tensors, **options)) < 4e-6
    truth = oracle.gradients(*tensors, upstream, **options)
    for grad, exact in zip(grads, truth, strict=True):
        assert relative_error(grad, exact) < 4e-6


def test_indices_of_64_bits(operators, monkeypatch):
    *tensors, upstream = arrays(batch=1)
    run = lambda *t: dcnv3(*t, **OPTIONS)  # noqa: E731
    narrow = value_and_grads(run, tensors, upstream)
    monkeypatch.setattr(operators, "WIDE", 1)
    wide = value_and_grads(run, tensors, upstream)
    for ours, expected in zip((wide[0], *wide[1]), (narrow[0], *narrow[1]), strict=True):
        assert relative_error(ours, expected) < 1e-6


@pytest.mark.skipif(not binding.interpreted(), reason="a GPU would have to hold all of it")
def test_an_image_of_more_than_2_to_31_numbers():
    """Only its last pixels are written; the memory of the others is never touched."""
    rng = np.random.default_rng(0)
    width, last, channels = 2**28 + 9, 9, 8
    inputs = torch.from_numpy(np.zeros((1, 1, width, channels), "float16"))
    inputs[..., -last:, :] = torch.from_numpy(rng.normal(size=(last, channels)))
    options = {"groups": 1, "kernel_size": 1, "padding": 0}
    # One output for each of the last pixels, of which the seventh is computed.
    offset, mask = (rng.normal(size=(1, 1, last, n)).astype("float16") for n in (2, 1))
    exact = oracle.forward(inputs[..., -last:, :].numpy(), offset, mask, **options)
    stride = width - last + 6
    output = dcnv3(
        inputs,
        *(torch.from_numpy(t[:, :, [0, 6]]) for t in (offset, mask)),
        **options,
        strides=(1, stride),
        implementation="triton",
    )
    assert np.abs(exact[0, 0, 6]).min() > 0
    assert relative_error(output[0, 0, 1].numpy(), exact[0, 0, 6]) < 2**-10


def test_an_empty_batch():
    tensors = [a[:0] for a in arrays()]
    output, grads = value_and_grads(lambda *t: dcnv3(*t, **OPTIONS), tensors[:3], tensors[3])
    assert output.shape == tensors[3].shape
    assert [g.shape for g in grads] == [t.shape for t in tensors[:3]]


def test_views_are_read_as_they_are_seen():
    inputs, offset, mask, _ = map(keras.ops.convert_to_tensor, arrays())
    seen = dcnv3(inputs.mT.contiguous().mT, offset.flip(0).flip(0), mask, **OPTIONS)
    torch.testing.assert_close(seen, dcnv3(inputs, offset, mask, **OPTIONS), rtol=0, atol=0)


def test_a_gradient_penalty():
    """As with the portable implementation, whose second derivatives it takes."""
    tensors = arrays(batch=1)[:3]
    found, expected = (
        penalty_grads(lambda *t, name=name: dcnv3(*t, groups=2, implementation=name), tensors)
        for name in ("triton", "portable")
    )
    for ours, portable in zip(found, expected, strict=True):
        assert relative_error(ours, portable) < 1e-5


def test_mapped_by_vmap_with_gradients():
    one = [keras.ops.convert_to_tensor(a) for a in arrays()[:3]]
    two = [torch.stack([t, 2 * t], dim=1) for t in one]

    def grads(*tensors):
        return torch.func.grad(lambda *t: dcnv3(*t, **OPTIONS).square().sum(), (0, 1, 2))(*tensors)

    mapped = torch.vmap(grads, in_dims=1)(*two)
    for k in range(2):
        for found, expected in zip(mapped, grads(*((k + 1) * t for t in one)), strict=True):
            torch.testing.assert_close(found[k], expected)


def operator_arguments():
    tensors = [keras.ops.convert_to_tensor(a) for a in arrays()]
    offset_mask = torch.cat(tensors[1:3], -1)
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], 2, 1.0, False, True)
    return tensors[0], offset_mask, tensors[3], geometry


def test_opcheck():
    inputs, offset_mask, upstream, geometry = operator_arguments()
    namespace = torch.ops.keras_internimage
    torch.library.opcheck(
        namespace.dcnv3_triton_backward.default,
        (upstream, inputs, offset_mask, *geometry, False),
    )
    leaves = inputs.requires_grad_(), offset_mask.requires_grad_()
    torch.library.opcheck(namespace.dcnv3_triton.default, (*leaves, *geometry))


def test_compiled_in_one_graph():
    *tensors, upstream = arrays()
    run = lambda *t: dcnv3(*t, **OPTIONS)  # noqa: E731
    found = value_and_grads(run, tensors, upstream, mode="jit")
    expected = value_and_grads(run, tensors, upstream)
    for ours, eager in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert relative_error(ours, eager) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, om, up, geometry: (x.double(), om, up, geometry), "must have one dtype of"),
        (lambda x, om, up, geometry: (x[0], om, up, geometry), r"must be \(N, H, W, C\)"),
        (lambda x, om, up, geometry: (x, om[..., :-1], up, geometry), "`offset_mask` must have"),
        (lambda x, om, up, geometry: (x, om, up[:, 1:], geometry), "`grad_output` must have"),
    ],
)
def test_the_operator_checks_what_it_is_given(change, message):
    inputs, offset_mask, upstream, geometry = change(*operator_arguments())
    with pytest.raises(ValueError, match=f"{message}.*Received: "):
        torch.ops.keras_internimage.dcnv3_triton_backward(
            upstream, inputs, offset_mask, *geometry, False
        )


def test_deterministic_algorithms_take_no_atomic_additions(operators, monkeypatch):
    *tensors, upstream = arrays()
    tensors = [t.astype("float16") for t in tensors]
    run = lambda name: value_and_grads(  # noqa: E731
        lambda *t: dcnv3(*t, **OPTIONS | {"implementation": name}), tensors, upstream
    )
    monkeypatch.setattr(operators.kernels, "backward_kernel", None)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found, expected = run("triton"), run("portable")
    finally:
        torch.use_deterministic_algorithms(before)
    for ours, portable in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(ours, portable)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if there were one, and no interpreter."""
    monkeypatch.setattr(binding, "interpreted", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(binding, "_why_not_on_gpu", binding._why_not_on_gpu.__wrapped__)
    monkeypatch.setattr(binding, "_why_no_launcher", lambda: None)


def test_refusals(on_a_gpu, monkeypatch):
    assert binding.why_not(request()) is None
    assert binding.why_not(None) is None
    for changes, reason in (
        ({"device": "cpu"}, "for NVIDIA GPUs, not for 'cpu' devices"),
        ({"dtype": "float64"}, "compute float32, float16, bfloat16, not float64"),
    ):
        with pytest.raises(RuntimeError, match=f"'triton' .* cannot run: .*{reason}"):
            dispatch.select(request(**changes), "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "for NVIDIA GPUs, not" in binding.why_not(request(device="xpu"))
    assert "PyTorch sees none" in binding.why_not(None)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "not for AMD's" in binding.why_not(None)


@pytest.mark.parametrize("capabilities", [[(7, 0), (9, 0)], [(9, 0), (7, 0)]])
def test_each_gpu_is_judged_for_itself(on_a_gpu, monkeypatch, capabilities):
    """An old GPU beside a new one takes nothing from it; where none is told, it is the current."""
    current = 1
    monkeypatch.setattr(
        torch.cuda,
        "get_device_capability",
        lambda device=None: capabilities[current if device is None else device],
    )
    monkeypatch.setattr(native.Native, "why_not", lambda self, request=None: "not built")
    monkeypatch.setattr(dispatch, "tell_slow_gpu", lambda index, dtype: None)
    told = "Triton's kernels need a compute capability of 7.5. Received: 7.0"
    for index, capability in enumerate(capabilities):
        old = capability == (7, 0)
        asked = request(device_index=index)
        assert binding.why_not(asked) == (told if old else None)
        assert dispatch.select(asked).name == ("portable" if old else "triton")
        row = next(row for row in dispatch.table("torch", f"cuda:{index}") if row[0] == "triton")
        assert row[2] is not old
    expected = told if capabilities[current] == (7, 0) else None
    assert binding.why_not(None) == binding.why_not(request()) == expected


def test_a_machine_without_a_c_compiler(on_a_gpu, monkeypatch):
    """Triton would raise at the first kernel: the next implementation is taken instead."""
    runtime = pytest.importorskip("triton.runtime")

    class Driver:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(runtime, "driver", Driver())
    monkeypatch.setattr(binding, "_why_no_launcher", WHY_NO_LAUNCHER)
    monkeypatch.setattr(native.Native, "why_not", lambda self, request=None: "not built")
    monkeypatch.setattr(dispatch, "tell_slow_gpu", lambda index, dtype: None)
    reason = binding.why_not(request())
    assert "gcc or clang" in reason and reason.endswith("Received: Failed to find C compiler.")
    assert dispatch.select(request()).name == "portable"


def test_triton_that_is_not_there_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_internimage.ops.triton.operators", None)
    monkeypatch.delattr(binding, "operators")
    assert "cannot be imported" in binding._load.__wrapped__()


def test_chosen_on_a_gpu_without_native_kernels(on_a_gpu, monkeypatch):
    """And never for a CPU or float64, which the next one computes."""
    monkeypatch.setattr(native.Native, "why_not", lambda self, request=None: "not built")
    assert dispatch.select(request()).name == "triton"
    assert dispatch.select(request(device="cpu")).name == "portable"
    assert dispatch.select(request(dtype="float64")).name == "portable"
    monkeypatch.undo()
    monkeypatch.setattr(native.Native, "why_not", lambda self, request=None: None)
    assert dispatch.select(request()).name == "native"


@pytest.mark.skipif(not binding.interpreted(), reason="there is a GPU")
def test_interpreted_only_where_it_is_named(monkeypatch):
    monkeypatch.setattr(native.Native, "why_not", lambda self, request=None: "not built")
    assert dispatch.select(request(device="cpu")).name == "portable"
    assert dispatch.select(request(device="cpu"), "triton").name == "triton"
    assert "only where they are named" in binding.why_not(None)


def test_one_argument_in_float64_is_a_call_in_float64(monkeypatch):
    """Triton's kernels must not be chosen for it."""
    seen = []
    monkeypatch.setattr(binding, "why_not", lambda request=None: seen.append(request) or "no")
    monkeypatch.setattr(native.Native, "why_not", lambda self, request=None: "not built")
    inputs, offset, mask, _ = arrays()
    output = dcnv3(inputs, offset.astype("float64"), mask, groups=2)
    assert seen[-1].dtype == "float64" and output.dtype == torch.float32


@pytest.mark.parametrize("depth", [1, 3, 16, 24, 33, 512, 4096])
@pytest.mark.parametrize("points", [1, 9, 25, 169])
def test_plans(operators, monkeypatch, depth, points):
    monkeypatch.undo()
    plans = [operators.Plan.forward(n, depth, points, 2) for n in (64, 10**6)]
    plans += [operators.Plan.backward(depth, points, c) for c in ((7, 5), (9, 0))]
    for plan in plans:
        for number in dataclasses.astuple(plan):
            assert number >= 1 and number & (number - 1) == 0
        assert depth <= plan.lanes < 2 * depth and points <= plan.taps < 2 * points
        assert plan.warps <= 16
    assert plans[0].warps <= plans[1].warps and plans[0].block <= plans[1].block
    for plan in plans[2:]:
        share = 32 * plan.warps * operators.KEPT
        assert plan.block == 1 or plan.block * plan.taps <= share
