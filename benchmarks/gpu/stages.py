"""Stages, each in processes of its own: time limits, and what is left when one hangs or crashes.

A stage is a list of items, which its process goes through one after the other. What an item found
is on disk before the next one begins. When a process crashes, hangs in an item or loses its GPU,
that is the item's result, and a new process takes the items behind it. Where the item compares
sides, and says which one it tries, the new process takes it again, without that side.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks.gpu import ROOT

LOST_DEVICE = 3  # exit status of a process whose GPU does not answer any more
RESTARTS = 4  # of one stage
GRACE = 10.0  # seconds that a killed process may take to end, and a finished one over its time
_POLL = 0.05


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage on one backend.

    Attributes:
        name: for tables.
        module: has `items(context)`, a list of `worker.Item`.
        backend: Keras' backend of the process.
        share: of the time that is left, beside the shares of the stages behind it.
        item_seconds: an item, or one of the sides that it tries, hangs if it takes longer.
        environment: variables of the process.
    """

    name: str
    module: str
    backend: str
    share: float
    item_seconds: float = 90.0
    environment: dict = dataclasses.field(default_factory=dict)


def plan(backends):
    """All stages in their order: what is most needed comes first on every backend."""
    deterministic = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    table = [
        *(Stage("correctness", "benchmarks.gpu.correctness", b, 4) for b in backends),
        # For a whole process; PyTorch's mode can be switched, and is in the stage before.
        *(
            Stage("determinism", "benchmarks.gpu.determinism", b, 1.5, 60.0, deterministic)
            for b in backends
            if b != "torch"
        ),
        *(Stage("operator", "benchmarks.gpu.operator_times", b, 5) for b in backends),
        *(Stage("model", "benchmarks.gpu.model_times", b, 6, 150.0) for b in backends),
    ]
    return table


def limits(stages, seconds):
    """Yields each stage with its share of the time left; what a stage leaves over, others get.

    `seconds` are for all of them, from now on.
    """
    end = time.monotonic() + seconds
    for i, stage in enumerate(stages):
        left = max(0.0, end - time.monotonic())
        yield stage, left * stage.share / sum(s.share for s in stages[i:])


class Runner:
    """Runs stages.

    Args:
        log: path of a file that gets what the processes print.
        report: called with each row, a dict, as soon as it is known.
        rehearsal: whether the processes compute on the CPU, with tiny sizes.
    """

    def __init__(self, log, report, rehearsal=False):
        self.log, self.report, self.rehearsal = pathlib.Path(log), report, rehearsal

    def run(self, stage, seconds):
        """Runs a stage for up to `seconds`; returns its outcome, a row as well."""
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="keras-internimage-gpu-") as folder:
            outcome, note = self._processes(stage, start + seconds, pathlib.Path(folder))
        row = {
            "stage": stage.name,
            "backend": stage.backend,
            "outcome": outcome,
            "note": note,
            "seconds": round(time.monotonic() - start, 1),
            "limit": round(seconds, 1),
        }
        self.report(row)
        return row

    def _processes(self, stage, end, folder):
        troubles, first, number, without = [], 0, 0, []
        while True:
            number += 1
            rows = _Rows(folder / f"{number}.jsonl", self.report, stage)
            process = self._start(stage, first, without, end - time.monotonic(), rows.path)
            try:
                trouble = _watch(process, rows, stage, end)
            finally:
                kill(process)
            rows.read()
            if rows.complete:
                break
            if trouble is None:
                note = _ended(process.returncode)
                note += "" if process.returncode == LOST_DEVICE else self._last_line()
                trouble = ("crashed", note)
            outcome, note = trouble
            if rows.item is None:  # nothing began, and nothing would
                return outcome, f"{note}, before the first item"
            troubles.append(f"{rows.fields['check']}: {note}")
            row = {"stage": stage.name, "backend": stage.backend, **rows.fields}
            first = rows.item + 1
            if rows.side is not None:
                # The other sides of the item are taken again, without this one.
                row["side"] = rows.side
                without.append(rows.side)
                first = rows.item
            self.report({**row, "outcome": outcome, "note": note})
            if end - time.monotonic() < 1 or len(troubles) > RESTARTS:
                return "broken off", "; ".join(troubles)
        if rows.left_out:
            troubles.append(f"no time for {rows.left_out} items")
        return ("finished with trouble" if troubles else "finished"), "; ".join(troubles)

    def _start(self, stage, first, without, seconds, path):
        command = [
            *(sys.executable, "-m", "benchmarks.gpu.worker", stage.module),
            *("--backend", stage.backend, "--first", str(first)),
            *("--seconds", f"{max(seconds, 0):.1f}", "--rows", str(path)),
            *(["--rehearsal"] if self.rehearsal else []),
            *(["--without", *without] if without else []),
        ]
        with open(self.log, "ab") as log:
            log.write(f"== {stage.name} on {stage.backend}, from item {first}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(stage.backend, stage.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _last_line(self):
        lines = self.log.read_text(errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else ""
        return "" if last.startswith("== ") else f" ({last[:300]})"


def environment(backend, changes=None):
    """Of a process for one backend: the checkout comes first, and memory is taken when needed."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        **(changes or {}),
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


class _Rows:
    """What a process writes: a JSON object a line."""

    def __init__(self, path, report, stage):
        self.path, self._report, self._stage = path, report, stage
        self._place, self.item, self.fields, self.side, self.since = 0, None, None, None, None
        self.complete, self.left_out = False, 0

    def read(self):
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._place)
            lines = file.read()
        # The last line may be half written.
        lines = lines[: lines.rfind(b"\n") + 1]
        self._place += len(lines)
        for line in lines.splitlines():
            row = json.loads(line)
            if "begin" in row:
                self.item, self.fields, self.side = row.pop("begin"), row, None
                self.since = time.monotonic()
            elif "trying" in row:
                self.side, self.since = row["trying"], time.monotonic()
            elif "complete" in row:
                self.complete, self.left_out = True, row["complete"]
            else:
                self._report({"stage": self._stage.name, "backend": self._stage.backend, **row})


def _watch(process, rows, stage, end):
    """Waits for the process; returns None where it ended by itself, else the outcome of its item,
    which is why it is to be killed, and a note."""
    while process.poll() is None:
        time.sleep(_POLL)
        rows.read()
        if rows.complete:
            # What it has to say is said: it gets some time to end, and no more.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        now = time.monotonic()
        if rows.since is not None and now - rows.since > stage.item_seconds:
            return "hung", f"killed after {stage.item_seconds:g} s"
        if now > end + min(GRACE, stage.item_seconds):
            return "cut off", "killed at the stage's time limit"
    return None


def _ended(status):
    if status == LOST_DEVICE:
        return "ended, for the GPU did not answer any more"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def kill(process):
    """Ends the process and all that it started; a GPU may keep it from ending, which is waited for
    only so long."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
