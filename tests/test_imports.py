"""What `import keras_internimage` brings into a fresh process, and what it does not."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

import keras_internimage

FRAMEWORKS = {"tensorflow", "jax", "torch"}
HEAVY = {"PIL", "matplotlib", "h5py", "safetensors", "sklearn", "keras_hub", "keras_cv"}
PACKAGE = pathlib.Path(keras_internimage.__file__).parent


def modules_after(statement):
    """Top-level names in `sys.modules` of a fresh process after the statement."""
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return {name.split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


@pytest.fixture(scope="module")
def with_keras_alone():
    return modules_after("import keras")


@pytest.mark.parametrize(
    "statement",
    [
        "import keras_internimage",
        "import keras_internimage.checkpoints",
        "import keras_internimage.custom_ops",
        "import keras_internimage.weights_convert",
    ],
)
def test_no_foreign_framework_and_nothing_heavy(statement, with_keras_alone):
    brought = modules_after(statement) - with_keras_alone
    foreign = FRAMEWORKS - {keras.config.backend()}
    assert not brought & foreign
    assert not brought & HEAVY


def test_a_model_needs_no_foreign_framework(with_keras_alone):
    brought = modules_after(
        "import keras_internimage as k;"
        "m = k.InternImage(16, (1, 1, 1, 1), (1, 2, 4, 8), input_shape=(64, 64, 3), classes=2);"
        "m.predict(__import__('numpy').zeros((1, 64, 64, 3)), verbose=0)"
    )
    foreign = FRAMEWORKS - {keras.config.backend()}
    # Keras itself may use TensorFlow or JAX where it is installed: that is not this package's.
    keras_alone = modules_after(
        "import keras;"
        "m = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]);"
        "m.predict(__import__('numpy').zeros((1, 4)), verbose=0)"
    )
    assert not (brought - keras_alone) & foreign


@pytest.mark.any_backend
def test_every_public_name_exists():
    for name in keras_internimage.__all__:
        assert hasattr(keras_internimage, name), name


# Each part may import the ones before it, and itself.
LAYERS_OF_IMPORT = ("ops", "layers", "models", "checkpoints")


@pytest.mark.any_backend
@pytest.mark.parametrize("part", LAYERS_OF_IMPORT)
def test_imports_never_point_upward(part):
    above = LAYERS_OF_IMPORT[LAYERS_OF_IMPORT.index(part) + 1 :]
    for path in sorted((PACKAGE / part).rglob("*.py")):
        tree = ast.parse(path.read_text())
        # Inside a function an import is late on purpose: models ask checkpoints for weights so.
        for node in tree.body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                for other in above:
                    upward = f"keras_internimage.{other}"
                    assert name != upward and not name.startswith(upward + "."), f"{path}: {name}"
