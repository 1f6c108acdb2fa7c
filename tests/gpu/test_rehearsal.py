"""`make gpu` from its start to its end, on the processor."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest

from benchmarks.gpu import ROOT, __main__, machine, results

pytestmark = pytest.mark.any_backend

ONLY_ON_A_GPU = {"on another stream", "CUDA graph", "more than 2**31 numbers"}


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or shutil.which("g++") is None,
    reason="PyTorch is rehearsed, and g++ compiles the official kernels",
)
def test_every_stage_is_rehearsed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["log.txt", "rehearsal.json", "rehearsal.md"]
    content = json.loads((folder / "rehearsal.json").read_text())
    assert_all_ran(content["rows"])
    assert_all_sides(content["rows"])
    # It is marked as what it is.
    assert done.stdout.startswith(results.BANNER)
    assert done.stdout.splitlines()[-2] == results.BANNER
    assert " ms" not in done.stdout
    assert content["rehearsal"] and not content["goals"]


def assert_all_ran(rows):
    stages = {r["stage"]: r["outcome"] for r in rows if "limit" in r}
    assert stages == {"correctness": "finished", "operator": "finished", "model": "finished"}
    assert {r["stage"] for r in rows} == {"build", *stages}
    left_out = {r["check"] for r in rows if r["outcome"] == "not run"}
    assert left_out <= ONLY_ON_A_GPU | {"all checks", "all times", "the model", "RoIAlign"}
    passed = {(r.get("implementation"), r["check"]) for r in rows if r["outcome"] == "passed"}
    assert ("portable", "RoIAlign, float16") in passed


def assert_all_sides(rows):
    """Each pass of the operator and of the model was timed on all sides."""
    found = {}
    for row in rows:
        if row["outcome"] == "measured":
            found.setdefault((row["stage"], row["check"]), set()).add(row["side"])
    operators = [sides for (stage, _), sides in found.items() if stage == "operator"]
    assert len(operators) == 8
    for sides in operators:
        assert {"portable", "grid_sample", "official kernel", "copy of the bytes"} <= sides
    models = {check: sides for (stage, check), sides in found.items() if stage == "model"}
    half, full = ("inference, float16", "training, mixed_float16"), ("inference", "training")
    assert list(models) == [*half, *(f"{kind}, float32" for kind in full)]
    for sides in models.values():
        assert {"official InternImage-T", "ConvNeXt-Tiny"} <= sides
    logits = [r for r in rows if str(r.get("check")).startswith("logits")]
    assert logits and all(r["outcome"] == "passed" for r in logits)


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    reason = {"reason": "PyTorch 2.13.0 sees no GPU (built without CUDA)"}
    monkeypatch.setattr(
        machine, "probe", lambda backends, rehearsal: dict.fromkeys(backends, reason)
    )
    assert __main__.main(["--output", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"torch       left out: {reason['reason']}" in printed.out
    assert "No framework here computes on a GPU." in printed.err
    (folder,) = tmp_path.iterdir()
    content = json.loads((folder / "results.json").read_text())
    assert [r["outcome"] for r in content["rows"]] == ["not run"] * 3


def test_what_must_be_installed_first_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(machine.NEEDED, "no_such_module", "no-such-package")
    assert __main__.main(["--output", str(tmp_path)]) == 2
    assert "pip install no-such-package" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_build_that_fails_or_hangs_is_a_row(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nif [ $6 = all ]; then sleep 100; fi; echo no nvcc; exit 1")
    program.chmod(0o700)
    monkeypatch.setattr(machine.sys, "executable", str(program))
    row = machine.build(["torch"], rehearsal=False)
    assert (row["outcome"], row["note"]) == ("failed", "no nvcc")
    assert row["check"] == "python -m custom_ops build --cuda --backend torch"
    row = machine.build(["torch", "jax"], rehearsal=False, seconds=0.5)
    assert (row["outcome"], row["note"]) == ("hung", "killed after 0.5 s")


def test_make_gpu(tmp_path):
    """The command of the Makefile, with arguments and the user's own path."""
    make = ["make", "--no-print-directory", "-n", "gpu", "OPTIONS=--dry-run"]
    text = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m benchmarks.gpu --dry-run" in text
    assert 'PYTHONPATH="' + str(ROOT) + '${PYTHONPATH:+:$PYTHONPATH}"' in text
