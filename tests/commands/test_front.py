"""The commands parse their arguments before Keras is imported, and print nothing but their own."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from small_models import SMALL

import keras_internimage

HEAVY = {"keras", "numpy", "tensorflow", "jax", "torch", "PIL", "h5py", "matplotlib"}
COMMANDS = {
    "internimage-convert": "keras_internimage.weights_convert.cli",
    "internimage-evaluate": "keras_internimage.commands.evaluate.cli",
    "internimage-export": "keras_internimage.commands.export",
    "internimage-predict": "keras_internimage.commands.predict",
    "internimage-train": "keras_internimage.commands.train.cli",
    "python -m keras_internimage": "keras_internimage.__main__",
    "python -m keras_internimage.custom_ops": "keras_internimage.custom_ops.__main__",
}


def process(code, program, *arguments, **variables):
    """Runs code as the program of that name would, with a user's environment."""
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend(), **variables}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    # As an installed script does: its own name first.
    start = "import sys; sys.argv[0] = sys.argv.pop(1)\n"
    return subprocess.run(
        [sys.executable, "-c", start + code, program, *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.any_backend
def test_help_and_version_import_nothing_heavy():
    # All in one process; each would have imported what it needs.
    code = """
import contextlib, importlib, io, json
found = {}
for name, module in json.loads(sys.argv[1]).items():
    for option in ("--help", "--version"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                importlib.import_module(module).main([option])
            except SystemExit as stopped:
                assert not stopped.code
        found[f"{name} {option}"] = said.getvalue(), sorted(sys.modules)
print(json.dumps(found))
"""
    result = process(code, "internimage-predict", json.dumps(COMMANDS))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for call, (said, modules) in json.loads(result.stdout).items():
        name, _, option = call.rpartition(" ")
        assert not HEAVY & set(modules), call
        if option == "--help":
            assert said.startswith(f"usage: {name}")
            assert "--version" in said
        else:
            assert said == f"{name} {keras_internimage.__version__}\n"


@pytest.mark.any_backend
@pytest.mark.parametrize("module", ["keras_internimage", "keras_internimage.commands.predict"])
def test_help_of_a_module(module):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "keras_internimage.backends" in imported
    assert not HEAVY & imported


def test_a_framework_says_nothing(tmp_path):
    """One process, as if it were each command; the backend is imported in it as they do it."""
    model = keras_internimage.InternImage(**SMALL, input_shape=(32, 32, 3), classes=2)
    model.save(tmp_path / "model.keras")
    (tmp_path / "labels.json").write_text('["left", "right"]')
    Image.fromarray(np.zeros((40, 50, 3), "uint8")).save(tmp_path / "a.png")
    (tmp_path / "broken.keras").write_text("text")
    (tmp_path / "empty").mkdir()
    code = """
import os
folder, backend = sys.argv[1:]
from keras_internimage.commands import export, predict
from keras_internimage.commands.train import cli as train
from keras_internimage.weights_convert import cli as convert
assert "keras" not in sys.modules
assert predict.main([folder, folder + "/a.png", "--backend", backend]) == 0
assert export.main([folder + "/broken.keras", folder + "/out.onnx"]) == 2
assert convert.main(["convert", folder + "/broken.keras", folder + "/x.keras"]) == 2
assert train.main([folder + "/empty", "--output", folder + "/new"]) == 2
import keras
assert keras.config.backend() == backend
keras.saving.load_model(folder + "/model.keras").save(folder + "/again.keras")
assert backend == "tensorflow" or sys.modules.get("tensorflow") is None
"""
    # The kernels' build has lines of its own, which are no framework's.
    backend = keras.config.backend()
    other = "torch" if backend != "torch" else "jax"
    result = process(
        code,
        "internimage-predict",
        tmp_path,
        backend,
        KERAS_BACKEND=other,
        KERAS_INTERNIMAGE_KERNELS="off",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    starts = ("internimage-export: error: ", "error: ", "internimage-train: error: ")
    assert len(lines) == len(starts), result.stderr
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), result.stderr
    table = result.stdout.splitlines()
    assert len(table) == 2 and table[0].startswith(str(tmp_path / "a.png"))
    assert {line.split()[-1] for line in table} == {"left", "right"}
