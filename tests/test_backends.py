"""Which programs are the package's own commands, and how they choose Keras' backend."""

import configparser
import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import sys

import keras
import numpy as np
import pytest

from keras_internimage import backends

pytestmark = pytest.mark.any_backend


@pytest.fixture
def own_command(monkeypatch):
    """Asks as at the start of a process with this command line."""

    def ask(argv, orig_argv=("python",)):
        monkeypatch.setattr(sys, "argv", list(argv))
        monkeypatch.setattr(sys, "orig_argv", list(orig_argv))
        return backends.is_own_command.__wrapped__()

    return ask


@pytest.mark.parametrize(
    "name",
    ["/usr/bin/internimage-train", "internimage-predict", "internimage-export.exe"]
    + ["C/internimage-convert-script.py"],
)
def test_the_scripts_are_own_commands(own_command, name):
    assert own_command([name, "x"])


@pytest.mark.parametrize(
    "before",
    [["-m", "keras_internimage"], ["-X", "importtime", "-m", "keras_internimage.commands.export"]]
    + [["-mkeras_internimage"], ["-Im", "keras_internimage.weights_convert"]],
)
def test_modules_of_the_package_are_own_commands(own_command, before):
    assert own_command(["-m", "a", "-m", "b"], ["python", *before, "a", "-m", "b"])


@pytest.mark.parametrize(
    ("argv", "orig_argv"),
    [
        (["train.py", "internimage-train"], ["python", "train.py", "internimage-train"]),
        (["/site/pytest/__main__.py"], ["python", "-m", "pytest"]),
        (["-m"], ["python", "-m", "keras_internimage_tools"]),
        (["-m", "keras_internimage"], ["python", "-m", "other", "keras_internimage"]),
        (["internimage-train.py"], ["python", "internimage-train.py"]),
        (["internimage-other"], ["python", "internimage-other"]),
        (["-c"], ["python", "-c", "import keras_internimage"]),
        ([""], ["python"]),
        ([], []),
    ],
)
def test_other_programs_are_not(own_command, argv, orig_argv):
    assert not own_command(argv, orig_argv)


def test_the_commands_are_those_that_are_installed():
    config = configparser.ConfigParser()
    config.read(pathlib.Path(__file__).parents[1] / "setup.cfg", "utf-8")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    assert sorted(line.partition("=")[0].strip() for line in lines if line) == sorted(
        backends.COMMANDS
    )


def test_use(monkeypatch):
    current = keras.config.backend()
    monkeypatch.setenv(backends.VARIABLE, current)
    backends.use(None)
    backends.use(current)
    other = "jax" if current != "jax" else "torch"
    with pytest.raises(ValueError, match=f"runs on, {current} .* Received: --backend {other}"):
        backends.use(other)
    assert os.environ[backends.VARIABLE] == current
    # Before Keras is imported, it is chosen.
    monkeypatch.delitem(sys.modules, "keras")
    backends.use(other)
    assert os.environ[backends.VARIABLE] == other == backends.chosen()
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"must be installed .*keras-internimage\[jax\]"):
        backends.use("jax")


def test_quiet_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        logger.setLevel(logging.DEBUG)
        backends.quiet()
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(level)


def test_lines_of_a_log_are_dropped_while_tensorflow_is_imported(monkeypatch, tmp_path, capfd):
    (tmp_path / "tensorflow.py").write_text(
        "import os, sys\n"
        "os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called\\n')\n"
        "os.write(2, b'I0000 00:00:1795706390.228642   11881 port.cc:153] oneDNN is on.\\n')\n"
        "os.write(2, b'No space left on device\\n')\n"
        "print('a warning of Python', file=sys.stderr)\n"
        "assert 'x' not in sys.argv\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    backends.quiet()
    backends.quiet()
    assert importlib.util.find_spec("tensorflow").origin == str(tmp_path / "tensorflow.py")
    for argv in (["command"], ["x"]):  # what an import that fails says is seen as well
        monkeypatch.setattr(sys, "argv", argv)
        with contextlib.suppress(AssertionError):
            importlib.import_module("tensorflow")
        assert ("tensorflow" in sys.modules) == (argv == ["command"])
        sys.modules.pop("tensorflow", None)
        said = capfd.readouterr().err.splitlines()
        assert sorted(said) == ["No space left on device", "a warning of Python"]


def test_tensorflow_is_hidden_from_own_commands_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    finders = list(sys.meta_path)
    backends.hide_tensorflow()
    monkeypatch.setattr(backends, "is_own_command", lambda: True)
    monkeypatch.setattr(backends, "chosen", lambda: "tensorflow")
    backends.hide_tensorflow()
    assert sys.meta_path == finders
    monkeypatch.setattr(backends, "chosen", lambda: "torch")
    for _ in range(2):
        backends.hide_tensorflow()
        assert importlib.util.find_spec("tensorflow") is None
        with pytest.raises(ModuleNotFoundError, match="tensorflow"):
            importlib.import_module("tensorflow")
        assert len(sys.meta_path) == len(finders) and "tensorflow" not in sys.modules
    # Others are found as before, their metadata, too; Keras converts boxes without it.
    importlib.invalidate_caches()
    assert importlib.util.find_spec("keras") and importlib.metadata.version("keras")
    boxes = keras.utils.bounding_boxes.convert_format(
        np.array([[0.0, 1, 2, 5]]), source="xyxy", target="xywh"
    )
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(boxes), [[0, 1, 2, 4]])
