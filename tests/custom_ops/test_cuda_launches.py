"""How the CUDA kernels use a GPU: grids, barriers, atomics, the deterministic gradient, resources.

Run on the processor by `cuda_emulation.h`, which sees each access to shared memory.
"""

import ctypes
import importlib.util
import re
import shutil
import subprocess

import numpy as np
import pytest
from emulated_cuda import (
    CORE,
    SOURCES,
    TOLERANCES,
    assert_agrees,
    assert_close,
    build,
    dry,
    make_call,
    random_arrays,
    rounded,
)

from keras_internimage.custom_ops import toolchain

pytestmark = pytest.mark.any_backend

BENCHMARK = CORE.parents[1] / "benchmarks" / "cuda_resources.py"
BARRIER = r"__sync(warp|threads)\(\);"


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmarks_cuda_resources", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


resources = load_benchmark()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("depth", [3, 16, 40])
def test_deterministic_gradient(kernels, dtype, depth):
    """Right, the same every time, and independent of the other images of the batch."""
    options = {"groups": 2, "mask_activation": "softmax", "offset_scale": 1.5}
    arrays = random_arrays(dtype, depth=depth)
    assert_agrees(kernels, arrays, dtype, deterministic=1, **options)
    grads = kernels.backward(*arrays, dtype=dtype, deterministic=1, **options)
    again = kernels.backward(*arrays, dtype=dtype, deterministic=1, **options)
    alone = kernels.backward(*(a[1:] for a in arrays), dtype=dtype, deterministic=1, **options)
    atomic = kernels.backward(*arrays, dtype=dtype, deterministic=0, **options)
    for first, second, image, other in zip(grads, again, alone, atomic, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first[1:], image)
        assert_close(first, other, 4e-6 if dtype == "float32" else TOLERANCES[dtype][1])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("depth", [3, 8, 16, 40])
def test_grids_smaller_than_the_work(small_grids, dtype, depth):
    arrays = random_arrays(dtype, batch=5, size=(3, 4), depth=depth)
    for deterministic in (0, 1):
        assert_agrees(small_grids, arrays, dtype, deterministic=deterministic, groups=2)


def test_the_deterministic_gradient_does_not_depend_on_tiles(kernels, small_grids):
    """Tiles of eight rows and of one, and offsets from everywhere to everywhere."""
    options = {"groups": 2, "mask_activation": "softmax", "deterministic": 1}
    arrays = random_arrays(batch=1, size=(11, 13), depth=40, spread=9.0)
    few, many = (library.backward(*arrays, **options)[0] for library in (kernels, small_grids))
    np.testing.assert_array_equal(few, many)


def test_the_deterministic_gradient_has_enough_blocks(kernels):
    """At the first stage of InternImage-T: two for each multiprocessor of a large GPU."""
    arrays = [np.zeros((1, 56, 56, c)) for c in (64, 72, 36, 64)]
    with dry(kernels):
        kernels.backward(*arrays, groups=4, deterministic=1)
    assert kernels.blocks() >= 264


@pytest.mark.parametrize("depth, lanes, corners", [(8, 2, 1), (16, 2, 2), (32, 4, 4), (64, 8, 4)])
def test_the_benchmark_knows_the_shared_memory_of_launches(kernels, depth, lanes, corners):
    arrays = [np.zeros((64, 33, 33, c)) for c in (4 * depth, 72, 36, 4 * depth)]
    with dry(kernels):
        kernels.forward(*arrays[:3], groups=4, dtype="float16")
        expected = resources.shared_memory("forward", ["8", str(lanes), "9"])
        assert kernels.shared_bytes() == expected
        kernels.backward(*arrays, groups=4, dtype="float16", deterministic=1)
        assert kernels.shared_bytes() == resources.shared_memory("ordered", [str(corners)])


@pytest.mark.parametrize("order", [1, 2], ids=["descending", "rotated"])
@pytest.mark.parametrize("dtype, depth", [("float32", 3), ("float16", 16), ("bfloat16", 40)])
def test_order_of_threads(kernels, dtype, depth, order):
    """Other orders of threads, warps and blocks change no bit but those of atomic sums."""
    options = {"groups": 3, "mask_activation": "softmax"}
    arrays = random_arrays(dtype, batch=1, groups=3, depth=depth)

    def results(order):
        kernels.set_order(order)
        try:
            atomic, *rest = kernels.backward(*arrays, dtype=dtype, **options)
            ordered = kernels.backward(*arrays, dtype=dtype, deterministic=1, **options)
            output = kernels.forward(*arrays[:3], dtype=dtype, **options)
        finally:
            kernels.set_order(0)
        return atomic, (*rest, *ordered, output)

    first, others = results(0), results(order)
    assert_close(others[0], first[0], 4e-6 if dtype == "float32" else TOLERANCES[dtype][1])
    for one, other in zip(first[1], others[1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_atomic_additions_touch_few_sectors(kernels, small_grids, dtype):
    """Per instruction of a warp, in sectors of 32 bytes: no more than its additions fill."""
    options = {"groups": 4, "padding": 0, "strides": 2}
    arrays = random_arrays(dtype, batch=1, size=(10, 10), **options)
    arrays[1] = rounded(np.abs(arrays[1]) % 0.9, dtype)  # all samples are inside
    numbers = arrays[0].shape[-1] * 16 * 9 * 4
    for library, floats in ((kernels, 1), (small_grids, 4)):
        library.take_sectors()
        library.backward(*arrays, dtype=dtype, **options)
        instructions, sectors, most = library.take_sectors()
        assert instructions == numbers / (32 * floats)
        assert most == 4 * floats and sectors == instructions * most


def barriers():
    """`(file name, number)` of every barrier in the kernels."""
    found = [
        (path.name, i)
        for path in sorted(CORE.glob("cuda*"))
        for i in range(len(re.findall(BARRIER, path.read_text())))
    ]
    assert len(found) > 5
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name, number", barriers())
def test_every_barrier_is_needed(tmp_path, name, number):
    """Without any one of them, threads race for shared memory, and the emulation says so."""
    core = tmp_path / "core"
    shutil.copytree(CORE, core)
    source = (core / name).read_text()
    place = [*re.finditer(BARRIER, source)][number]
    (core / name).write_text(source[: place.start()] + source[place.end() :])
    kernels = build(tmp_path, core=core, kMaxGridX="2", kMaxGridY="3")
    arrays = random_arrays(batch=5, size=(9, 9), remove_center=True)
    options = {"groups": 2, "remove_center": True}  # of nine points, the last is the first lane's
    with pytest.raises(ValueError, match="threads race for word"):
        kernels.forward(*arrays[:3], **options)
        for deterministic in (0, 1):
            kernels.backward(*arrays, deterministic=deterministic, **options)


def test_workspace_size(kernels):
    arrays = random_arrays(strides=2)
    for dtype, size in (("float32", 0), ("float16", 4), ("bfloat16", 4)):
        call = make_call(arrays[0], arrays[1], dtype, groups=2)
        sums, summaries = size * arrays[0].size, 16 * 2 * arrays[1][..., 0].size
        for deterministic, expected in ((0, sums), (1, summaries)):
            assert kernels.workspace_size(ctypes.byref(call), deterministic) == expected


NVCC = next(iter(toolchain.nvcc_paths()), None)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


@needs_nvcc
def test_the_benchmark_counts_what_nvcc_writes(tmp_path):
    source = tmp_path / "small.cu"
    source.write_text("""
        namespace dcnv3 {
        template <class T, int times>
        __global__ void small_kernel(T* numbers) {
        #pragma unroll
          for (int i = 0; i < times; ++i) numbers[i * 7] = numbers[i * 11] * 3;
        }
        template __global__ void small_kernel<float, 2>(float*);
        template __global__ void small_kernel<float, 40>(float*);
        }
    """)
    (first, *_), (second, *_) = found = resources.rows(NVCC, source, "80")
    assert first == second == "small"
    assert [row[1:3] for row in found] == [("float32", ["2"]), ("float32", ["40"])]
    few, many = (row[7] for row in found)
    assert 2 * 3 < few < 20 and 40 * 3 < many < few + 40 * 5
    assert all(2 <= row[3] <= 255 and row[4] == row[5] == row[6] == 0 for row in found)


@needs_nvcc
@pytest.mark.parametrize("number", [pytest.param(75, marks=pytest.mark.slow), 90])
def test_nvcc_compiles_without_warnings(tmp_path, number):
    code = f"-gencode arch=compute_{number},code=sm_{number}"
    command = f"{NVCC} -O3 -std=c++17 {code} -Xcompiler -fPIC,-Wall -c -o"
    for name in SOURCES:
        result = subprocess.run(
            [*command.split(), str(tmp_path / "cuda.o"), str(CORE / name)],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert "warning" not in result.stdout + result.stderr
