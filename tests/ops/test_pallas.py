"""The Pallas kernels, interpreted, against the reference; and their lowering for a GPU."""

import json
import math
import pathlib

import keras
import numpy as np
import oracle
import pytest
from gradients import penalty_grads, relative_error, to_numpy, value_and_grads
from small_models import classifier

from keras_internimage.ops import DCNv3Geometry, dcnv3, dispatch

if keras.backend.backend() != "jax":
    pytest.skip("JAX's", allow_module_level=True)

import jax

from keras_internimage.ops import pallas
from keras_internimage.ops.native import jax as native_jax

if pallas.triton is None:
    pytest.skip("this JAX has no Pallas for Triton", allow_module_level=True)

DATA = pathlib.Path(__file__).parents[1] / "data" / "op"
CASES = json.loads((DATA / "cases.json").read_text())


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(pallas, "interpret", True)


@pytest.mark.parametrize("name", list(CASES))
def test_reference(interpreted, monkeypatch, name):
    """With the points as a loop, whatever their number."""
    monkeypatch.setattr(pallas, "UNROLLED", 0)
    check_reference(name)


# The interpreter's code for points that are unrolled takes long to compile.
QUICK = ("remove_center", "kernel1x3_stride_1x2", "even_kernel2")
UNROLLED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name, case in CASES.items()
    if math.prod(case["kernel_size"]) <= pallas.UNROLLED
]


@pytest.mark.parametrize("name", UNROLLED)
def test_reference_unrolled(interpreted, name):
    check_reference(name)


def check_reference(name):
    case = np.load(DATA / f"{name}.npz")
    output, grads = value_and_grads(
        lambda *tensors: dcnv3(*tensors, **CASES[name], implementation="pallas"),
        [case["input"], case["offset"], case["mask"]],
        case["grad_output"],
        mode="jit",
    )
    assert relative_error(output, case["output"]) < 4e-6
    for grad, of in zip(grads, ("input", "offset", "mask"), strict=True):
        assert relative_error(grad, case[f"grad_{of}"]) < 2e-5, of


@pytest.mark.parametrize(
    "dtype, unrolled", [("float32", 9), ("float32", 0), ("bfloat16", 0), ("float16", 0)]
)
def test_softmax_and_less_precision(interpreted, monkeypatch, dtype, unrolled):
    """Arithmetic is in float32: the only error is that of storing."""
    monkeypatch.setattr(pallas, "UNROLLED", unrolled)
    options = {"groups": 2, "mask_activation": "softmax", "remove_center": True}
    rng = np.random.default_rng(0)
    # A depth that is no power of two, and positions outside the image.
    shapes = [(2, 7, 6, 24), (2, 7, 6, 32), (2, 7, 6, 16), (2, 7, 6, 24)]
    tensors = [to_numpy(keras.ops.cast(2 * rng.normal(size=s), dtype)) for s in shapes]
    *tensors, upstream = tensors
    output, grads = value_and_grads(
        lambda *t: dcnv3(
            *(keras.ops.cast(x, dtype) for x in t), **options, implementation="pallas"
        ),
        tensors,
        upstream,
        mode="jit",
    )
    tolerance = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-9}[dtype]
    assert relative_error(output, oracle.forward(*tensors, **options)) < tolerance
    truth = oracle.gradients(*tensors, upstream, **options)
    for grad, exact in zip(grads, truth, strict=True):
        assert relative_error(grad, exact) < tolerance


def test_an_empty_batch(interpreted):
    output, grads = value_and_grads(
        lambda *t: dcnv3(*t, groups=2, implementation="pallas"),
        [np.zeros((0, 3, 3, c), "float32") for c in (8, 36, 18)],
        np.zeros((0, 3, 3, 8), "float32"),
    )
    assert output.shape == grads[0].shape == (0, 3, 3, 8)


def test_images_mapped_by_vmap(interpreted):
    rng = np.random.default_rng(0)
    x, om = rng.normal(size=(3, 4, 4, 8)), rng.normal(size=(3, 4, 4, 54))
    geometry = DCNv3Geometry(groups=2)

    def call(x, om):
        return pallas.call(x, om, geometry, True)

    x, om = (a.astype("float32") for a in (x, om))
    mapped = jax.vmap(lambda x, om: call(x[None], om[None])[0])(x, om)
    np.testing.assert_allclose(mapped, call(x, om), atol=1e-6)


def test_refusals():
    request = dispatch.Request(
        backend="jax", geometry=DCNv3Geometry(), device="cuda", input_shape=(2, 8, 8, 16)
    )
    assert pallas.why_not(request) is None
    for changes, reason in (
        ({"device": "cpu"}, "for NVIDIA GPUs, not for 'cpu'"),
        ({"dtype": "float64"}, "not float64"),
        ({"input_shape": (1 << 12, 512, 512, 16)}, "2\\*\\*31 numbers"),
    ):
        changed = dispatch.dataclasses.replace(request, **changes)
        with pytest.raises(RuntimeError, match=reason):
            dispatch.select(changed, "pallas")


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if JAX preferred a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_the_device_is_that_of_the_computation(on_a_gpu):
    """Of the default device while a function is traced, and of arrays that have values."""
    cpu = jax.devices("cpu")[0]
    seen = []

    @jax.jit
    def traced(x):
        seen.append(dispatch.device_of(x))
        return x

    x = np.zeros(3, "float32")
    traced(x)
    with jax.default_device(cpu):
        assert native_jax.device_type() == "cpu"
        assert "not for 'cpu'" in pallas.why_not()
        traced(x)
    assert seen == ["cuda", "cpu"]
    assert native_jax.device_type() == "cuda" and pallas.why_not() is None
    assert dispatch.device_of(jax.device_put(x, cpu)) == "cpu"


@pytest.mark.parametrize("jit", [False, True])
def test_what_is_traced_for_a_gpu_runs_on_a_processor_too(jit):
    """Its arguments may lie there, which is not known while it is traced."""
    rng = np.random.default_rng(0)
    x, om = (rng.normal(size=(2, 4, 5, c)).astype("float32") for c in (8, 54))

    def loss(x, om):
        return (pallas.call(x, om, DCNv3Geometry(groups=2), True) ** 2).sum()

    def expected(x, om):
        activation = {"mask_activation": "softmax", "implementation": "portable"}
        return (dcnv3(x, om, groups=2, **activation) ** 2).sum()

    ours, theirs = (jax.value_and_grad(f, argnums=(0, 1)) for f in (loss, expected))
    found = jax.tree.leaves((jax.jit(ours) if jit else ours)(x, om))
    truth = jax.tree.leaves(jax.jit(theirs)(x, om))
    for ours, portable in zip(found, truth, strict=True):
        assert relative_error(to_numpy(ours), to_numpy(portable)) < 1e-5


@pytest.mark.parametrize(
    "flags, asked",
    [
        ("", False),
        ("--xla_gpu_deterministic_ops=true", True),
        ("--xla_dump_to=/x --xla_gpu_deterministic_ops", True),
        ("--xla_gpu_exclude_nondeterministic_ops=1", True),
        ("--xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=false", False),
        ("--xla_gpu_deterministic_ops_of_others=true", False),
        ("FILE", True),
    ],
)
def test_it_steps_aside_where_determinism_is_asked_for(
    on_a_gpu, monkeypatch, tmp_path, flags, asked
):
    if flags == "FILE":
        (tmp_path / "flags").write_text("--xla_gpu_deterministic_ops=true\n")
        flags = str(tmp_path / "flags")
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert native_jax.deterministic() == asked
    reason = pallas.why_not()
    assert ("no fixed order" in reason) if asked else (reason is None)
    request = dispatch.Request(backend="jax", geometry=DCNv3Geometry(), device="cuda")
    monkeypatch.setenv("KERAS_INTERNIMAGE_KERNELS", "auto")  # or a GPU without a kernel is an error
    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", dispatch.IMPLEMENTATIONS[1:])  # none is built
    assert dispatch.select(request).name == ("portable" if asked else "pallas")


def test_neighbouring_programs_are_groups_of_the_same_pixels():
    geometry = DCNv3Geometry(groups=3)
    sizes = pallas._Sizes(2, 8, 8, 12, 8, 8, geometry, False)
    programs = [tuple(map(int, sizes.program(np.int32(i)))) for i in range(2 * 2 * 3)]
    expected = [(n, b, g) for n in range(2) for b in range(sizes.blocks) for g in range(3)]
    assert programs == expected and sizes.blocks == 2


def lowered(function, *arguments):
    """How many Triton kernels there are in what is compiled for a GPU, on a machine without."""
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)  # JAX 0.12 asks for it
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(function).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return text.count("__gpu$xla.gpu.triton")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_lowering_for_a_gpu(dtype, kernel_size):
    geometry = DCNv3Geometry(
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        groups=4,
        remove_center=kernel_size == 5,
    )
    assert (geometry.points > pallas.UNROLLED) == (kernel_size == 5)
    channels = (64, 3 * geometry.groups * geometry.points)
    x, om = (jax.ShapeDtypeStruct((2, 14, 14, c), dtype) for c in channels)

    def loss(x, om):
        return pallas.call(x, om, geometry, True).astype("float32").sum()

    assert lowered(loss, x, om) == 1
    assert lowered(jax.grad(loss, argnums=(0, 1)), x, om) >= 1


def test_lowering_of_a_training_step(monkeypatch):
    """On a GPU without the native kernels, each DCNv3 of a model is a Pallas kernel."""
    monkeypatch.setattr(native_jax, "device_type", lambda tensor=None: "cuda")
    model = classifier(classes=5, input_shape=(64, 64, 3))
    values = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]

    def loss(values, x):
        outputs, _ = model.stateless_call(values, others, x, training=True)
        return outputs.sum()

    x = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
    assert lowered(jax.grad(loss), values, x) >= 8  # four layers, forward and backward


def test_a_gradient_penalty(interpreted, monkeypatch):
    """As with the portable implementation, whose second derivatives it takes."""
    monkeypatch.setattr(pallas, "UNROLLED", 0)
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(1, 4, 5, c)).astype("float32") for c in (4, 36, 18)]
    found, expected = (
        penalty_grads(
            lambda *t, name=name: dcnv3(*t, groups=2, implementation=name), tensors, mode="graph"
        )
        for name in ("pallas", "portable")
    )
    for ours, portable in zip(found, expected, strict=True):
        assert relative_error(ours, portable) < 1e-5
