"""Saved on one backend, a model loads and predicts the same on the others."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from models import reference
from small_models import TINY, one_block

from keras_internimage import InternImage, InternImageBackbone

BACKENDS = ("tensorflow", "jax", "torch")
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")


def make_every_kind():
    """One model with each option that is saved: read back without `custom_objects`."""
    return InternImage(
        **TINY,
        input_shape=(64, 64, 3),
        classes=5,
        dw_kernel_size=5,
        offset_scale=2.0,
        center_feature_scale=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=(0,),
        res_post_norm=True,
        use_clip_projector=True,
        remove_center=True,
        drop_path_rate=0.1,
        drop_rate=0.1,
    )


def shake(model):
    """Values for weights that start at zero, or offsets would not matter."""
    generator = np.random.default_rng(1)
    for weight in model.weights:
        value = reference.as_array(weight)
        weight.assign(value + generator.normal(0, 0.1, value.shape))


def output(model):
    return reference.as_array(reference.call(model, IMAGES))


def main(backend, folder):
    """Run in a process of its own for every backend: saves, waits for the others, loads theirs."""
    folder = pathlib.Path(folder)
    keras.utils.set_random_seed(0)
    model = make_every_kind()
    shake(model)
    model.save(folder / f"{backend}.keras")
    np.save(folder / f"{backend}.npy", output(model))
    print("saved", flush=True)
    sys.stdin.readline()
    differences = {}
    for path in sorted(folder.glob("*.keras")):
        if path.stem == backend:
            continue
        model = keras.saving.load_model(path)
        expected = np.load(path.with_suffix(".npy"))
        difference = np.abs(output(model) - expected).max()
        differences[path.stem] = float(difference / max(1, np.abs(expected).max()))
    print(json.dumps(differences))


@pytest.fixture
def processes(tmp_path):
    """One process for each backend, all at once; their errors go to files."""
    running = []
    for backend in BACKENDS:
        command = f"import models.test_saving as t; t.main({backend!r}, {str(tmp_path)!r})"
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(["tests", "."]),
        }
        with open(tmp_path / f"{backend}.txt", "w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=pathlib.Path(__file__).parents[2],
                text=True,
            )
        running.append(process)
    yield running
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.any_backend
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, BACKENDS)), reason="needs the three backends"
)
def test_across_backends(tmp_path, processes):
    def errors():
        return "\n".join(path.read_text() for path in tmp_path.glob("*.txt"))

    for process in processes:
        lines = iter(process.stdout.readline, "")
        assert "saved\n" in lines, errors()
    for process in processes:
        out, _ = process.communicate("go on\n", timeout=300)
        assert process.returncode == 0, errors()
        differences = json.loads(out.splitlines()[-1])
        assert len(differences) == len(BACKENDS) - 1
        assert max(differences.values()) < 1e-5, differences


def test_loaded_backbone_still_offers_its_pyramid(tmp_path):
    backbone = InternImageBackbone(**TINY, image_shape=(64, 64, 3))
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    assert isinstance(loaded, InternImageBackbone)
    assert loaded.get_config() == backbone.get_config()
    assert list(loaded.pyramid_outputs) == ["P2", "P3", "P4", "P5"]
    shapes = [tuple(t.shape) for t in loaded.pyramid_outputs.values()]
    assert shapes == [(None, 64 // 2**n, 64 // 2**n, 8 * 2 ** (n - 2)) for n in (2, 3, 4, 5)]
    for level, name in loaded.pyramid_level_inputs.items():
        assert loaded.get_layer(name).output is loaded.pyramid_outputs[level]


def test_weights_file(tmp_path):
    model, other = make_every_kind(), make_every_kind()
    shake(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(reference.as_array(a), reference.as_array(b))


def test_quantised_model_is_read_back(tmp_path):
    """The data types of the parts of composite layers are in their configuration."""
    model = one_block()
    shake(model)
    reference_output = model.predict(IMAGES, verbose=0)
    model.quantize("int8")
    quantised = model.predict(IMAGES, verbose=0)
    assert 0 < np.abs(quantised - reference_output).max() < 0.2 * np.abs(reference_output).max()
    model.save(tmp_path / "int8.keras")
    loaded = keras.saving.load_model(tmp_path / "int8.keras")
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), quantised, atol=1e-6)
