"""Keras' backend: it has to be chosen before Keras is imported."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

BACKENDS = ("tensorflow", "jax", "torch")
VARIABLE = "KERAS_BACKEND"


def take_installed():
    """Chooses a backend that is installed, where Keras would take one that is not.

    Keras takes TensorFlow where nothing is said, and `import keras` fails without it. Who installed
    JAX or PyTorch alone has said enough. Does nothing where `KERAS_BACKEND` is set, or Keras is
    imported already.
    """
    if "keras" in sys.modules or os.environ.get(VARIABLE):
        return
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    try:
        chosen = json.loads(pathlib.Path(home, "keras.json").read_text("utf-8")).get("backend")
    except (OSError, ValueError):
        chosen = None
    if importlib.util.find_spec(chosen or BACKENDS[0]) is not None:
        return
    for other in BACKENDS:
        if importlib.util.find_spec(other) is not None:
            os.environ[VARIABLE] = other
            return


def use(backend, argv=None):
    """Has the command run on `backend`: starts it anew where Keras runs on another one already.

    Importing this package imports Keras, and with it the backend, before a command can read its
    options. So the process is replaced by the same command with `KERAS_BACKEND` set.

    Args:
        backend: `"tensorflow"`, `"jax"`, `"torch"`, or None for whatever runs.
        argv: the arguments that `main` was called with, None for the process' own. Only the
            latter can be started anew.

    Raises:
        ValueError: the backend is not installed, or `main` was called by another program.
    """
    import keras

    current = keras.config.backend()
    if backend is None or backend == current:
        return
    if importlib.util.find_spec(backend) is None:
        raise ValueError(
            f"The package {backend} must be installed for --backend {backend}: "
            f'pip install "keras-internimage[{backend}]"'
        )
    if argv is not None or os.environ.get(VARIABLE) == backend:
        raise ValueError(
            f"--backend must be the one that Keras runs on, {current} (the variable {VARIABLE} "
            f"chooses it). Received: --backend {backend}"
        )
    command = [sys.executable, *sys.orig_argv[1:]]
    environment = {**os.environ, VARIABLE: backend}
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execve(sys.executable, command, environment)
    # Elsewhere exec returns to the shell at once.
    sys.exit(subprocess.run(command, env=environment).returncode)
