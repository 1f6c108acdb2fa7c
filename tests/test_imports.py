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


ALONE = "import keras"
STATEMENTS = [
    "import keras_internimage",
    "import keras_internimage.checkpoints",
    "import keras_internimage.custom_ops",
    "import keras_internimage.report",
    "import keras_internimage.visualize",
    "import keras_internimage.weights_convert",
]


def modules_after(*statements):
    """What each of the statements, one after the other in a fresh process, adds to sys.modules."""
    code = ["import json, sys", "seen, added = set(sys.modules), []"]
    for statement in statements:
        code += [statement, "added.append(sorted(set(sys.modules) - seen))"]
        code += ["seen = set(sys.modules)"]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, "print(json.dumps(added))"])],
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def unwanted(added):
    foreign = FRAMEWORKS - {keras.config.backend()}
    return {name for name in added if name in foreign | HEAVY}


def test_no_foreign_framework_and_nothing_heavy():
    added = modules_after(ALONE, *STATEMENTS)
    for statement, modules in zip(STATEMENTS, added[1:], strict=True):
        assert not unwanted(modules), statement
    assert "keras_internimage.ops.dcnv3" in added[1]
    # Or Keras would not find the optimizer of a saved model.
    assert "keras_internimage.training.optimizers" in added[1]


def test_a_model_needs_no_foreign_framework():
    added = modules_after(
        "import keras, numpy; keras.layers.Dense(2)(numpy.zeros((1, 4), 'float32'))",
        "import keras_internimage as k",
        "m = k.InternImage(16, (1, 1, 1, 1), (1, 2, 4, 8), input_shape=(32, 32, 3), classes=2)",
        "x, y, z = [numpy.zeros((1, 4, 4, c), 'float32') for c in (4, 36, 18)]",
        "k.ops.dcnv3(x, y, z, groups=2, mask_activation='softmax')",
    )
    for modules in added[1:]:
        assert not unwanted(modules)


@pytest.mark.any_backend
def test_every_public_name_exists():
    for name in keras_internimage.__all__:
        assert hasattr(keras_internimage, name), name


# Each part may import the ones before it, and itself.
LAYERS_OF_IMPORT = ("ops", "layers", "checkpoints", "models")


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
