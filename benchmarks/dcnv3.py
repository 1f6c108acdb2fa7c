"""Time and memory of `keras_internimage.ops.dcnv3` next to the official formulation.

    python benchmarks/dcnv3.py [--backend torch tensorflow jax] [--batch 1 8] [--threads N]

The official formulation is the CPU path of the official InternImage code, written down again in
a few lines of PyTorch (`official` below): sampling grids in normalised coordinates,
`grid_sample` on images rearranged to channels first, and a masked sum. Both sides get logits and
do the softmax over the points themselves.

Every backend, and the official formulation, lives in a process of its own. The parent lets them
take turns, so that whatever else the machine does hits all of them. Figures are medians over the
rounds of ours / official, below 1 if ours is faster. PyTorch runs eagerly, TensorFlow in a
`tf.function`, JAX in a `jax.jit`. Before anything is timed, outputs and gradients are compared.

Peak memory is the rise of the resident set's high-water mark during one call, in a fresh process
for each figure (Linux only). It leaves out the arguments, and compilation.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

SHAPES = [(56, 64, 4), (28, 128, 8), (14, 256, 16), (7, 512, 32)]  # InternImage-T at 224 pixels
BACKENDS = ("torch", "tensorflow", "jax")
PARTS = ("forward", "training")
POINTS = 9


def arguments(batch, size, channels, groups):
    rng = np.random.default_rng(0)
    last = (channels, groups * POINTS * 2, groups * POINTS)
    return [rng.normal(size=(batch, size, size, c)).astype("float32") for c in last]


def official(inputs, offset, mask, groups):
    """3 x 3 points, stride 1, padding 1, offset_scale 1."""
    import torch
    import torch.nn.functional as F

    n, height, width, channels = inputs.shape
    mask = F.softmax(mask.reshape(n, height, width, groups, POINTS), -1)
    inputs = F.pad(inputs, (0, 0, 1, 1, 1, 1))
    sizes = torch.tensor([width + 2.0, height + 2.0])
    y, x = torch.meshgrid(
        torch.linspace(1.5, height + 0.5, height),
        torch.linspace(1.5, width + 0.5, width),
        indexing="ij",
    )
    reference = (torch.stack((x, y), -1) / sizes).reshape(1, height, width, 1, 2)
    i, j = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij")
    kernel = (torch.stack((i, j), -1) / sizes).reshape(1, POINTS, 2).repeat(groups, 1, 1)
    places = (reference + kernel.reshape(1, 1, 1, -1, 2)).repeat(n, 1, 1, 1, 1).flatten(3, 4)
    places = places + offset / sizes.repeat(groups * POINTS)
    grids = (2 * places - 1).view(n, height * width, groups, POINTS, 2)
    grids = grids.transpose(1, 2).flatten(0, 1)
    images = inputs.view(n, -1, channels).transpose(1, 2)
    images = images.reshape(n * groups, channels // groups, height + 2, width + 2)
    samples = F.grid_sample(
        images, grids, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    mask = mask.view(n, height * width, groups, POINTS).transpose(1, 2)
    mask = mask.reshape(n * groups, 1, height * width, POINTS)
    output = (samples * mask).sum(-1).view(n, channels, height * width)
    return output.transpose(1, 2).reshape(n, height, width, channels).contiguous()


def make(name, part, arrays, groups, warm):
    """A function without arguments that computes `part` once and waits for the result."""
    if name == "official":
        return _torch(official, part, arrays, groups)
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    from keras_internimage.ops import dcnv3

    def ours(*tensors):
        return dcnv3(*tensors[:3], groups=groups, mask_activation="softmax")

    if name == "torch":
        return _torch(lambda *t: ours(*t[:3]), part, arrays, groups)
    return {"tensorflow": _tensorflow, "jax": _jax}[name](ours, part, arrays, warm)


def _torch(function, part, arrays, groups):
    import torch

    tensors = [torch.from_numpy(a) for a in arrays]

    def forward():
        with torch.no_grad():
            return [function(*tensors, groups)]

    def training():
        leaves = [t.detach().requires_grad_() for t in tensors]
        output = function(*leaves, groups)
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    return forward if part == "forward" else training


def _tensorflow(function, part, arrays, warm):
    import tensorflow as tf

    tensors = [tf.constant(a) for a in arrays]

    def training(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = function(*tensors)
        return [output, *tape.gradient(output, tensors)]

    def forward(*tensors):
        return [function(*tensors)]

    run = forward if part == "forward" else training
    if warm:
        run = tf.function(run, autograph=False)
    else:
        # Traced and initialised with one pixel, not with the call that is measured.
        specs = [tf.TensorSpec((None, None, None, a.shape[3])) for a in arrays]
        run = tf.function(run, autograph=False, input_signature=specs)
        run(*(t[:, :1, :1] for t in tensors))
    return lambda: run(*tensors)


def _jax(function, part, arrays, warm):
    import jax

    tensors = [jax.numpy.asarray(a) for a in arrays]

    def training(*tensors):
        output, pull = jax.vjp(function, *tensors)
        return [output, *pull(jax.numpy.ones_like(output))]

    def forward(*tensors):
        return [function(*tensors)]

    run = jax.jit(forward if part == "forward" else training).lower(*tensors).compile()
    return lambda: jax.block_until_ready(run(*tensors))


def worker(name, threads):
    """Obeys the commands on standard input, a JSON object a line, with one answer each."""
    import keras  # noqa: F401  (chooses the backend before anything else is imported)

    if name in ("official", "torch"):
        import torch

        torch.set_num_threads(threads)
    calls = {}
    for line in sys.stdin:
        command = json.loads(line)
        key = tuple(command["shape"]), command["part"]
        shape = command["shape"]
        if command["do"] == "prepare":
            calls[key] = make(name, command["part"], arguments(*shape), shape[-1], True)
            results = [np.asarray(r) for r in calls[key]()]
            np.savez(command["file"], *results)
            answer = None
        elif command["do"] == "time":
            start = time.perf_counter()
            for _ in range(command["repeat"]):
                calls[key]()
            answer = (time.perf_counter() - start) / command["repeat"]
        elif command["do"] == "forget":
            answer = calls.pop(key) and None
        else:
            answer = _peak(make(name, command["part"], arguments(*shape), shape[-1], False), name)
        print(json.dumps(answer), flush=True)


def _peak(call, name):
    """Megabytes by which the peak of the resident set exceeds what it is now."""
    import ctypes
    import gc

    if name in ("official", "torch"):
        small = make(name, "training", arguments(1, 2, 16, 1), 1, False)
        small()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


class Worker:
    """A process computing for one backend, or the official formulation."""

    def __init__(self, name, threads):
        backend = "torch" if name == "official" else name
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "OMP_NUM_THREADS": str(threads),
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "TF_NUM_INTEROP_THREADS": str(threads),
            "PJRT_NPROC": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "--verbose" not in sys.argv else None,
            text=True,
            env=environment,
        )

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A worker ended. Run with --verbose. Received: {command}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(expected, actual, name):
    """Raises if ours and the official formulation do not compute the same."""
    for reference, ours in zip(expected.values(), actual.values(), strict=True):
        # Mean, not maximum: near a pixel's edge their rounding decides about the gradient.
        error = np.abs(reference - ours).mean() / np.abs(reference).mean()
        if not error < 1e-3:
            raise RuntimeError(f"{name} and the official formulation differ: {error:.1e}")


def measure(workers, shape, part, rounds, folder):
    """Medians of the seconds of the official formulation, and of each backend's ratio to it."""
    results = {}
    for name, process in workers.items():
        file = str(folder / f"{name}.npz")
        process.ask(do="prepare", shape=shape, part=part, file=file)
        with np.load(file) as data:
            results[name] = dict(data)
    for name in workers:
        compare(results["official"], results[name], name)
    once = workers["official"].ask(do="time", shape=shape, part=part, repeat=3)
    repeat = max(1, round(0.03 / once))
    seconds = {name: [] for name in workers}
    for _ in range(rounds):
        for name, process in workers.items():
            seconds[name].append(process.ask(do="time", shape=shape, part=part, repeat=repeat))
    for process in workers.values():
        process.ask(do="forget", shape=shape, part=part)
    base = np.array(seconds.pop("official"))
    ratios = {name: float(np.median(np.array(s) / base)) for name, s in seconds.items()}
    return float(np.median(base)), ratios


def peak(name, shape, part, threads):
    process = Worker(name, threads)
    megabytes = process.ask(do="memory", shape=shape, part=part)
    process.close()
    return megabytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-time", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.threads)

    names = ["official", *options.backend]
    cases = [(n, *shape, part) for n in options.batch for shape in SHAPES for part in PARTS]
    columns = "".join(f"{name:>12}" for name in options.backend)
    if not options.skip_time:
        print(f"Time, ours / official, {options.threads} threads, {options.rounds} rounds")
        print(f"{'batch':>5} {'shape':>11} {'':>9} {'official':>10}{columns}")
        workers = {name: Worker(name, options.threads) for name in names}
        with tempfile.TemporaryDirectory() as folder:
            for *shape, part in cases:
                base, ratios = measure(workers, shape, part, options.rounds, pathlib.Path(folder))
                row = "".join(f"{ratios[name]:>12.2f}" for name in options.backend)
                print(f"{_label(shape, part)} {base * 1e3:>7.1f} ms{row}", flush=True)
        for process in workers.values():
            process.close()
    if not options.skip_memory:
        print("Peak memory, MB")
        print(f"{'batch':>5} {'shape':>11} {'':>9} {'official':>10}{columns}")
        for *shape, part in cases:
            peaks = [peak(name, shape, part, options.threads) for name in names]
            row = "".join(f"{value:>12.0f}" for value in peaks[1:])
            print(f"{_label(shape, part)} {peaks[0]:>10.0f}{row}", flush=True)


def _label(shape, part):
    batch, size, channels, groups = shape
    return f"{batch:>5} {f'{size}x{size}x{channels}':>11} {part:>9}"


if __name__ == "__main__":
    main()
