"""The official kernels' algorithm, on the processor: against the oracle, and through a driver."""

import ctypes
import pathlib
import shutil
import subprocess
import threading

import numpy as np
import oracle
import pytest

from benchmarks.gpu import ROOT, driver, emulated, official_kernels
from custom_ops import toolchain
from keras_internimage.ops import DCNv3Geometry

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels"),
]
HERE = pathlib.Path(__file__).parent
TOLERANCES = {"float32": 2e-6, "float16": 1e-3}
GEOMETRIES = [
    {"groups": 2},
    {
        "groups": 1,
        "kernel_size": (5, 3),
        "strides": (2, 1),
        "padding": (1, 2),
        "dilation_rate": (1, 2),
        "offset_scale": 1.5,
    },
]


def arrays(geometry, dtype, depth=16):
    """Inputs, offsets, masks and the upstream gradient, of two images."""
    rng = np.random.default_rng(0)
    out, samples = geometry.output_size(6, 7), geometry.groups * geometry.points
    channels = geometry.groups * depth
    shapes = [(6, 7, channels), (*out, 2 * samples), (*out, samples), (*out, channels)]
    drawn = [rng.normal(size=(2, *shape)) for shape in shapes]
    drawn[1][0, 0, 0, :4] = [np.nan, 1e4, -np.inf, 0]
    return [a.astype(dtype) for a in drawn]


def check(kernels, tensors, options, dtype):
    *tensors, upstream = tensors
    expected = {
        "forward": [oracle.forward(*tensors, **options)],
        "backward": oracle.gradients(*tensors, upstream, **options),
    }
    for kind, arrays in expected.items():
        for found, truth in zip(kernels.results(kind), arrays, strict=True):
            error = np.abs(found - truth).max() / np.abs(truth).max()
            assert error < TOLERANCES[dtype], kind


@pytest.mark.parametrize("dtype", official_kernels.DTYPES)
@pytest.mark.parametrize("options", GEOMETRIES)
def test_the_kernels_compute_dcnv3(options, dtype):
    geometry = DCNv3Geometry(**options)
    tensors = arrays(geometry, dtype)
    kernels = official_kernels.OnArrays("cpu", geometry, dtype, *tensors)
    check(kernels, tensors, options, dtype)
    moved, arguments = (sum(a.nbytes for a in group) for group in (tensors, tensors[:3]))
    assert kernels.bytes == {"forward": moved, "backward": moved + arguments}
    kernels.close()


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A driver's library that runs the kernels on the processor."""
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", str(HERE / "stub_driver.cc")]
    for folder in (ROOT / "benchmarks" / "gpu", HERE.parent / "custom_ops"):
        command += ["-I", str(folder)]
    command += ["-isystem", f"{toolchain.CUDA}/include", "-o", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def stubbed(stub, monkeypatch):
    monkeypatch.setattr(driver, "compiled", lambda source, architecture: (b"machine code", "stub"))
    return driver.Driver(official_kernels.SOURCE, library=str(stub))


@pytest.mark.parametrize("dtype", official_kernels.DTYPES)
def test_the_driver_is_called_as_it_wants_to_be(stubbed, monkeypatch, dtype):
    monkeypatch.setattr(official_kernels, "driver", lambda device: stubbed)
    assert stubbed.architecture == "sm_90"
    geometry = DCNv3Geometry(**GEOMETRIES[1])
    tensors = arrays(geometry, dtype)
    kernels = official_kernels.OnArrays("cuda", geometry, dtype, *tensors)
    check(kernels, tensors, GEOMETRIES[1], dtype)
    # The stub's clock ticks with each launch, but while the device is kept busy.
    of_pass = 2 if dtype == "float16" else 1
    assert kernels.seconds("backward")(3) == pytest.approx(of_pass * 1e-3)
    assert kernels.seconds("forward", floor=True)(3) == pytest.approx(1e-3)
    kernels.close()


def test_a_thread_without_a_context_gets_one(stubbed):
    """As PyTorch's, which compute gradients."""
    errors = []

    def launch():
        try:
            stubbed.launch("spin", 1, 1, 0, [ctypes.c_longlong(1)])
        except driver.CudaError as error:
            errors.append(error)

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert not errors


def test_errors_of_the_driver_say_what_failed(stubbed, tmp_path):
    with pytest.raises(driver.CudaError, match=r"cuLaunchKernel must succeed\. Received: error 4"):
        stubbed.launch("no_such_kernel", 1, 1, 0, [])
    with pytest.raises(driver.CudaError, match=r"NVIDIA's driver must be installed\. Received"):
        driver.Driver(official_kernels.SOURCE, library=str(tmp_path / "libcuda.so.1"))


def test_compilers_are_found_in_pythons_packages(tmp_path, monkeypatch):
    for name in ("cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13", "cu13/bin/nvcc"):
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o700)
    for other in ("libnvrtc-builtins.so.13.0", "libnvrtc.alt.so.13"):
        (tmp_path / "nvidia" / "cu13" / "lib" / other).touch()
    monkeypatch.setattr(driver.sys, "path", [str(tmp_path)])
    (tmp_path / "nvidia" / "__init__.py").touch()
    monkeypatch.delitem(driver.sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(driver.toolchain, "CUDA", str(tmp_path / "none"))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    names = ["cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13"]
    assert driver.nvrtc_paths() == [str(tmp_path / "nvidia" / name) for name in names]
    assert driver.nvcc_path() == str(tmp_path / "nvidia" / "cu13" / "bin" / "nvcc")


def test_without_a_compiler_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(driver, "nvrtc_paths", lambda: [])
    monkeypatch.setattr(driver, "nvcc_path", lambda: None)
    with pytest.raises(driver.CudaError, match=r"NVRTC \(package nvidia-cuda-nvrtc\) or nvcc must"):
        driver.compiled(official_kernels.SOURCE, "sm_80")


@pytest.mark.skipif(driver.nvcc_path() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_nvcc_compiles_the_kernels(monkeypatch, architecture):
    monkeypatch.setattr(driver, "nvrtc_paths", lambda: [])
    code, compiler = driver.compiled(official_kernels.SOURCE, architecture)
    assert code.startswith(b"\x7fELF") and compiler == driver.nvcc_path()


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"remove_center": True}, "float16", r"have all points. Received: remove_center=True"),
        ({}, "bfloat16", r"`dtype` must be one of .*Received: dtype='bfloat16'"),
    ],
)
def test_what_the_kernels_do_not_compute_is_refused(options, dtype, message):
    with pytest.raises(ValueError, match=message):
        official_kernels.Kernels("cpu", (1, 4, 4, 8), DCNv3Geometry(groups=2, **options), dtype)


def test_large_tensors_are_refused():
    with pytest.raises(ValueError, match=r"less than 2\*\*31 numbers. Received: 2147483648"):
        official_kernels.Kernels(
            "cpu", (2**11, 2**5, 2**5, 2**10), DCNv3Geometry(groups=2), "float16"
        )


def test_the_official_model_calls_them():
    torch = pytest.importorskip("torch")
    options = {"groups": 2, "offset_scale": 1.5}
    tensors = arrays(DCNv3Geometry(**options), "float16")
    leaves = [torch.from_numpy(a).requires_grad_() for a in tensors[:3]]
    operator = official_kernels.torch_operator("cpu")
    # Under autocast, the softmax before gives float32.
    output = operator(leaves[0], leaves[1], leaves[2].float(), 2, 1.5)
    assert output.dtype == torch.float16
    truth = oracle.forward(*tensors[:3], **options)
    assert np.abs(output.detach().numpy() - truth).max() < 1e-3 * np.abs(truth).max()
    grads = torch.autograd.grad(output, leaves, torch.from_numpy(tensors[3]))
    expected = oracle.gradients(*tensors, **options)
    for found, truth in zip(grads, expected, strict=True):
        assert np.abs(found.numpy() - truth).max() < 1e-3 * np.abs(truth).max()


def test_a_rehearsal_without_a_compiler_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    emulated._library.cache_clear()
    with pytest.raises(driver.CudaError, match=r"g\+\+ must be installed for a rehearsal"):
        emulated.EmulatedDriver(official_kernels.SOURCE)
    emulated._library.cache_clear()
