"""Stages that hang, crash or run out of time: what is left, and what the others get."""

import os
import time

import pytest

from benchmarks.gpu import machine, stages, worker

pytestmark = pytest.mark.any_backend


def run(tmp_path, *items, seconds=20.0, item_seconds=10.0):
    """Outcome of a stage with these items, and its rows."""
    rows = []
    runner = stages.Runner(tmp_path / "log.txt", rows.append, rehearsal=True)
    environment = {"PRETENDED_ITEMS": ",".join(items)}
    stage = stages.Stage("pretended", "pretended_stages", "torch", 1, item_seconds, environment)
    outcome = runner.run(stage, seconds)
    assert rows.pop() is outcome
    return outcome, [(row["check"], row["outcome"]) for row in rows], rows


def test_a_stage_that_finishes(tmp_path):
    outcome, found, rows = run(tmp_path, "good", "good")
    assert (outcome["outcome"], outcome["note"]) == ("finished", "")
    assert found == [("good", "passed")] * 2
    assert (rows[0]["stage"], rows[0]["backend"]) == ("pretended", "torch")
    assert 0 < outcome["seconds"] < outcome["limit"] == 20


@pytest.mark.parametrize(
    ("deed", "result", "note"),
    [
        ("abort", "crashed", "ended by SIGSEGV"),
        ("exit", "crashed", "ended with status 7"),
        ("lose the device", "crashed", "the GPU did not answer any more"),
        ("hang", "hung", "killed after 1 s"),
    ],
)
def test_an_item_that_ends_its_process_takes_nothing_with_it(tmp_path, deed, result, note):
    outcome, found, rows = run(tmp_path, "good", deed, "good", item_seconds=1.0)
    assert found == [("good", "passed"), (deed, result), ("good", "passed")]
    assert note in rows[1]["note"] and rows[1]["side"] == "pretended"
    assert outcome["outcome"] == "finished with trouble" and note in outcome["note"]


def test_a_side_that_ends_the_process_is_left_out_and_the_others_are_not(tmp_path):
    outcome, _, rows = run(tmp_path, "sides", "sides")
    assert [(row["side"], row["outcome"]) for row in rows] == [
        ("good", "measured"),
        ("bad", "crashed"),
        *[("good", "measured"), ("better", "measured")] * 2,
    ]
    assert outcome["note"] == "sides: ended with status 7"


def test_a_stage_ends_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE", 0.2)
    start = time.monotonic()
    outcome, found, _ = run(tmp_path, "good", "hang", "good", seconds=1.5)
    assert time.monotonic() - start < 8
    assert outcome["outcome"] == "broken off"
    assert found == [("good", "passed"), ("hang", "cut off")]


def test_what_there_is_no_time_for_is_told(tmp_path):
    outcome, found, _ = run(tmp_path, "slow", "slow", "good", seconds=0.1)
    assert found[-2:] == [("slow", "not run"), ("good", "not run")]
    assert outcome["outcome"] == "finished with trouble" and "no time for" in outcome["note"]


def test_a_stage_that_crashes_again_and_again_is_broken_off(tmp_path):
    outcome, found, _ = run(tmp_path, *["exit"] * (stages.RESTARTS + 3))
    assert outcome["outcome"] == "broken off"
    assert found == [("exit", "crashed")] * (stages.RESTARTS + 1)


def test_a_stage_that_cannot_begin(tmp_path):
    outcome, found, _ = run(tmp_path, "no items")
    assert outcome["outcome"] == "crashed" and not found
    assert "This stage has none." in outcome["note"]


def test_children_end_with_their_process(tmp_path):
    _, _, rows = run(tmp_path, "leave a child", "hang", item_seconds=1.0)
    child = int(rows[0]["note"])
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    break  # dead, and nobody here is its parent
        except FileNotFoundError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a child outlived its stage")


def test_shares_of_the_time(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock[0])
    shares = {"a": 1, "b": 1, "c": 2}
    plan = [stages.Stage(name, "", "torch", share) for name, share in shares.items()]
    found = []
    for stage, seconds in stages.limits(plan, 400):
        found.append(seconds)
        # The first takes a tenth of its time, the second more than it has.
        clock[0] += {"a": 10, "b": 150, "c": 0}[stage.name]
    assert found == [100, 130, 240]


def test_what_is_needed_most_comes_first():
    plan = stages.plan(["torch", "jax"])
    assert [(s.name, s.backend) for s in plan] == [
        ("correctness", "torch"),
        ("correctness", "jax"),
        ("determinism", "jax"),
        ("operator", "torch"),
        ("operator", "jax"),
        ("model", "torch"),
        ("model", "jax"),
    ]


def test_processes_keep_the_users_path_behind_the_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/carried")
    found = stages.environment("jax", {"XLA_FLAGS": "x"})
    assert found["PYTHONPATH"] == f"{stages.ROOT}{os.pathsep}/carried"
    assert (found["KERAS_BACKEND"], found["XLA_FLAGS"]) == ("jax", "x")


class Rows:
    """A context that keeps its rows."""

    def __init__(self, left=100.0):
        self.rows, self.left = [], lambda: left

    def row(self, **fields):
        self.rows.append(fields)


def test_exceptions_are_results():
    context = Rows()

    def fail():
        raise ValueError("a must be b.\nReceived: c")

    items = [worker.Item("x", fail, {"implementation": "native"}), worker.Item("y", lambda: None)]
    assert worker.go_through(context, items, 0, lambda: True) == 0
    note = "ValueError: a must be b. Received: c"
    told = {"check": "x", "implementation": "native"}
    assert context.rows[1] == {**told, "outcome": "failed", "note": note}
    assert context.rows[-2:] == [{"begin": 1, "check": "y"}, {"complete": 0}]


def test_a_process_whose_device_is_lost_ends():
    def fail():
        raise RuntimeError("illegal memory access")

    context = Rows()
    items = [worker.Item("x", fail), worker.Item("y", fail)]
    assert worker.go_through(context, items, 0, lambda: False) == stages.LOST_DEVICE
    assert [row.get("check") for row in context.rows] == ["x", "x"]


def test_a_missing_framework_is_left_out(monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda backend: False)
    assert machine.probe(["jax"], rehearsal=False) == {"jax": {"reason": "not installed"}}


def test_a_framework_that_hangs_or_cannot_be_imported_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart is broken')")
    (tmp_path / "jax.py").write_text("import time; time.sleep(1000)")
    monkeypatch.setattr(machine, "installed", lambda backend: True)

    def environment(backend):
        return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{stages.ROOT}"}

    monkeypatch.setattr(machine, "environment", environment)
    found = machine.probe(["torch", "jax"], rehearsal=False, seconds=3)
    assert found["torch"]["reason"] == "cannot be imported: ImportError: libcudart is broken"
    assert found["jax"]["reason"] == "could not be asked for its devices within 3 s"
