"""The Triton kernels compiled for GPUs, on a machine that need not have one."""

import collections
import importlib.util

import keras
import pytest
from triton_compiler import resources

from keras_internimage.ops import DCNv3Geometry

if keras.backend.backend() != "torch" or importlib.util.find_spec("triton") is None:
    pytest.skip("PyTorch's, with Triton", allow_module_level=True)

from keras_internimage.ops.triton import operators

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ARCHITECTURES = (75, 80, 90)


def job(kernel, dtype, architecture, depth=16, samples=10**6, wide=False, **geometry):
    geometry = DCNv3Geometry(**{"groups": 4, **geometry})
    if kernel == "forward":
        itemsize = 4 if dtype == "float32" else 2
        plan = operators.Plan.forward(samples, depth, geometry.points, itemsize)
    else:
        plan = operators.Plan.backward(depth, geometry.points, divmod(architecture, 10))
    shape = {"BLOCK": plan.block, "LANES": plan.lanes}
    if kernel == "backward":
        shape["TAPS"] = plan.taps
    return {
        "kernel": kernel,
        "samples": samples,
        "dtype": SHORT[dtype],
        "capability": architecture,
        "warps": plan.warps,
        "constants": {**operators.constants(geometry, depth, True, wide), **shape},
    }


def counts(code):
    """How often each instruction is there, by its first word."""
    return collections.Counter(name.split(".")[0] for name in code)


# What is compiled is kept, but compiling takes long where the kernels have changed.
QUICK = (("bfloat16", 90),)
PAIRS = [(dtype, architecture) for architecture in ARCHITECTURES for dtype in SHORT]


@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS],
)
def test_the_kernels_of_internimage(dtype, architecture):
    """Groups of 16 channels, 3x3 points: nothing is spilled, and what is read is read at once."""
    forward, backward = resources([job(k, dtype, architecture) for k in ("forward", "backward")])
    assert forward["spilled"] == backward["spilled"] == 0
    # 4 blocks of 128 threads on a multiprocessor; of one warp, as many as registers allow.
    assert forward["registers"] <= 128
    assert backward["registers"] <= (128 if architecture >= 90 else 255)
    # No thread waits for another one, and nothing goes through shared memory.
    assert forward["shared"] == 0
    assert not counts(forward["code"]).keys() & {"BAR", "LDS", "STS", "SHFL"}
    # 4 corners of 9 points, 16 bytes at once; 27 numbers of offsets and masks.
    widest = [name for name in forward["code"] if name.startswith("LDG") and ".128" in name]
    assert len(widest) == 36 and counts(forward["code"])["LDG"] == 36 + 27
    if dtype == "bfloat16" and architecture >= 80:  # rounded, not cut off
        rounded = [name for name in forward["code"] + backward["code"] if name[:4] == "F2FP"]
        assert rounded and not any("RZ" in name for name in rounded)
    added = [name for name in backward["code"] if name.startswith("RED")]
    assert len(added) == (36 if architecture >= 90 else 4 * 36)
    assert all("F32x4" in name for name in added) or architecture < 90


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "options",
    [
        {"wide": True},
        {"wide": True, "samples": 2**32},
        {"depth": 7},
        {"depth": 512, "groups": 1},
        {"kernel_size": 5, "padding": 2, "remove_center": True},
        {"kernel_size": 7, "offset_scale": 0.7},
        {"kernel_size": (13, 13)},
        {"samples": 64},
    ],
    ids=str,
)
def test_other_shapes(architecture, options):
    jobs = [job(k, "float32", architecture, **options) for k in ("forward", "backward")]
    for found in resources(jobs):
        assert bool(found["narrow"]) != options.get("wide", False)
        assert found["spilled"] == 0
        assert found["shared"] <= 48 * 1024
