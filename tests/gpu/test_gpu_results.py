"""What is made of the rows: goals, order, files, and the marks of a rehearsal."""

import datetime
import json

import pytest

from benchmarks.gpu import goals, operator_times, results

pytestmark = pytest.mark.any_backend

GPU = {"gpus": [{"name": "NVIDIA H100", "driver": "580"}], "versions": {"torch": "2"}}
GPU |= {"python": "3.12", "commit": "abc"}


def measured(side, shape="64x56x56x64", **fields):
    """A row of the operator's table."""
    row = {"stage": "operator", "backend": "torch", "side": side, "outcome": "measured"}
    row |= {"check": f"forward, float16, {shape}", "dtype": "float16", "pass": "forward"}
    row |= {"shape": shape, "groups": 4, "source": "paper", "gigabytes_per_second": 1.0}
    return {**row, "milliseconds": 1.0, **fields}


def model(side, dtype, speed):
    row = {"stage": "model", "backend": "torch", "outcome": "measured", "pass": "inference"}
    row |= {"check": f"inference, {dtype}", "dtype": dtype, "side": side, "batch": 64}
    return {**row, "milliseconds": 1.0, "images_per_second": speed}


ROWS = [
    measured("native", official_over_this=4.0, this_over_floor=1.5),
    measured("native", "64x7x7x512", official_over_this=2.5, this_over_floor=1.9),
    measured("portable", official_over_this=0.5, this_over_floor=9.0, milliseconds=4.0),
    measured(operator_times.OFFICIAL, milliseconds=4.0),
    measured(operator_times.FLOOR, milliseconds=0.7),
    measured("native", **{"pass": "backward", "official_over_this": 3.0, "check": "b"}),
    model("InternImage-T, native", "float16", 3600.0),
    model("official InternImage-T", "float16", 2000.0),
    model("InternImage-T, native", "float32", 1500.0),
    model("official InternImage-T", "float32", 1000.0),
]


def outcomes(rows, backends=("torch",)):
    return {
        (g["goal"], g["backend"]): (g["outcome"], g["note"]) for g in goals.judge(rows, backends)
    }


def test_a_goal_is_met_at_every_shape_or_missed():
    found = outcomes(ROWS)
    assert found["forward >= 3x official, float16", "torch"] == (
        "missed",
        "native: 1 of 2 shapes; worst 2.50 at 64x7x7x512",
    )
    assert found["forward <= 2x the copy, float16", "torch"] == (
        "met",
        "native: 2 of 2 shapes; worst 1.90 at 64x7x7x512",
    )
    assert found["backward >= 3x official, float16", "torch"][0] == "met"
    assert found["InternImage-T inference >= 1.8x official", "torch"] == (
        "met",
        "native: float16 1.80, float32 1.50",
    )


def test_what_was_not_measured_is_not_judged():
    rows = [r for r in ROWS if r["side"] != "official InternImage-T" and r["pass"] == "forward"]
    found = outcomes(rows, ("torch", "jax"))
    assert found["backward >= 3x official, float16", "torch"][0] == "not measured"
    assert found["forward >= 3x official, float16", "jax"][0] == "not measured"
    assert found["InternImage-T inference >= 1.8x official", "torch"][0] == "not measured"


def test_the_order_is_that_of_the_times_of_what_all_have():
    def row(side, shape, milliseconds):
        return measured(side, shape, backend="jax", milliseconds=milliseconds)

    rows = [row("native", "a", 4.0), row("pallas", "a", 1.0), row("portable", "a", 8.0)]
    rows += [row("native", "b", 1.0), row("pallas", "b", 2.0), row("portable", "b", 8.0)]
    # Not all have this one: it would turn the order around.
    rows += [row("native", "c", 1e-6), row("pallas", "c", 1.0)]
    found = goals.order(rows, "jax")
    assert [name for name, _ in found] == ["pallas", "native", "portable"]
    assert [slower for _, slower in found] == pytest.approx([1.0, 2**0.5, 32**0.5])
    assert goals.implementations(rows, "jax") == ["native", "pallas", "portable"]
    assert goals.order(rows, "torch") == []


def test_results_of_another_run_are_never_overwritten(tmp_path):
    now = datetime.datetime(2026, 1, 2, 3, 4, 5)
    folders = [results.new_folder(tmp_path / "x", "NVIDIA H100 80GB", False, now) for _ in range(3)]
    name = "2026-01-02-030405-NVIDIA-H100-80GB"
    assert [f.name for f in folders] == [name, f"{name}-2", f"{name}-3"]
    assert results.new_folder(tmp_path, "cpu", True, now).name.startswith("rehearsal-")


def test_files_are_whole_or_as_before(tmp_path, monkeypatch):
    results.write(tmp_path, GPU, ROWS, ["torch"], rehearsal=False)
    before = (tmp_path / "results.json").read_text()

    def stop(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        results.write(tmp_path, GPU, [], ["torch"], rehearsal=False)
    assert (tmp_path / "results.json").read_text() == before


def test_files_of_a_gpu(tmp_path):
    failed = {"stage": "correctness", "backend": "torch", "implementation": "native"}
    failed |= {"check": "views", "outcome": "failed", "note": "a | b\nc"}
    stage = {"stage": "model", "backend": "torch", "outcome": "finished", "seconds": 3.25}
    results.write(tmp_path, GPU, [*ROWS, failed, stage], ["torch"], rehearsal=False)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["rows"][: len(ROWS)] == ROWS and content["machine"] == GPU
    assert not content["rehearsal"] and len(content["goals"]) == 4
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# DCNv3 on NVIDIA H100\n")
    assert "| 64x56x56x64 | 4 | paper | torch | native | 1 | 1 | 4 | 1.5 |" in text
    assert "| correctness | torch | native | views | failed | a \\| b c |" in text
    assert "| model | torch | finished | 3.25 |" in text
    assert "ehearsal" not in text


def test_nothing_of_a_rehearsal_can_be_taken_for_a_gpu(tmp_path):
    results.write(tmp_path, GPU, ROWS, ["torch"], rehearsal=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rehearsal.json", "rehearsal.md"]
    content = json.loads((tmp_path / "rehearsal.json").read_text())
    assert content["rehearsal"] and content["goals"] == [] and content["order"] == {}
    for row in content["rows"]:
        assert not set(row) & set(results.FIGURES)
    assert content["rows"][0]["rehearsal_milliseconds"] == 1.0
    lines = (tmp_path / "rehearsal.md").read_text().splitlines()
    assert lines[0] == f"# {results.BANNER}"
    titles = [line for line in lines if line.startswith("#")]
    assert all("ehearsal" in line or "REHEARSAL" in line for line in titles)
    rows = [line for line in lines if line.startswith("|") and "---" not in line]
    bodies = [line for line in rows if not line.startswith("|  |")]
    assert len(bodies) > 5 and all(line.startswith("| rehearsal |") for line in bodies)
