"""The checks find what is wrong: a benchmark that passes all implementations says nothing."""

import keras
import numpy as np
import pytest

from benchmarks.gpu import (
    correctness,
    frameworks,
    model_times,
    operator_calls,
    operator_times,
)

pytestmark = pytest.mark.any_backend
BACKEND = keras.backend.backend()


class Context:
    """Of a rehearsal, which keeps its rows."""

    backend, device, rehearsal, without = BACKEND, "cpu", True, ()

    def __init__(self):
        self.rows = []

    def row(self, **fields):
        self.rows.append(fields)

    def trying(self, side):
        pass


@pytest.fixture
def wrong(monkeypatch):
    """Makes the portable operator wrong: `wrong(function of its output)`."""
    right = operator_calls.operator

    def make(change):
        def operator(name, **options):
            function = right(name, **options)
            return lambda *tensors: change(function(*tensors))

        monkeypatch.setattr(operator_calls, "operator", operator)
        return correctness.Check(Context(), "portable")

    return make


def test_right_results_pass(wrong):
    check = wrong(lambda output: output)
    assert check.values("float32").startswith("largest errors: output")
    check.hostile_offsets("float32")
    check.same_bits()


@pytest.mark.parametrize(
    "change",
    [
        lambda output: output * 1.00002,
        lambda output: keras.ops.roll(output, 1, axis=2),
        lambda output: output + float("nan"),
        lambda output: 2 * output - keras.ops.stop_gradient(output),  # gradients alone
    ],
)
def test_wrong_results_are_found(wrong, change):
    with pytest.raises(AssertionError, match="errors must be up to"):
        wrong(change).values("float32")


def test_wrong_shapes_are_found():
    with pytest.raises(AssertionError, match=r"shapes must be \(2, 3\). Received: \(2, 1\)"):
        correctness.relative_error(np.ones((2, 1)), np.ones((2, 3)))


def test_wrong_results_of_hostile_offsets_are_found(wrong):
    with pytest.raises(AssertionError, match=r"errors must be up to .*Received"):
        wrong(lambda output: output + 1).hostile_offsets("float32")


def test_other_bits_are_found(wrong):
    calls = []

    def change(output):
        calls.append(1)
        return output * (1 + 1e-7 * (len(calls) % 2))

    with pytest.raises(AssertionError, match=r"bits must be the same in each run. Received: .*%"):
        wrong(change).same_bits()


def test_a_failed_check_is_a_row():
    def fail():
        raise AssertionError("errors must be small. Received: large")

    def skip():
        raise correctness.NotHere("only on a GPU")

    context = Context()
    for function in (fail, skip, lambda: "fine"):
        correctness.as_item(context, "native", "x", function).run()
    assert [(r["implementation"], r["outcome"]) for r in context.rows] == [
        ("native", "failed"),
        ("native", "not run"),
        ("native", "passed"),
    ]


def test_implementations_are_those_of_dispatch(monkeypatch):
    from keras_internimage.ops import dispatch

    class Added:
        name, backends = "added", (BACKEND,)

        def why_not(self, request=None):
            assert (request.device, request.dtype) == ("cpu", "float32")
            return "it is for GPUs"

    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", [Added(), dispatch.IMPLEMENTATIONS[-1]])
    context = Context()
    assert operator_calls.running(context) == ["portable"]
    (item,) = operator_calls.not_running(context, "all checks")
    item.run()
    told = {"implementation": "added", "check": "all checks", "outcome": "not run"}
    assert context.rows == [{**told, "note": "it is for GPUs"}]


def test_a_side_that_differs_gets_no_time():
    context = Context()
    case = operator_times.Case(context, (4, 32, 2), 2, "paper", "float32", "forward", "x")
    one, other = [np.ones(4)], [np.full(4, 1.1)]
    sides = dict.fromkeys("abc", None)
    case._drop_wrong(sides, {"a": one, "b": other, "c": one})
    assert list(sides) == ["a", "c"]
    (row,) = context.rows
    assert (row["side"], row["outcome"]) == ("b", "failed")
    assert "results differ from those of a, c, by up to 1.0e-01" in row["note"]
    nan = {"a": one, "b": [np.full(4, np.nan)], "c": one}
    sides = dict.fromkeys("abc", None)
    case._drop_wrong(sides, nan)
    assert list(sides) == ["a", "c"]


def test_what_pytorch_does_on_a_gpu_is_timed_by_events(monkeypatch):
    """The device sleeps until all runs are enqueued, between two events."""
    torch = pytest.importorskip("torch")
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def synchronize(self):
            told.append("end")

        def elapsed_time(self, end):
            return 6.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append(cycles >= 2e5))
    seconds = frameworks.Torch("cuda").seconds(lambda: told.append("run"), 3)
    assert seconds == pytest.approx(2e-3)
    assert told == ["run", "wait", True, "event", "run", "run", "run", "event", "end"]


def test_sides_take_turns_and_one_that_fails_is_left_out():
    turns, errors = [], []

    def side(label, seconds, fails_at=None):
        def run(repeat):
            turns.append(label)
            if turns.count(label) == fails_at:
                raise RuntimeError(label)
            return seconds

        return run, 4

    sides = {"a": side("a", 0.4), "b": side("b", 0.8, fails_at=4), "c": side("c", 8.0)}
    found = frameworks.measure(sides, 3, failed=lambda label, error: errors.append(label))
    assert found == {"a": 0.1, "c": 2.0} and errors == ["b"]
    assert "".join(turns) == "aabbcc" + "abc" + "abc" + "ac"


def test_models_that_are_ready_are_measured_when_time_runs_out(monkeypatch):
    """A side that fails, and those that there is no time for, have a row each."""
    context, left = Context(), iter([100.0, 100.0, 1.0])
    context.left = lambda: next(left)
    models = model_times.Models(context)

    def fail():
        raise RuntimeError("out of memory")

    makers = {"a": lambda: "run a", "b": fail, "c": lambda: "run c", "d": lambda: "run d"}
    monkeypatch.setattr(models, "_sides", lambda kind, dtype: makers)
    monkeypatch.setattr(models, "_prepared", lambda kind, dtype, label, build: (build(), None))
    monkeypatch.setattr(models, "_forget", lambda: None)
    monkeypatch.setattr(models.framework, "wall", lambda run, repeat: 0.5, raising=False)
    models.time("inference", "float16")
    found = {row["side"]: row for row in context.rows}
    outcomes = {side: row["outcome"] for side, row in found.items()}
    assert outcomes == {"a": "measured", "b": "failed", "c": "measured", "d": "not run"}
    assert found["a"]["images_per_second"] == models.batch / 0.5
    assert found["b"]["note"] == "RuntimeError: out of memory"
    assert found["d"]["note"] == "no time left"
