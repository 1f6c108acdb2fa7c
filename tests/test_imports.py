"""What `import keras_internimage` brings into a fresh process, and what it does not."""

import ast
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import keras
import pytest
from small_models import SMALL

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
    kernels = {"triton", "keras_internimage.ops.triton.kernels"}
    return {name for name in added if name in foreign | HEAVY | kernels}


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
        f"m = k.InternImage(**{SMALL}, input_shape=(32, 32, 3), classes=2)",
        "x, y, z = [numpy.zeros((1, 4, 4, c), 'float32') for c in (4, 36, 18)]",
        "k.ops.dcnv3(x, y, z, groups=2, mask_activation='softmax')",
    )
    for modules in added[1:]:
        assert not unwanted(modules)


@pytest.mark.any_backend
def test_every_public_name_exists():
    for name in keras_internimage.__all__:
        assert hasattr(keras_internimage, name), name


@pytest.mark.any_backend
def test_dir_shows_the_public_names_alone():
    assert dir(keras_internimage) == sorted([*keras_internimage.__all__, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        keras_internimage.nothing  # noqa: B018


PACKAGES = sorted(
    {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"custom_ops", "weights_convert"}
)


@pytest.mark.any_backend
@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "commands"])
def test_every_package_is_an_attribute(name):
    assert name in keras_internimage.__all__
    assert getattr(keras_internimage, name) is sys.modules[f"keras_internimage.{name}"]


@pytest.mark.any_backend
def test_lazy_names_are_the_public_ones():
    lazy = {*keras_internimage._PACKAGES, *keras_internimage._NAMES}
    assert lazy == set(keras_internimage.__all__)
    for name, module in keras_internimage._NAMES.items():
        found = importlib.import_module(f"keras_internimage.{module}")
        assert getattr(keras_internimage, name) is getattr(found, name)


def registered():
    """`package>name` of what the package's files register in Keras, read from their text.

    Without the module that needs KerasHub: whoever uses its classes imports it.
    """
    found = set()
    for path in (path for path in PACKAGE.rglob("*.py") if path.stem != "keras_hub"):
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", ()):
                if re.search(r"\bregister(ed|_keras_serializable)\b", ast.unparse(decorator)):
                    found.add(f"keras_internimage>{node.name}")
    return found


def test_importing_registers_every_class_lazily_the_rest():
    code = """
import keras_internimage, keras, sys, json
names = set(keras.saving.get_custom_objects())
lazy = "keras_internimage.report" not in sys.modules
keras_internimage.distribution.layout_map, keras_internimage.report.write
print(json.dumps([sorted(names), lazy]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    names, lazy = json.loads(result.stdout.splitlines()[-1])
    assert lazy
    assert len(registered()) > 5
    assert registered() <= set(names)


MODULE = """
import pathlib
count = pathlib.Path(__file__ + ".count") if ".zip" not in __file__ else None
if count and not count.exists():
    count.write_text("1")
    raise ImportError("not this time")
"""


@pytest.mark.any_backend
@pytest.mark.parametrize("zipped", [False, True])
def test_what_waits_for_an_import(tmp_path, monkeypatch, zipped):
    """It is called once, behind the first import that succeeds, whoever asked for it before."""
    from importlib import util

    from keras_internimage.imports import when_imported

    name, other = f"waited_for_{zipped}".lower(), f"not_waited_for_{zipped}".lower()
    place = tmp_path / "packages.zip" if zipped else tmp_path
    if zipped:
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr(f"{name}.py", MODULE)
            archive.writestr(f"{other}.py", MODULE)
    else:
        (tmp_path / f"{name}.py").write_text(MODULE)
        (tmp_path / f"{other}.py").write_text("")
    calls = []
    finders = list(sys.meta_path)
    when_imported(name, lambda: calls.append(sys.modules[name]))
    monkeypatch.syspath_prepend(place)
    assert util.find_spec(name).loader.get_source(name) == MODULE
    assert util.find_spec("no_such_package") is None
    importlib.import_module(other)
    if not zipped:
        with pytest.raises(ImportError, match="not this time"):
            importlib.import_module(name)
    assert not calls
    module = importlib.import_module(name)
    assert calls == [module] and sys.meta_path == finders
    assert type(module.__spec__.loader) is type(sys.modules[other].__spec__.loader)
    importlib.reload(module)
    assert calls == [module]
    when_imported(name, lambda: calls.append("now"))
    assert calls == [module, "now"] and sys.meta_path == finders
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, other)
