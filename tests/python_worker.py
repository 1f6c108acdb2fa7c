"""Fresh processes with Keras imported for the price of one start: forks of one that waits.

The process that waits has imported Keras and its backend, and done nothing with them: no thread was
started, no device was looked at. What the environment says about threads, devices and kernels is
read later, in the fork. Not for tests of what an import itself does, nor for variables that a
framework reads while it is imported (those of JAX).
"""

import atexit
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import traceback


class Worker:
    """Starts the process that waits; `run` has a fork of it run code."""

    def __init__(self, backend):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            # OpenBLAS starts its threads while NumPy is imported.
            env={**os.environ, "KERAS_BACKEND": backend, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.close)

    def run(self, code, environment):
        """As `subprocess.run([sys.executable, "-c", code], env=environment)` with text output."""
        with tempfile.TemporaryDirectory() as folder:
            outputs = [os.path.join(folder, name) for name in ("out", "err")]
            request = {"code": code, "environment": dict(environment), "outputs": outputs}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if not answer:
                raise RuntimeError(f"The worker has ended: {self._process.wait()}")
            texts = [pathlib.Path(path).read_text() for path in outputs]
        return subprocess.CompletedProcess(code, int(answer), *texts)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def _run(request):
    """In the fork: never returns."""
    status = 1
    try:
        os.setsid()
        for path, descriptor in zip(request["outputs"], (1, 2), strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.argv = ["-c"]
        try:
            exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _wait_for_requests():
    import keras  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    if sys.platform == "linux":
        text = pathlib.Path("/proc/self/status").read_text()
        threads = int(re.search(r"^Threads:\s*(\d+)", text, re.M)[1])
        if threads != 1:
            raise RuntimeError(f"There must be one thread before a fork. Received: {threads}")
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            _run(json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


if __name__ == "__main__":
    _wait_for_requests()
