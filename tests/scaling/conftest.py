"""Programs on several devices or processes: each test starts its own."""

import os
import pathlib
import socket
import subprocess
import sys

import keras
import pytest

BACKEND = keras.config.backend()
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path):
    """Starts `python FILE ARGUMENTS` in a folder of its own, on this backend."""
    started = []

    def _start(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={
                **os.environ,
                "KERAS_BACKEND": BACKEND,
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def run(start):
    """Runs a program to its end, which has to be a good one, and gives what it printed."""

    def _run(*arguments, **environment):
        process = start(*arguments, **environment)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    return _run


@pytest.fixture
def free_port():
    """Finds a port that nobody listens to."""

    def _free_port():
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return str(found.getsockname()[1])

    return _free_port
