"""The native kernels on the backend in use: chosen, exact, repeatable, and well behaved."""

import functools
import os
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import oracle
import pytest
from gradients import relative_error, to_numpy, value_and_grads
from python_worker import Worker

from keras_internimage.layers import DCNv3
from keras_internimage.ops import DCNv3Geometry, dcnv3, dispatch, native
from keras_internimage.ops import dcnv3 as dcnv3_function

BACKEND = keras.backend.backend()
GRAPH = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}[BACKEND]
OPTIONS = {"groups": 2, "mask_activation": "softmax"}


@pytest.fixture(autouse=True)
def _needs_kernels(request):
    if request.node.get_closest_marker("any_backend") is None:
        reason = native.Native().why_not()
        if reason is not None:
            pytest.skip(f"the kernels do not run here: {reason}")


def arrays(batch=2, size=(6, 5), groups=2, depth=16, points=9, seed=0):
    rng = np.random.default_rng(seed)
    last = (groups * depth, groups * points * 2, groups * points, groups * depth)
    return [rng.normal(size=(batch, *size, c)).astype("float32") for c in last]


def request(**changes):
    return dispatch.Request(**{"backend": BACKEND, "geometry": DCNv3Geometry(), **changes})


def test_the_kernels_are_the_first_choice():
    assert dispatch.select(request(device="cpu")).name == "native"
    assert dispatch.runs("native")


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"kernel_size": 5, "padding": 2, "offset_scale": 2.0},
        {"strides": 2, "dilation_rate": 2, "padding": 2, "offset_scale": 0.7},
        {"remove_center": True},
    ],
)
def test_errors_are_those_of_the_portable_operator(geometry):
    """At most twice its distance from the float64 truth, forward and backward."""
    options = {**OPTIONS, **geometry}
    shape = {k: v for k, v in options.items() if k != "mask_activation"}
    points = DCNv3Geometry(**shape).points
    inputs, *_ = arrays(size=(9, 10), points=points)
    out = oracle.output_size(9, 10, **options)
    _, offset, mask, upstream = arrays(size=out, points=points)
    tensors = [inputs, offset, mask]
    truth = [
        oracle.forward(*tensors, **options),
        *oracle.gradients(*tensors, upstream, **options),
    ]
    errors = {}
    for name in ("native", "portable"):
        output, grads = value_and_grads(
            lambda *t, name=name: dcnv3(*t, **options, implementation=name),
            tensors,
            upstream,
            mode=GRAPH,
        )
        errors[name] = [relative_error(a, b) for a, b in zip((output, *grads), truth, strict=True)]
    for ours, portable in zip(errors["native"], errors["portable"], strict=True):
        assert ours <= 2 * portable + 1e-6


def test_joined_offsets_and_masks_are_the_same_call():
    inputs, offset, mask, upstream = arrays()
    joined = np.concatenate([offset, mask], axis=-1)
    for name in ("native", "portable"):
        options = {**OPTIONS, "implementation": name}
        run = functools.partial(dcnv3, **options)
        apart = value_and_grads(run, [inputs, offset, mask], upstream)
        whole = value_and_grads(run, [inputs, joined], upstream)
        np.testing.assert_array_equal(apart[0], whole[0])
        np.testing.assert_array_equal(apart[1][0], whole[1][0])
        np.testing.assert_array_equal(np.concatenate(apart[1][1:], axis=-1), whole[1][1])


def test_joined_shape_is_checked():
    inputs, offset, _, _ = arrays()
    with pytest.raises(ValueError, match=r"groups \* points \* 3\) = \(2, 6, 5, 54\)\. Received"):
        dcnv3(inputs, offset, **OPTIONS)


def test_mixed_dtypes_are_computed_in_float32():
    inputs, offset, mask, _ = arrays()
    half = keras.ops.cast(inputs, "bfloat16")
    output = dcnv3(half, offset, mask, **OPTIONS)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    exact = oracle.forward(to_numpy(half), offset, mask, **OPTIONS)
    assert relative_error(to_numpy(output), exact) < 2**-8


@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_repeated_runs_are_the_same_to_the_last_bit(mode):
    *tensors, upstream = arrays(batch=3, size=(14, 14), groups=4)
    options = {"groups": 4, "mask_activation": "softmax", "implementation": None}
    if BACKEND == "tensorflow":
        mode = "eager" if mode == "eager" else "graph"
    runs = [
        value_and_grads(lambda *t: dcnv3(*t, **options), tensors, upstream, mode=mode)
        for _ in range(3)
    ]
    for output, grads in runs[1:]:
        np.testing.assert_array_equal(output, runs[0][0])
        for grad, first in zip(grads, runs[0][1], strict=True):
            np.testing.assert_array_equal(grad, first)


THREADS = """
    import hashlib, sys
    import numpy as np, keras
    if keras.backend.backend() == "torch":
        import torch
        torch.set_num_threads({threads})
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf
        tf.config.threading.set_intra_op_parallelism_threads({threads})
    from gradients import value_and_grads
    from keras_internimage.ops import dcnv3
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(2, 28, 28, c)).astype("float32") for c in (128, 216)]
    upstream = rng.normal(size=(2, 28, 28, 128)).astype("float32")
    run = lambda *t: dcnv3(*t, groups=8, mask_activation="softmax", implementation="native")
    output, grads = value_and_grads(run, tensors, upstream, mode={mode!r})
    for array in (output, *grads):
        print(hashlib.sha256(np.ascontiguousarray(array)).hexdigest())
"""


@functools.cache
def worker():
    return Worker(keras.config.backend())


def python(code, **environment):
    return worker().run(
        textwrap.dedent(code),
        {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


def test_the_number_of_threads_does_not_change_a_bit():
    printed = set()
    for threads in (1, 3):
        run = python(THREADS.format(threads=threads, mode=GRAPH), PJRT_NPROC=str(threads))
        assert run.returncode == 0, run.stderr
        printed.add(run.stdout)
    assert len(printed) == 1 and printed.pop().count("\n") == 3


WITHOUT = """
    import warnings
    import keras
    import numpy as np
    from keras_internimage.layers import DCNv3
    from keras_internimage.ops import dispatch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = keras.Sequential([keras.Input((8, 8, 4)), DCNv3(2), DCNv3(1)])
        for _ in range(2):
            out = model.predict(np.ones((2, 8, 8, 4), "float32"), verbose=0)
    assert out.shape == (2, 8, 8, 4) and np.isfinite(out).all()
    ours = [str(w.message) for w in caught if "DCNv3" in str(w.message)]
    print(len(ours), [row[:3:2] for row in dispatch.table()])
    print("\\n".join(ours))
"""


def test_without_a_compiler_one_warning_and_a_working_model(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {
        "PATH": str(empty),
        "CXX": "",
        "KERAS_INTERNIMAGE_CACHE": str(tmp_path / "cache"),
        "KERAS_INTERNIMAGE_KERNELS": "auto",
    }
    names = [name for name in dispatch.names() if name != "portable"]
    rows = [(name, False) for name in names] + [("portable", True)]
    run = python(WITHOUT, **environment)
    assert run.returncode == 0, run.stderr
    first, warning = run.stdout.split("\n", 1)
    assert first == f"1 {rows}", run.stdout
    assert "portable implementation" in warning
    assert "compiler" in warning and "KERAS_INTERNIMAGE_KERNELS=off" in warning

    run = python(WITHOUT, **{**environment, "KERAS_INTERNIMAGE_KERNELS": "off"})
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"0 {rows}")

    run = python(WITHOUT, **{**environment, "KERAS_INTERNIMAGE_KERNELS": "require"})
    assert run.returncode != 0
    assert "KERAS_INTERNIMAGE_KERNELS=require, but the kernels" in run.stderr


FAILED_CUDA = """
    import warnings
    import numpy as np
    from keras_internimage.custom_ops import toolchain
    from keras_internimage.ops import dcnv3, dispatch
    toolchain.Framework.has_cuda = lambda self: True
    named = ("native", "portable")
    dispatch.IMPLEMENTATIONS = [i for i in dispatch.IMPLEMENTATIONS if i.name in named]
    tensors = [np.ones((1, 3, 3, c), "float32") for c in (4, 18, 9)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dcnv3(*tensors, groups=1, implementation="native")
        dispatch.device_of = lambda tensor: "cuda"
        dcnv3(*tensors, groups=1)
    ours = [str(w.message) for w in caught if "DCNv3" in str(w.message)]
    print(len(ours), *ours)
"""


def test_a_failed_cuda_build_leaves_the_processors_kernels(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho no such luck\nexit 1\n")
    nvcc.chmod(0o755)
    environment = {"CUDA_HOME": str(tmp_path), native.VARIABLE: "auto"}
    result = python(FAILED_CUDA, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 DCNv3 has no native kernels for GPUs. A command that builds")
    assert "no such luck" in result.stdout and "build --cuda" in result.stdout


@pytest.mark.any_backend
def test_the_variable_is_checked(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "on")
    with pytest.raises(ValueError, match=r"must be one of \('auto', 'off', 'require'\). Received"):
        native.mode()
    monkeypatch.setenv(native.VARIABLE, "")
    assert native.mode() == "auto"


def test_off_refuses_the_kernels_by_name_too(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "off")
    inputs, offset, mask, _ = arrays()
    assert dispatch.select(request()).name == "portable"
    with pytest.raises(RuntimeError, match="switched off by KERAS_INTERNIMAGE_KERNELS=off"):
        dcnv3(inputs, offset, mask, **OPTIONS, implementation="native")


def test_an_empty_batch():
    tensors = [np.zeros((0, *a.shape[1:]), "float32") for a in arrays()]
    output, grads = value_and_grads(
        lambda *t: dcnv3(*t, **OPTIONS), tensors[:3], tensors[3], mode=GRAPH
    )
    assert output.shape == tensors[3].shape
    assert [g.shape for g in grads] == [t.shape for t in tensors[:3]]


def test_a_whole_layer_and_its_gradients():
    """The two implementations under one layer's weights."""
    inputs, *_, upstream = arrays(size=(8, 8), depth=8)
    layers = [DCNv3(groups=2, implementation=name) for name in ("native", "portable")]
    results = []
    for layer in layers:
        layer.build(inputs.shape)
        rng = np.random.default_rng(3)
        for variable in layer.variables:
            variable.assign(0.5 * rng.normal(size=variable.shape))
        results.append(value_and_grads(layer, [inputs], upstream))
    assert relative_error(results[0][0], results[1][0]) < 1e-5
    assert relative_error(results[0][1][0], results[1][1][0]) < 1e-4


def test_what_cannot_be_loaded_is_a_reason_not_a_crash(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    from keras_internimage.custom_ops import build

    monkeypatch.setattr(build, "find_or_build", lambda backend, **_: broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        reason = native._load.__wrapped__()
    assert "could not be loaded" in reason and "broken.so" in reason


# A handler that says it is of version 0.99 of XLA's interface: XLA asks with a call frame,
# whose extension (at 8) points (at 24) to metadata with the version (at 24 and 28).
UNKNOWN_VERSION = """
    import ctypes
    import jax
    from keras_internimage.ops.native import jax as binding

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def handler(frame):
        extension = ctypes.c_void_p.from_address(frame + 8).value
        metadata = ctypes.c_void_p.from_address(extension + 24).value
        ctypes.c_int.from_address(metadata + 24).value = 0
        ctypes.c_int.from_address(metadata + 28).value = 99

    class Library:
        keras_internimage_dcnv3_cpu = keras_internimage_dcnv3_backward_cpu = handler

    binding.ctypes.CDLL = lambda path: Library
    try:
        binding.load("anything")
    except RuntimeError as error:
        print(error)
    print(jax.numpy.ones(3).sum())
"""


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX' interface")
def test_a_handler_that_xla_refuses_does_not_stop_jax():
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UNKNOWN_VERSION)],
        env={**os.environ, "KERAS_BACKEND": "jax", native.VARIABLE: "off"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    told, total = result.stdout.splitlines()
    assert "(0.99)" in told and total == "3.0"


def test_a_wheel_that_the_framework_refuses_gives_way_to_a_build(monkeypatch, tmp_path):
    from keras_internimage.custom_ops import build

    loaded = []

    class Binding:
        def load(self, path):
            if path.name in refused:
                raise OSError(f"{path.name}: unknown version")
            loaded.append(path)

    def find_or_build(backend, refused, **_):
        places = [gpus / "cuda.so", build.packaged.FOLDER / "packed.so", tmp_path / "built.so"]
        return next(path for path in places if path.parent not in refused)

    gpus = tmp_path / "keras_internimage_cu12"
    gpus.mkdir()
    (gpus / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(native, "_told_of_gpus", [])
    monkeypatch.setattr(native, "_binding", Binding())
    monkeypatch.setattr(native, "_origin", "")
    monkeypatch.setattr(build, "find_or_build", find_or_build)
    monkeypatch.delenv(build.SHIPPED, raising=False)
    monkeypatch.setenv(native.VARIABLE, "auto")
    refused = set()
    assert native._load.__wrapped__() is None and loaded == [gpus / "cuda.so"]
    expected = "C++ and CUDA kernels, from the installed wheel keras-internimage-cu12"
    assert native.Native().description == expected
    # After the wheel for GPUs that for processors; it is told.
    refused.add("cuda.so")
    with pytest.warns(RuntimeWarning, match="no native kernels for GPUs.*cuda.so: unknown version"):
        assert native._load.__wrapped__() is None
    assert loaded[1:] == [build.packaged.FOLDER / "packed.so"]
    refused.add("packed.so")
    assert native._load.__wrapped__() is None and loaded[2:] == [tmp_path / "built.so"]
    assert native.Native().description == "C++ and CUDA kernels, compiled on this machine"
    refused.add("built.so")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        reason = native._load.__wrapped__()
    assert "library from the installed wheel could not be loaded: packed.so" in reason
    assert "library compiled on this machine could not be loaded: built.so" in reason


def test_the_function_is_documented_with_the_joined_form():
    assert "groups * P * 3" in dcnv3_function.__doc__
