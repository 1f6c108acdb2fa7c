"""Which DCNv3 is the fastest on this machine's JAX device: native kernels, Pallas or XLA's gathers.

    KERAS_BACKEND=jax python benchmarks/jax_devices.py [--implementations native pallas portable]
        [--dtypes float32 bfloat16] [--batch 1 64] [--parts operator model] [--size 224]

For a GPU, on which the order of preference in `ops/dispatch.py` is to be decided; on a processor,
it compares what runs there. The native kernels for CUDA are built first where `nvcc` is:
`python -m keras_internimage.custom_ops build --cuda`.

- operator: forward, and forward with all gradients, at the shapes of InternImage-T's four stages,
  offsets, masks and softmax in one call, as in the layer.
- model: InternImage-T, inference (`jax.jit` of `model.stateless_call`) and training step
  (`train_on_batch` with AdamW, in float32 or mixed_bfloat16).

Implementations take turns in one process; figures are medians over the rounds. A turn enqueues as
many calls as take about 0.3 s and waits once, for the last. Results are compared before: with
those of the portable implementation, up to 1e-4 of the largest number (half types: 2e-2).
"""

import argparse
import os
import time

import interleaved
import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")
STAGES = [(4, 64, 4), (8, 128, 8), (16, 256, 16), (32, 512, 32)]  # stride, channels, groups
PARTS = ("operator", "model")
TURN = 0.3  # seconds
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}


def compared(title, calls, rounds, dtype):
    """Prints one row: the time of each call, and how many times faster than the last it is."""
    import jax

    expected = None
    repeats = {}
    for name in reversed(calls):
        result = [np.asarray(r, "float32") for r in jax.tree.leaves(calls[name]())]
        expected = expected or result
        for found, other in zip(result, expected, strict=True):
            error = np.abs(found - other).max() / np.abs(other).max()
            if not error <= TOLERANCE[dtype]:
                raise RuntimeError(
                    f"{title}: {name} must give what {next(reversed(calls))} gives, up to "
                    f"{TOLERANCE[dtype]}. Received: {error}"
                )
        start = time.perf_counter()
        jax.block_until_ready(calls[name]())
        repeats[name] = max(1, round(TURN / (time.perf_counter() - start)))
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                result = call()
            jax.block_until_ready(result)
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    seconds = {name: np.array(values) for name, values in seconds.items()}
    base = seconds[next(reversed(calls))]
    cells = [
        f"{interleaved.milliseconds(values):.3f} ({interleaved.speed_up(base, values):.2f})"
        for values in seconds.values()
    ]
    medians = {name: np.median(values) for name, values in seconds.items()}
    interleaved.print_row(title, *cells, min(medians, key=medians.get))


def operator_calls(names, stage, batch, dtype, size, gradients):
    import jax

    from keras_internimage.ops import dcnv3

    stride, channels, groups = stage
    side = size // stride
    rng = np.random.default_rng(0)
    shape = (batch, side, side)
    x = jax.numpy.asarray(rng.normal(size=(*shape, channels)), dtype)
    offset_mask = jax.numpy.asarray(rng.normal(size=(*shape, 27 * groups)), dtype)
    upstream = jax.numpy.asarray(rng.normal(size=x.shape), dtype)

    def made(name):
        def forward(x, offset_mask):
            return dcnv3(
                x, offset_mask, groups=groups, mask_activation="softmax", implementation=name
            )

        def both(x, offset_mask):
            output, pull = jax.vjp(forward, x, offset_mask)
            return output, pull(upstream)

        function = jax.jit(both if gradients else forward)
        return lambda: function(x, offset_mask)

    return {name: made(name) for name in names}


def model_calls(names, batch, dtype, size, training):
    import jax
    import keras

    from keras_internimage import InternImageT

    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}[dtype]
    rng = np.random.default_rng(0)
    x = jax.numpy.asarray(rng.normal(size=(batch, size, size, 3)), "float32")
    y = rng.integers(1000, size=batch)

    def made(name):
        keras.utils.set_random_seed(0)
        model = InternImageT(
            weights=None, classifier_activation=None, input_shape=(size, size, 3), dtype=policy,
            implementation=name,
        )  # fmt: skip
        values = np.random.default_rng(1)
        for variable in model.variables:
            if "offset_mask" in variable.path:  # zeros at first, which samples pixels alone
                variable.assign(values.normal(scale=0.02, size=variable.shape))
        if training:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.AdamW(0.0, weight_decay=0.0), loss)
            return lambda: np.float32(model.train_on_batch(x, y))
        state = (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
        )
        run = jax.jit(lambda *arguments: model.stateless_call(*arguments, training=False)[0])
        return lambda: run(*state, x)

    return {name: made(name) for name in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--implementations", nargs="+", help="default: all that run here")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if os.environ["KERAS_BACKEND"] != "jax":
        parser.error(f"KERAS_BACKEND must be jax. Received: {os.environ['KERAS_BACKEND']}")
    import jax

    from keras_internimage.ops import dispatch

    interleaved.print_circumstances()
    print(f"\nDevice: {jax.devices()[0].device_kind}.")
    running = []
    for name, _, runs, reason in dispatch.table():
        wanted = options.implementations is None or name in options.implementations
        if runs and wanted:
            running.append(name)
        else:
            print(f"{name}: {'not asked for' if runs else reason}")
    for part in options.parts:
        for dtype in options.dtypes:
            interleaved.print_head(
                f"{part.capitalize()}, {dtype}: ms (times faster than {running[-1]})",
                *("what", *running, "fastest"),
            )
            for batch in options.batch:
                for again, what in enumerate(("forward", "forward and gradients")):
                    if part == "operator":
                        for stage in STAGES:
                            calls = operator_calls(
                                running, stage, batch, dtype, options.size, gradients=again
                            )
                            title = f"{what}, stride {stage[0]}, batch {batch}"
                            compared(title, calls, options.rounds, dtype)
                    else:
                        title = ("inference", "training step")[again] + f", batch {batch}"
                        calls = model_calls(running, batch, dtype, options.size, training=again)
                        compared(title, calls, options.rounds, dtype)


if __name__ == "__main__":
    main()
