"""The backends as the stages use them: tensors on the device, calls to be timed, and waiting."""

import functools
import time

import numpy as np

MOST_RUNS = 50  # in a turn
CHAIN = 4  # calls of the operator in one compiled function, each on the output of the one before


def of(context):
    """The `Framework` of a context."""
    return _of(context.backend, context.device)


@functools.cache
def _of(backend, device):
    return {"torch": Torch, "jax": Jax, "tensorflow": TensorFlow}[backend](device)


class Framework:
    """What the backends have in common.

    A call to be timed is made by `forward` or `backward` of a function of tensors `(x, *others)`
    whose output has the shape of `x`. Both return `(run, results, calls)`: `run()` computes
    without waiting for the device, `results()` are the arrays of the first and the last image, and
    `calls` is how many calls of the function a run has: up to `chain`.
    """

    def __init__(self, device):
        self.device = device

    def wall(self, run, repeat):
        """Seconds of one run, when `repeat` of them are computed one after the other."""
        start = time.perf_counter()
        for _ in range(repeat):
            result = run()
        self.wait(result)
        return (time.perf_counter() - start) / repeat

    def seconds(self, run, repeat):
        """The same, without the time in which the device waits for the host where that is known."""
        return self.wall(run, repeat)

    def some(self, tensor):
        """The first and the last image of a tensor, as a float64 array."""
        return self.array(tensor[:: max(1, tensor.shape[0] - 1)])

    def usable(self):
        """Whether the device still computes."""
        try:
            ones = self.tensor(np.ones(3, "float32"), "float32")
            return float(self.array(ones + ones).sum()) == 6
        except Exception:
            return False

    def array(self, tensor):
        """A tensor as a float64 array."""
        import keras

        if keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16"):
            tensor = keras.ops.cast(tensor, "float32")
        return np.asarray(keras.ops.convert_to_numpy(tensor), "float64")

    def tensor(self, array, dtype):
        import keras

        return keras.ops.convert_to_tensor(array, dtype=dtype)


class Torch(Framework):
    def __init__(self, device):
        super().__init__(device)
        import torch

        self.torch = torch

    def forward(self, function, *tensors, chain=CHAIN):
        def run():
            with self.torch.inference_mode():
                return function(*tensors)

        return run, lambda: [self.some(run())], 1

    def backward(self, function, *tensors, chain=CHAIN):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        output = function(*leaves)
        upstream = self.torch.ones_like(output)

        def run():
            return self.torch.autograd.grad(output, leaves, upstream, retain_graph=True)

        return run, lambda: [self.some(g) for g in run()], 1

    def seconds(self, run, repeat):
        if self.device == "cpu":
            return self.wall(run, repeat)
        cuda = self.torch.cuda
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        start = time.perf_counter()
        run()
        host = time.perf_counter() - start
        cuda.synchronize()
        # The device sleeps until the host has enqueued all: what is measured is the device. A cycle
        # takes half a nanosecond or more.
        cuda._sleep(int(min(0.3, 1.5 * repeat * host + 1e-4) * 2e9))
        begin.record()
        for _ in range(repeat):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeat

    def wait(self, result=None):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def peak(self, run):
        """Bytes of one run beyond what was held before it, and whether that is only a bound."""
        cuda = self.torch.cuda
        self.wait()
        before = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return cuda.max_memory_allocated() - before, False


class Jax(Framework):
    def __init__(self, device):
        super().__init__(device)
        import jax

        self.jax = jax

    def forward(self, function, *tensors, chain=CHAIN):
        run = self.jax.jit(functools.partial(_chained, chain, function))
        return (lambda: run(*tensors)), lambda: [self.some(run(*tensors))], chain

    def backward(self, function, *tensors, chain=CHAIN):
        jax = self.jax
        calls = functools.partial(_chained, chain, function)
        output, pull = jax.jit(lambda *tensors: jax.vjp(calls, *tensors))(*tensors)
        upstream = jax.numpy.ones_like(output)
        run = jax.jit(lambda pull, upstream: pull(upstream))
        grads = lambda: [self.some(g) for g in run(pull, upstream)]  # noqa: E731
        return (lambda: run(pull, upstream)), grads, chain

    def wait(self, result=None):
        self.jax.block_until_ready(result)

    def peak(self, run):
        # Nothing sets the maximum back: where this run does not reach a new one, it is a bound.
        device = self.jax.devices()[0]
        before = device.memory_stats()
        self.wait(run())
        after = device.memory_stats()
        reached = after["peak_bytes_in_use"] > before["peak_bytes_in_use"]
        return after["peak_bytes_in_use"] - before["bytes_in_use"], not reached


class TensorFlow(Framework):
    def __init__(self, device):
        super().__init__(device)
        import tensorflow as tf

        self.tf = tf

    def forward(self, function, *tensors, chain=CHAIN):
        run = self.tf.function(
            lambda *tensors: _chained(chain, function, *tensors), autograph=False
        )
        return (lambda: run(*tensors)), lambda: [self.some(run(*tensors))], chain

    def backward(self, function, *tensors, chain=CHAIN):
        # One call: with several, the outputs between them would have to be computed as well.
        def gradients(*tensors):
            with self.tf.GradientTape() as tape:
                tape.watch(tensors)
                output = function(*tensors)
            return tape.gradient(output, tensors)

        run = self.tf.function(gradients, autograph=False)
        return (lambda: run(*tensors)), lambda: [self.some(g) for g in run(*tensors)], 1

    def wait(self, result=None):
        self.tf.test.experimental.sync_devices()

    def peak(self, run):
        memory = self.tf.config.experimental
        self.wait()
        before = memory.get_memory_info("GPU:0")["current"]
        memory.reset_memory_stats("GPU:0")
        run()
        self.wait()
        return memory.get_memory_info("GPU:0")["peak"] - before, False


def _chained(chain, function, x, *others):
    for _ in range(chain):
        x = function(x, *others)
    return x


def measure(sides, rounds, turn=0.02, trying=lambda label: None, failed=None):
    """Seconds of each side's call: medians over rounds in which they take turns.

    Args:
        sides: dict of label to a pair of `seconds(repeat)`, of one run, and of calls in a run.
        rounds: number of rounds.
        turn: seconds that a side's turn takes, about.
        trying: called with the label of the side that runs next.
        failed: called with the label of a side and its exception, which is then left out.
    """
    repeats, found = {}, {label: [] for label in sides}
    for number in range(-1, rounds):
        for label in list(found):
            seconds, calls = sides[label]
            trying(label)
            try:
                if number < 0:
                    seconds(1)  # compiles what is left to be compiled
                    # More launches than a device takes at once would make it wait for the host.
                    repeats[label] = max(1, min(MOST_RUNS, round(turn / max(seconds(2), 1e-7))))
                else:
                    found[label].append(seconds(repeats[label]) / calls)
            except Exception as error:
                if failed is None:
                    raise
                failed(label, error)
                del found[label]
    return {label: float(np.median(values)) for label, values in found.items()}
