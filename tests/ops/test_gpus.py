"""The choice on GPUs, which are pretended: there is none where the tests run."""

import dataclasses
import types
import warnings

import keras
import numpy as np
import pytest

from keras_internimage import __main__ as command
from keras_internimage.ops import DCNv3Geometry, dcnv3, dispatch, native
from keras_internimage.ops.native import cuda

BACKEND = keras.backend.backend()
LIBRARY = cuda.Library(code=((8, 0), (9, 0), (10, 0)), ptx=(10, 0), runtime=(13, 0), driver=(13, 0))
WITH_75 = dataclasses.replace(LIBRARY, code=((7, 5), *LIBRARY.code))


@pytest.fixture(autouse=True)
def _needs_kernels(monkeypatch):
    reason = native.Native().why_not()
    if reason is not None:
        pytest.skip(f"the kernels do not run here: {reason}")
    monkeypatch.setattr(native, "_told_of_gpus", [])
    chosen_from = [
        i for i in dispatch.IMPLEMENTATIONS if i.name in ("native", "pallas", "portable")
    ]
    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", chosen_from)
    monkeypatch.setenv(native.VARIABLE, "auto")


@pytest.fixture
def gpus(monkeypatch):
    """Pretends GPUs of some compute capabilities, and what the library with CUDA kernels tells."""

    def pretend(*capabilities, library=LIBRARY):
        monkeypatch.setattr(cuda, "_loaded", {} if library is None else {"library": library})
        binding = native._binding
        forget()
        named = [f"{'cuda' if BACKEND == 'torch' else 'gpu'}:{i}" for i in range(len(capabilities))]
        if BACKEND == "torch":
            import torch

            monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"Card {name[-1]}")
            monkeypatch.setattr(
                torch.cuda, "get_device_capability", lambda index: capabilities[index or 0]
            )
        elif BACKEND == "jax":
            import jax

            devices = [
                types.SimpleNamespace(compute_capability="{}.{}".format(*pair))
                for pair in capabilities
            ]
            monkeypatch.setattr(jax, "local_devices", lambda: devices)
            monkeypatch.setattr(keras.distribution, "list_devices", lambda: named)
        else:
            import tensorflow as tf

            details = [{"compute_capability": pair} for pair in capabilities]
            monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: details)
            monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: device)
            monkeypatch.setattr(keras.distribution, "list_devices", lambda: named)
        monkeypatch.setattr(binding, "device_type", lambda tensor=None: "cuda")

    yield pretend
    forget()


def forget():
    """What is asked once in a process is asked again."""
    for name in ("why_not_cuda", "_why_not_cuda", "capabilities"):
        function = getattr(native._binding, name, None)
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def on_gpu(monkeypatch):
    """Tensors are taken for those of the first GPU."""
    monkeypatch.setattr(dispatch, "device_of", lambda tensor: "cuda")
    monkeypatch.setattr(dispatch, "device_index_of", lambda tensor: 0)


def request(**changes):
    usual = {"backend": BACKEND, "geometry": DCNv3Geometry(), "device": "cuda"}
    index = {"device_index": 0} if BACKEND == "torch" else {}
    return dispatch.Request(**{**usual, **index, **changes})


def call(**arguments):
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(1, 3, 3, c)).astype("float32") for c in (4, 18, 9)]
    return keras.ops.convert_to_numpy(dcnv3(*tensors, groups=1, **arguments))


def ours(caught):
    return [str(warning.message) for warning in caught if "DCNv3" in str(warning.message)]


def without_warnings(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return function(*arguments)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_an_old_gpu_takes_the_next_implementation(gpus, on_gpu, capability):
    expected = call(implementation="portable")
    gpus(capability)
    reason = native.Native().why_not(request())
    assert "compute capabilities 8.0, 9.0, 10.0" in reason
    assert reason.endswith("{}.{}".format(*capability))
    # Pallas does not run there either.
    assert without_warnings(dispatch.select, request()).name == "portable"
    np.testing.assert_array_equal(without_warnings(call), expected)
    with pytest.raises(RuntimeError, match="'native' .* cannot run: .*capability is 7"):
        call(implementation="native")


def test_a_gpu_that_there_is_code_for_takes_the_kernels(gpus):
    gpus((7, 5), library=WITH_75)
    assert dispatch.select(request()).name == "native"
    gpus((8, 6))
    assert dispatch.select(request()).name == "native"
    told = native.Native().why_not(request(dtype="float64"))
    assert told == "the CUDA kernels compute float32, float16 and bfloat16"


def test_a_driver_older_than_the_toolkit(gpus):
    gpus((8, 0), library=dataclasses.replace(LIBRARY, driver=(12, 4)))
    assert "driver supports CUDA 12.4 at most" in native.Native().why_not(request())
    assert without_warnings(dispatch.select, request()).name != "native"


def test_several_gpus(gpus):
    """PyTorch tells on which one a tensor is. The others compute on any."""
    gpus((8, 0), (7, 0))
    if BACKEND == "torch":
        assert native.Native().why_not(request(device_index=0)) is None
        assert "capability is 7.0" in native.Native().why_not(request(device_index=1))
        assert native.Native().why_not() is None  # of the first
    else:
        assert "capability is 7.0" in native.Native().why_not(request())
        assert "capability is 7.0" in native.Native().why_not()


def test_a_library_without_cuda_does_not_run_where_the_gpu_computes(gpus):
    gpus((8, 0), library=None)
    for asked in (None, request()):
        reason = native.Native().why_not(asked)
        assert reason.startswith("the library was built without kernels for 'cuda' devices: ")
    assert not dispatch.runs("native") and native.loaded()
    assert native.Native().why_not(request(device="cpu")) is None


def test_the_reason_is_what_the_build_says(gpus, monkeypatch):
    from keras_internimage.custom_ops import build

    cuda._missing.cache_clear()
    monkeypatch.setattr(build, "why_no_cuda", lambda backend: f"no nvcc for {backend}")
    gpus((8, 0), library=None)
    try:
        assert native.Native().why_not(request()).endswith(f"devices: no nvcc for {BACKEND}")
    finally:
        cuda._missing.cache_clear()


def test_the_report_has_every_device(gpus):
    gpus((8, 0), (7, 0))
    lines = command.report()
    rows = [line for line in lines if line.startswith("native ")]
    if BACKEND == "torch":
        (devices,) = [line for line in lines if line.startswith("devices ")]
        assert devices.endswith("cuda:0 (Card 0), cuda:1 (Card 1), cpu")
        assert "DCNv3 and DCNv4 on cuda:0, cpu, in order of preference" in "\n".join(lines)
        assert "DCNv3 and DCNv4 on cuda:1, in order of preference" in "\n".join(lines)
        assert "yes, chosen" in rows[0] and len(rows) == 2
    assert " no " in rows[-1] and "capability is 7.0" in rows[-1]
    assert sum("yes, chosen" in line for line in lines) == len(rows)


def test_the_table_of_a_device(gpus):
    gpus((7, 0))
    (native_row, *_) = dispatch.table(device=dispatch.devices()[0])
    assert native_row[2] is False and "capability is 7.0" in native_row[3]
    (native_row, *_) = dispatch.table(device="cpu")
    assert native_row[2] is True


def test_a_gpu_without_kernels_is_told_once(gpus, on_gpu, monkeypatch):
    gpus((7, 0), library=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(implementation="portable")  # what was asked for
        dispatch.select(request(device="cpu"))
        assert ours(caught) == []
        call(), call()
    (told,) = ours(caught)
    assert told.startswith("DCNv3 runs on the GPU by the portable implementation, several times")
    assert "without kernels for 'cuda' devices" in told
    assert "KERAS_INTERNIMAGE_KERNELS=off switches this warning off" in told

    monkeypatch.setenv(native.VARIABLE, "require")
    with pytest.raises(RuntimeError, match="=require, but no kernel of DCNv3 runs on the GPU: "):
        call()
    monkeypatch.setenv(native.VARIABLE, "off")
    native._told_of_gpus.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert ours(caught) == []


def test_what_no_kernel_computes_is_not_told(gpus):
    """There is nothing to mend: no GPU has kernels for this dtype, nor under TensorFlow's XLA."""
    for library in (LIBRARY, None):
        gpus((8, 0), library=library)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert dispatch.select(request(dtype="float64")).name == "portable"
            if BACKEND == "tensorflow":
                import tensorflow as tf

                @tf.function(jit_compile=True)
                def compiled(x):
                    assert dispatch.select(request()).name == "portable"
                    return x + 1

                compiled(tf.zeros(1))
        assert ours(caught) == []


@pytest.mark.skipif(BACKEND != "jax", reason="Pallas is for JAX")
def test_pallas_is_a_kernel_of_its_own(gpus):
    from keras_internimage.ops import pallas

    gpus((8, 0), library=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert dispatch.select(request()).name == "pallas"
    assert ours(caught) == []
    gpus((8, 0), (7, 5), library=None)
    assert pallas.why_not(request()).endswith("capability 8.0 and newer, not for 7.5")


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")
def test_tracing_asks_for_the_gpu_outside_the_trace(gpus, on_gpu):
    import torch

    gpus((7, 0))
    tensors = [torch.ones(1, 3, 3, c) for c in (4, 18, 9)]
    traced = torch.compile(lambda *t: dcnv3(*t, groups=1), backend="eager", fullgraph=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = traced(*tensors)
    assert len(ours(caught)) == 1 and "capability is 7.0" in ours(caught)[0]
    expected = dcnv3(*tensors, groups=1, implementation="portable")
    torch.testing.assert_close(output, expected)
