"""What this machine has: GPUs, frameworks that compute on them, compilers. And the kernels' build.

Frameworks are asked in processes of their own, all at once: one that hangs or crashes while it is
imported takes nothing with it.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time

from benchmarks.gpu import BACKENDS, ROOT
from benchmarks.gpu.stages import environment, kill

PROBE_SECONDS, BUILD_SECONDS = 90, 150
# What the package itself imports, by the distributions that have it.
NEEDED = {"keras": "keras", "numpy": "numpy", "h5py": "h5py", "ml_dtypes": "ml_dtypes"}
NEEDED |= {"PIL": "pillow", "filelock": "filelock"}
REPORTED = ("keras", "torch", "triton", "jax", "jaxlib", "tensorflow", "numpy")


def missing():
    """Distributions that must be installed first."""
    return [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]


def describe():
    """Versions, processor, driver's table of GPUs, compilers: a dict for the results."""
    from benchmarks.gpu import driver

    versions = {}
    for name in REPORTED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "versions": versions,
        "gpus": _gpus(),
        "nvcc": driver.nvcc_path(),
        "nvrtc": driver.nvrtc_paths(),
        "compiler": os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++"),
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
    }


def _gpus():
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    text = _output(["nvidia-smi", query, "--format=csv,noheader"])
    names = ("name", "driver", "memory", "capability")
    lines = (text or "").splitlines()
    return [dict(zip(names, map(str.strip, line.split(",")), strict=False)) for line in lines]


def _output(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# ---- frameworks ----


def installed(backend):
    """Whether there is a package of that name; it is not imported."""
    return importlib.util.find_spec(backend) is not None


def probe(backends, rehearsal, seconds=PROBE_SECONDS):
    """Dict of each backend to `{"device": ..., "version": ...}`, or `{"reason": why it is out}`."""
    found, running = {}, {}
    for backend in backends:
        if not installed(backend):
            found[backend] = {"reason": "not installed"}
            continue
        command = [sys.executable, "-m", "benchmarks.gpu.machine", backend]
        command += ["--rehearsal"] if rehearsal else []
        running[backend] = _started(command, backend, subprocess.PIPE)
    end = time.monotonic() + seconds
    for backend, process in running.items():
        found[backend] = _answer(process, end - time.monotonic(), seconds)
    return {backend: found[backend] for backend in backends}


def _started(command, backend, errors):
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(backend),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _answer(process, seconds, limit):
    try:
        output, errors = process.communicate(timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        kill(process)
        return {"reason": f"could not be asked for its devices within {limit} s"}
    with contextlib.suppress(ValueError, IndexError):
        return json.loads(output.strip().splitlines()[-1])
    lines = errors.strip().splitlines()
    return {"reason": f"cannot be imported: {lines[-1] if lines else process.returncode}"}


def _devices(backend):
    """What a framework says itself: its first GPU, or why it has none."""
    if backend == "torch":
        import torch

        if not torch.cuda.is_available():
            built = (
                f"built for CUDA {torch.version.cuda}"
                if torch.version.cuda
                else "built without CUDA"
            )
            return {"reason": f"PyTorch {torch.__version__} sees no GPU ({built})"}
        major, minor = torch.cuda.get_device_capability()
        device = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
        return {"device": device, "version": torch.__version__, "cuda": torch.version.cuda}
    if backend == "jax":
        import jax

        devices = [d for d in jax.devices() if d.platform == "gpu"]
        if not devices:
            return {"reason": f"JAX {jax.__version__} sees no GPU, but {jax.default_backend()}"}
        return {"device": devices[0].device_kind, "version": jax.__version__}
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        built = "with" if tf.test.is_built_with_cuda() else "without"
        return {"reason": f"TensorFlow {tf.__version__} sees no GPU (built {built} CUDA)"}
    details = tf.config.experimental.get_device_details(devices[0])
    return {"device": details.get("device_name", devices[0].name), "version": tf.__version__}


# ---- the kernels ----


def build(backends, rehearsal, seconds=BUILD_SECONDS):
    """Builds the native kernels with CUDA for the backends; in a rehearsal, asks for their state.

    Returns a row. Where that fails, the other implementations are measured all the same.
    """
    command = [sys.executable, "-m", "custom_ops"]
    if rehearsal:
        command += ["status"]
    else:
        command += ["build", "--cuda", "--backend", backends[0] if len(backends) == 1 else "all"]
    start = time.monotonic()
    process = _started(command, backends[0], subprocess.STDOUT)
    try:
        note = process.communicate(timeout=seconds)[0].strip()
        outcome = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        outcome, note = "hung", f"killed after {seconds:g} s"
    finally:
        kill(process)  # and the compilers that it started
    return {
        "stage": "build",
        "check": " ".join(["python", *command[1:]]),
        "outcome": outcome,
        "note": note[-2000:],
        "seconds": round(time.monotonic() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description="Prints what a framework says of its devices.")
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("--rehearsal", action="store_true")
    options = parser.parse_args()
    if options.rehearsal:
        version = importlib.metadata.version(_distribution(options.backend))
        answer = {"device": "this processor (rehearsal)", "version": version}
    else:
        answer = _devices(options.backend)
        if "device" in answer:
            import keras_internimage  # noqa: F401  (what it needs may be missing, too)
    print(json.dumps(answer), flush=True)
    os._exit(0)


def _distribution(backend):
    names = importlib.metadata.packages_distributions().get(backend, [backend])
    return names[0]


if __name__ == "__main__":
    main()
