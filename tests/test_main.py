"""`python -m keras_internimage`."""

import importlib.metadata
import os
import subprocess
import sys

import keras
import pytest

import keras_internimage
from keras_internimage import __main__ as command
from keras_internimage.ops import dispatch


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "keras_internimage", *arguments],
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_report_of_a_fresh_process():
    result = run()
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    fields = {line.split()[0]: line for line in lines if line}
    assert fields["keras_internimage"].split()[1] == keras_internimage.__version__
    assert fields["Keras"].split()[1] == keras.__version__
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in fields["Python"]
    assert fields[keras.config.backend()].endswith("(the backend in use)")
    assert sum(line.endswith("(the backend in use)") for line in lines) == 1
    assert fields["devices"].split()[1:]
    assert "yes" in fields["portable"]
    assert sum("yes, chosen" in line for line in lines) == 1


def test_versions_come_from_the_installed_distributions(monkeypatch):
    monkeypatch.setitem(command.FRAMEWORKS, "jax", ("no-such-distribution",))
    fields = {line.split()[0]: line for line in command.report() if line}
    assert fields["torch"].split()[1] == importlib.metadata.version("torch")
    assert "not installed" in fields["jax"]


def test_reasons_are_printed_and_columns_align(monkeypatch):
    rows = [
        ("fast", "torch", False, "there is no compiler: install g++"),
        ("slow_but_sure", "tensorflow, jax, torch", True, "always works"),
        ("spare", "jax", True, "works too"),
    ]
    monkeypatch.setattr(dispatch, "table", lambda backend=None, device=None: rows)
    lines = command.report()
    heading = next(line for line in lines if line.startswith("implementation"))
    table = lines[lines.index(heading) :]
    starts = [heading.index(word) for word in ("backends", "runs here", "what it is")]
    assert [row[starts[1] :][:11].strip() for row in table[1:]] == ["no", "yes, chosen", "yes"]
    for row, (name, backends, _, reason) in zip(table[1:], rows, strict=True):
        assert row.startswith(name)
        assert row[starts[0] :].startswith(backends)
        assert row[starts[2] :] == reason


def test_help_and_unknown_arguments():
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    with pytest.raises(SystemExit) as stopped:
        command.main(["--unknown"])
    assert stopped.value.code == 2
