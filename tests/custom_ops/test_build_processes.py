"""Several processes build at once, or are killed half-way."""

import os
import signal
import time

import pytest
from kernel_builds import COMPILER, PRELUDE, TIMEOUT, Copy

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed"),
]

BUILD = PRELUDE + "print(build.find_or_build('jax'))"
PROCESSES = 8


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path).install("jax")


def together(copy, code):
    """Exit status, output and errors of some processes that start at the same time."""
    gate = copy.folder / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    processes = [copy.start("-c", PRELUDE + wait + code) for _ in range(PROCESSES)]
    time.sleep(0.5)
    gate.write_text("")
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def until(condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def unfinished(copy):
    return [name for name in copy.built() if name.startswith(".")]


def test_eight_processes_build_once(copy):
    results = together(copy, BUILD)
    assert [status for status, _, _ in results] == [0] * PROCESSES, results
    (path,) = {out.strip() for _, out, _ in results}
    # One process says what it does, the others nothing.
    lines = [err.splitlines() for _, _, err in results]
    assert sorted(map(len, lines)) == [0] * (PROCESSES - 1) + [2]
    copy.answer(path)
    made = [call.split(" -o ")[1].split()[0] for call in copy.calls()]
    assert len(made) == len(set(made)) and sum("libdcnv3_core" in name for name in made) == 1
    assert not unfinished(copy)


def test_eight_processes_meet_one_failure(copy):
    copy.write("jax/dcnv3_jax.cc", "#error broken binding\n")
    results = together(copy, BUILD)
    assert all(status == 1 and "broken binding" in err for status, _, err in results)
    assert sum("broken binding" in err and "remembered" in err for _, _, err in results) == 7
    assert sum("dcnv3_jax.cc" in call for call in copy.calls()) == 1


def test_threads_of_one_process_build_once(copy):
    code = (
        "from concurrent.futures import ThreadPoolExecutor as Pool\n"
        "with Pool(4) as pool: print(set(pool.map(build.find_or_build, ['jax'] * 4)))"
    )
    status, _, err = copy.run("-c", PRELUDE + code)
    assert status == 0 and err.count("building") == 1, err
    assert sum("dcnv3_jax.cc" in call for call in copy.calls()) == 1


# While it compiles, while it links the core, and with the core done the binding.
@pytest.mark.parametrize(
    "stage, there",
    [("-c ", []), ("-soname,libdcnv3_core", []), ("-soname,dcnv3_jax", ["libdcnv3_core.so"])],
)
def test_a_build_that_is_killed_leaves_nothing_broken(copy, stage, there):
    with copy.start("-c", BUILD, HANG=stage) as process:
        until(copy.hanging.exists)
        os.killpg(process.pid, signal.SIGKILL)
    assert [name for name in copy.built() if name not in unfinished(copy)] == there
    assert unfinished(copy)
    assert copy.evaluate("build.find('jax')") == "None"
    copy.answer(copy.evaluate("build.find_or_build('jax')"))
    assert not unfinished(copy)


def test_a_compiler_that_outlives_its_build_holds_no_lock(copy):
    with copy.start("-c", BUILD, HANG="-c ") as process:
        until(copy.hanging.exists)
        try:
            os.kill(process.pid, signal.SIGKILL)
            started = time.monotonic()
            copy.answer(copy.evaluate("build.find_or_build('jax')"))
            assert time.monotonic() - started < 20  # the compiler sleeps for 30 seconds
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_killed_build_of_other_sources_is_cleaned_too(copy):
    with copy.start("-c", BUILD, HANG="-c ") as process:
        until(copy.hanging.exists)
        os.killpg(process.pid, signal.SIGKILL)
    copy.write("core/new.inl", "// other sources\n")
    copy.evaluate("build.find_or_build('jax')")
    assert not unfinished(copy)


def test_a_forked_child_holds_no_lock(copy):
    """A process may be forked while one of its threads builds."""
    code = (
        "import os, time\n"
        "with cache.locked(print):\n"
        "    child = os.fork()\n"
        "    if not child: time.sleep(30); os._exit(0)\n"
        "print(child, flush=True)\n"
        "os._exit(0)\n"
    )
    with copy.start("-c", PRELUDE + code) as process:
        assert process.stdout.readline().strip().isdigit()
        try:
            started = time.monotonic()
            copy.evaluate("build.find_or_build('jax')")
            assert time.monotonic() - started < 20
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_who_waits_long_says_so_once(copy):
    # The other one builds for as long as nobody ends it.
    with copy.start("-c", BUILD, HANG="-c ") as other:
        until(copy.hanging.exists)
        quick = PRELUDE + "cache.SECONDS_OF_SILENCE = 0.2\nprint(build.find_or_build('jax'))"
        with copy.start("-c", quick) as waiting:
            first = waiting.stderr.readline()
            time.sleep(0.5)
            os.killpg(other.pid, signal.SIGKILL)
            out, err = waiting.communicate(timeout=TIMEOUT)
    assert first.startswith("keras_internimage: waiting for another process") and first[-1] == "\n"
    assert waiting.returncode == 0 and "waiting" not in err and "building" in err
    assert copy.answer(out.strip())
