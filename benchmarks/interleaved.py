"""Processes that take turns, so that whatever else the machine does hits all of them alike.

Every contender has a process of its own, with Keras' backend of its own, and sleeps while another
one runs. A process obeys one command a line, with one answer each: `Worker(script, side, threads)`
runs `script --worker side`, which calls `serve(actions)`, and

    worker.ask("prepare", batch=8)

is the result of `actions.prepare(batch=8)` there. All processes are bound to the same processors,
as many as they may have threads.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time

import numpy as np

BACKENDS = ("torch", "tensorflow", "jax")
_POOLS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "PJRT_NPROC",  # JAX's CPU client
)
_MEASURED_RUNS = 4


class Worker:
    """A process computing for one side of a comparison.

    Args:
        script: path of the script which calls `serve`.
        side: dict that says what the process is, with at least `backend`; `environment` holds
            environment variables of its own.
        threads: how many threads, and processors, it may use.
        verbose: whether its standard error is shown.
    """

    def __init__(self, script, side, threads, verbose=False):
        environment = {
            # Threads that wait actively would take the time of those who have the turn.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **os.environ,
            **{name: str(threads) for name in _POOLS},
            **side.get("environment", {}),
            "KERAS_BACKEND": side["backend"],
        }
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(side)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            text=True,
            env=environment,
            preexec_fn=lambda: _bind(threads),
        )

    def ask(self, action, **arguments):
        """The result of the action; RuntimeError if the process ended."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([action, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            command = self.process.args[-1]
            raise RuntimeError(
                f"A worker ended; --verbose shows why. Received: {command} {action} {arguments}"
            )
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def _bind(threads):
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


@contextlib.contextmanager
def started(script, sides, threads, verbose=False):
    """Dict of label to `Worker` for a dict of label to side.

    A side may have `threads` of its own in place of `threads`.
    """
    with contextlib.ExitStack() as stack:
        workers = {}
        for label, side in sides.items():
            worker = Worker(script, side, side.get("threads", threads), verbose)
            workers[label] = stack.enter_context(contextlib.closing(worker))
        yield workers


def serve(actions):
    """Obeys the commands on standard input until it ends."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        action, arguments = json.loads(line)
        print(json.dumps(getattr(actions, action)(**arguments)), file=answers, flush=True)


class Contender:
    """The actions every worker has; a subclass prepares what is timed with `use`."""

    call = None
    once = None

    def use(self, call):
        """Takes `call` to be timed; it ran before, so that nothing is left to be compiled."""
        start = time.perf_counter()
        call()
        self.call, self.once = call, time.perf_counter() - start

    def turn(self, seconds):
        """Mean duration of a call, over as many as take about `seconds`, at least one."""
        if self.once < seconds:
            self.call()  # the caches hold another process' data
        repeat = max(1, round(seconds / self.once))
        start = time.perf_counter()
        for _ in range(repeat):
            self.call()
        return (time.perf_counter() - start) / repeat

    def forget(self):
        self.call = None
        gc.collect()


def measure(workers, rounds, seconds):
    """Dict of label to the durations of its calls, one a round: arrays to be divided."""
    durations = {label: [] for label in workers}
    for _ in range(rounds):
        for label, worker in workers.items():
            durations[label].append(worker.ask("turn", seconds=seconds))
    return {label: np.array(values) for label, values in durations.items()}


def differences(results, base, tolerance, what):
    """Dict of label to the largest difference from `results[base]`, over its largest number.

    Args:
        results: dict of label to array.
        base: label of the one that the others are compared with.
        tolerance: what a difference may be; RuntimeError if one is larger.
        what: name of the results in the message.
    """
    expected = results[base]
    found = {
        label: float(np.abs(array - expected).max() / np.abs(expected).max())
        for label, array in results.items()
        if label != base
    }
    if not all(difference <= tolerance for difference in found.values()):
        raise RuntimeError(
            f"{what} must differ from those of {base} by no more than {tolerance} of the largest. "
            f"Received: {found}"
        )
    return found


def speed_up(base, durations):
    """How many times faster than `base`: the median over the rounds."""
    return float(np.median(base / durations))


def milliseconds(durations):
    return 1e3 * float(np.median(durations))


def resident():
    """Megabytes of this process that are in memory now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def peak():
    """Megabytes that were in memory at the highest, since the start or `reset_peak()`."""
    return _status("VmHWM")


def reset_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def add_arguments(parser, rounds, threads=1):
    """The options every script of this kind has."""
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--threads", type=int, default=threads, help="of each process")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each process")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")


def print_circumstances():
    """The command, the machine and the versions, above the tables."""
    versions = ", ".join(
        f"{found.name} {found.version}"
        for found in importlib.metadata.distributions()
        if found.name.partition("_")[0].partition("-")[0] in ("keras", *BACKENDS)
    )
    command = " ".join(["python", *map(shlex.quote, sys.argv)])
    print(f"`{command}`\n\n{_processor()}, {os.cpu_count()} processors; {versions}.")


def _processor():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_row(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_head(title, *cells):
    print(f"\n{title}\n")
    print_row(*cells)
    print_row(*("---" for _ in cells))


def print_times(workers, rounds, seconds, title, remark, remarks):
    """Has the workers take turns; a table of their times next to those of "official".

    Args:
        workers: dict of label to `Worker`, ready for `turn`.
        rounds, seconds: of `measure`.
        title: above the table.
        remark: head of the last column.
        remarks: dict of label to what is in it; nothing for others.
    """
    durations = measure(workers, rounds, seconds)
    print_head(title, "side", "ms", "time over official", remark)
    for label, own in durations.items():
        ratio = 1 / speed_up(durations["official"], own)
        print_row(label, f"{milliseconds(own):.0f}", f"{ratio:.2f}", remarks.get(label, ""))


def print_memory(script, sides, threads, verbose, title):
    """A table of the sides' peaks, each in a fresh process, next to those of the first side."""
    print_head(
        title,
        *("side", "MB over the imports", "over official"),
        *("MB over what was there", "over official"),
    )
    official = None
    for label, side in sides.items():
        with started(script, {label: side}, threads, verbose) as fresh:
            found = fresh[label].ask("memory")
        official = official or found
        cells = []
        for own, other in zip(found, official, strict=True):
            cells += [f"{own:.0f}", f"{own / other:.2f}"]
        print_row(label, *cells)


def peak_memory(contender):
    """Peak of a run over the imports, and over what was there before the run, in MB.

    The least of several runs after the first: where memory is scarce the system takes pages of
    libraries away, and those that come back during a run are none of its own.
    """
    contender.prepare()
    found = []
    for _ in range(_MEASURED_RUNS):
        before = resident()
        reset_peak()
        contender.run()
        highest = peak()
        found.append((highest - contender.imported, highest - before))
    return [min(column) for column in zip(*found, strict=True)]
