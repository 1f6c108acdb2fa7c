"""Deterministic arrays by name: the same numbers on every machine and NumPy version.

The reference data in `data/models` was produced by running the official PyTorch
InternImage (OpenGVLab/InternImage, commit 31c962d) on weights that come from
`official_weight`, so that a whole checkpoint (up to InternImage-G, 3 B parameters)
is described by its table of parameter names and shapes, and only inputs' seeds and
expected outputs need storing. FlashInternImage's (OpenGVLab/DCNv4, commit 4b848f7) likewise.
"""

import gzip
import json
import pathlib
import zlib

import numpy as np

MODELS = pathlib.Path(__file__).parent / "data" / "models"

_CHUNK = 1 << 22
_STRIDE = np.uint64(0xD1B54A32D192ED03)


def uniform(name, shape, seed=0):
    """float32 array in [-1, 1), a pure function of (name, shape, seed): splitmix64 of a counter."""
    size = int(np.prod(shape, dtype=np.int64))
    out = np.empty(size, np.float32)
    with np.errstate(over="ignore"):
        start = np.uint64(zlib.crc32(name.encode()) | ((seed & 0xFFFF) << 32)) * _STRIDE
        for low in range(0, size, _CHUNK):
            high = min(size, low + _CHUNK)
            z = (np.arange(low, high, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            out[low:high] = (z >> np.uint64(40)).astype(np.float32)
            out[low:high] = out[low:high] * np.float32(2.0**-23) - np.float32(1)
    return out.reshape(shape)


def official_weight(name, shape, seed=0):
    """A value for the official checkpoint's parameter or buffer `name` (PyTorch layout)."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    u = uniform(name, shape, seed)
    if name.endswith("running_var"):
        return 1 + 0.5 * u
    if "gamma" in name or "layer_scale" in name:
        return 0.2 + 0.1 * u
    if name.endswith(("offset.bias", "mask.bias")):
        return 0.5 * u
    if len(shape) == 1:
        return 1 + 0.1 * u if name.endswith("weight") else 0.1 * u
    fan_in = int(np.prod(shape[1:]))
    # Nothing bounds DCNv4's masks: with a gain of 1 a whole FlashInternImage-T is chaotic, and
    # float32 is off by 0.08 in its logits.
    gain = 0.5 if ".offset." in name else 0.25 if ".offset_mask." in name else 1.0
    return gain * np.sqrt(3.0 / fan_in, dtype=np.float32) * u


def image(height, width, batch=1, seed=0):
    """A float32 image batch in PyTorch layout (batch, 3, height, width), values in [-2, 2)."""
    return 2 * uniform("image", (batch, 3, height, width), seed)


def model_config(name):
    """The official constructor's arguments of the reference model `name`, a dict."""
    stored = json.loads((MODELS / f"{name}.json").read_text())
    # What the constructor of FlashInternImage has as its defaults.
    flash = {"core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}
    return {**flash, **stored} if "flash" in name else stored


def model_shapes(name):
    """Shapes of the official checkpoint of the reference model `name`, by tensor name."""
    with gzip.open(MODELS / f"{name}.params.tsv.gz", "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return {row[0]: tuple(int(n) for n in row[1].split(",") if n) for row in rows}


def model_weights(name, seed=1):
    """The official checkpoint of the reference model `name`: arrays by tensor name.

    As in trained files, rows of DCNv4's offsets and masks that nothing reads are zero.
    """
    made = {key: official_weight(key, shape, seed) for key, shape in model_shapes(name).items()}
    for key, value in made.items():
        if ".offset_mask." in key:
            value[len(value) // 27 * 27 :] = 0
    return made
