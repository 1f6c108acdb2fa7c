"""Keras' backend, which has to be chosen before Keras is imported; and its frameworks' log lines.

A command line reads its arguments before Keras is imported: one of them names the backend, and
`--help` must not take the seconds that a framework needs. So `import keras_internimage`, which
imports Keras for everybody else, does not do so in a process that is one of this package's
commands. See `is_own_command`.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import json
import logging
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

BACKENDS = ("tensorflow", "jax", "torch")
VARIABLE = "KERAS_BACKEND"
# The scripts that an installation puts beside Python; a test compares them with setup.cfg.
COMMANDS = (
    *("internimage-convert", "internimage-detect", "internimage-evaluate", "internimage-export"),
    *("internimage-predict", "internimage-segment", "internimage-train"),
)
# In what PyTorch, TensorFlow and JAX raise, none of it a MemoryError.
_NO_MEMORY = "out of memory|out_of_memory|can't allocate memory|resource.?exhausted"
PACKAGE = __name__.partition(".")[0]


@functools.cache  # as it was at the start: `python -m` changes sys.argv then
def is_own_command() -> bool:
    """Whether this process is one of the package's command lines.

    That is one of `COMMANDS`, or `python -m keras_internimage...`. For any other program the answer
    is no: there, `import keras_internimage` must register the layers, so that
    `keras.saving.load_model` finds them.
    """
    argv = getattr(sys, "argv", None) or [""]
    if argv[0] == "-m":
        # Python is looking for the module, and imports the packages around it first. What is left
        # of its own command line before the arguments ends with the module's name, "-m" before it
        # or in one word with it.
        word = sys.orig_argv[-len(argv)] if len(sys.orig_argv) > len(argv) else ""
        module = word.partition("m")[2] if word.startswith("-") else word
        return module == PACKAGE or module.startswith(PACKAGE + ".")
    name = os.path.basename(argv[0]).lower()
    for ending in (".exe", "-script.py", "-script.pyw"):  # on Windows
        name = name.removesuffix(ending)
    return name in COMMANDS


def take_installed() -> None:
    """Chooses a backend that is installed, where Keras would take one that is not.

    Keras takes TensorFlow where nothing is said, and `import keras` fails without it. Who installed
    JAX or PyTorch alone has said enough. Does nothing where `KERAS_BACKEND` is set, or Keras is
    imported already.
    """
    if "keras" in sys.modules or os.environ.get(VARIABLE):
        return
    if importlib.util.find_spec(_by_file() or BACKENDS[0]) is not None:
        return
    for other in BACKENDS:
        if importlib.util.find_spec(other) is not None:
            os.environ[VARIABLE] = other
            return


def _by_file() -> str | None:
    """The backend that Keras' own settings name."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    try:
        return json.loads(pathlib.Path(home, "keras.json").read_text("utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


def chosen() -> str:
    """The backend that Keras runs on, or will run on once it is imported."""
    if "keras" in sys.modules:
        import keras

        return keras.config.backend()
    return os.environ.get(VARIABLE) or _by_file() or BACKENDS[0]


def use(backend: str | None) -> None:
    """Chooses Keras' backend, before Keras is imported.

    Args:
        backend: `"tensorflow"`, `"jax"`, `"torch"`, or None for what Keras takes by itself.

    Raises:
        ValueError: the backend is not installed, or Keras is imported already and runs on another.
    """
    if backend is None:
        return
    if importlib.util.find_spec(backend) is None:
        raise ValueError(
            f"The package {backend} must be installed for --backend {backend}: "
            f'pip install "keras-internimage[{backend}]"'
        )
    if "keras" in sys.modules and chosen() != backend:
        raise ValueError(
            f"--backend must be the one that Keras runs on, {chosen()} (the variable {VARIABLE} "
            f"chooses it). Received: --backend {backend}"
        )
    os.environ[VARIABLE] = backend


def quiet() -> None:
    """Keeps the frameworks' log lines, which say nothing to a command's user, off standard error.

    Must be called before a framework is imported. What the user set is kept.
    """
    # Of TensorFlow's C++ log, which announces its build, CUDA's absence and oneDNN: fatal errors.
    # What fails is raised in Python as well.
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Its Python part, and JAX' remark that there might be a GPU.
    for name in ("tensorflow", "absl", "jax._src.xla_bridge"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
    # What its libraries say while they are loaded, on processors that oneDNN is switched on for,
    # does not heed that level.
    if level == "3" and not any(isinstance(f, _QuietTensorFlow) for f in sys.meta_path):
        sys.meta_path.insert(0, _QuietTensorFlow())


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Finds TensorFlow as the other finders do, and drops the log lines of its import."""

    _asking = False

    def find_spec(self, fullname, path, target=None):
        if fullname != "tensorflow" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                with _without_log_lines():
                    execute(module)

            spec.loader.exec_module = exec_module
        return spec


# `I0000 00:00:1795706390.228642   11881 port.cc:153] ...`, and what is said once before those.
_LOG_LINE = re.compile(
    r"[IWE]\d{4} [\d:.]+ +\d+ \S+:\d+\] .*\n?|WARNING: All log messages before absl::.*\n?"
)


@contextlib.contextmanager
def _without_log_lines():
    """Drops the lines of C++ logs that the block writes to standard error; others come after it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if not _LOG_LINE.fullmatch(line)))


def hide_tensorflow() -> None:
    """Keeps Keras from importing TensorFlow where another backend computes.

    Keras does so to recognise TensorFlow's types when it saves a model, wherever TensorFlow is
    installed: seconds and hundreds of megabytes for nothing. Does nothing where TensorFlow is the
    backend or imported already, nor in a program that is no command of this package: it may need
    TensorFlow itself.
    """
    if is_own_command() and chosen() != "tensorflow" and "tensorflow" not in sys.modules:
        # Not by None in `sys.modules`: what is in there Keras asks whether it is building a graph.
        sys.meta_path[:] = [
            one if isinstance(one, _WithoutTensorFlow) else _WithoutTensorFlow(one)
            for one in sys.meta_path
        ]


class _WithoutTensorFlow(importlib.abc.MetaPathFinder):
    """Finds what another finder does, but for TensorFlow."""

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, fullname, path, target=None):
        if fullname == "tensorflow":
            return None
        return self._finder.find_spec(fullname, path, target)

    def __getattr__(self, name):  # what finders have besides, such as `find_distributions`
        if name == "_finder":
            raise AttributeError(name)
        return getattr(self._finder, name)

    def invalidate_caches(self):
        getattr(self._finder, "invalidate_caches", lambda: None)()


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raises a MemoryError where a backend says in its own way that there is not enough memory."""
    try:
        yield
    except Exception as error:
        if re.search(_NO_MEMORY, f"{type(error).__name__} {error}", re.IGNORECASE):
            raise MemoryError(str(error)) from error
        raise
