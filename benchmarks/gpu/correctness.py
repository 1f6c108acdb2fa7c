"""Stage: every implementation of DCNv3 and of RoIAlign on the device, against oracles in float64.

An item is one check of one implementation; what each framework has of its own is in
`torch_checks`, and RoIAlign in `region_checks`. Tolerances are those of the tests.
"""

import warnings

import numpy as np

from benchmarks.gpu import operator_calls
from benchmarks.gpu.worker import Item

# Largest difference from the oracle, relative to the largest value: of outputs, of gradients.
TOLERANCES = {"float32": (4e-6, 2e-5), "float16": (1e-3, 1e-3), "bfloat16": (8e-3, 8e-3)}
SOFTMAX = {"groups": 2, "mask_activation": "softmax"}
CASES = {
    "3x3 with softmax": (SOFTMAX, {}),
    "strided": (
        {
            "groups": 3,
            "strides": (2, 1),
            "padding": 2,
            "dilation_rate": (1, 2),
            "offset_scale": 2.0,
            "remove_center": True,
        },
        {"depth": 4, "size": (9, 7)},
    ),
    "5x5": ({"groups": 1, "kernel_size": 5, "padding": 2}, {"depth": 20, "batch": 1}),
    "stage 1": ({"groups": 4, "mask_activation": "softmax"}, {"size": (56, 56)}),
}
HOSTILE = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31, 2.0**24, 1e5, -1e5]


class Check:
    """Checks of one implementation; each method returns a note, or raises.

    Args:
        context: of the worker.
        name: of the implementation, None for the one that is chosen.
    """

    def __init__(self, context, name):
        self.context, self.name = context, name

    def compare(self, options, arrays, dtype="float32", mode="eager", wrap=None, joined=True):
        """Output and gradients against the oracle's; returns their errors.

        Args:
            options: of `dcnv3`.
            arrays: of `operator_calls.arrays`.
            mode: of `gradients.value_and_grads`.
            wrap: a function of the operator's function, which is called in its place.
            joined: whether offsets and masks are one tensor.
        """
        import gradients
        import keras

        *tensors, upstream = arrays
        if joined:
            tensors = operator_calls.joined(tensors)
        with np.errstate(over="ignore"):  # to infinity, as it should
            tensors = [keras.ops.convert_to_tensor(t, dtype) for t in tensors]
        rounded = [gradients.to_numpy(t) for t in tensors]
        upstream = gradients.to_numpy(keras.ops.convert_to_tensor(upstream, dtype))
        function = operator_calls.operator(self.name, **options)
        function = function if wrap is None else wrap(function)
        output, grads = gradients.value_and_grads(function, tensors, upstream, mode)
        return self.judge(options, rounded, upstream, output, grads, dtype)

    def judge(self, options, tensors, upstream, output, grads, dtype="float32"):
        """Raises where arrays differ from the oracle's by more than the dtype's tolerance."""
        import oracle

        points = operator_calls.split(tensors[1]) if len(tensors) == 2 else tensors[1:]
        expected = [oracle.forward(tensors[0], *points, **options)]
        truth = oracle.gradients(tensors[0], *points, upstream, **options)
        expected += [truth[0], np.concatenate(truth[1:], -1)] if len(tensors) == 2 else truth
        errors = [relative_error(a, e) for a, e in zip([output, *grads], expected, strict=True)]
        found = errors[0], max(errors[1:])
        if not all(e <= limit for e, limit in zip(found, TOLERANCES[dtype], strict=True)):
            raise AssertionError(
                f"errors must be up to {TOLERANCES[dtype]} (output, gradients). Received: "
                f"({found[0]:.1e}, {found[1]:.1e}) with {options}"
            )
        return found

    def values(self, dtype):
        found = []
        for number, (title, (options, sizes)) in enumerate(CASES.items()):
            if title == "stage 1" and self.context.rehearsal:
                continue
            arrays = operator_calls.arrays(**sizes, **options)
            found.append(self.compare(options, arrays, dtype, joined=number % 2 == 0))
        forward, backward = np.max(found, axis=0)
        return f"largest errors: output {forward:.1e}, gradients {backward:.1e}"

    def hostile_offsets(self, dtype):
        """Not finite or far away: nothing is sampled, and gradients are zero there."""
        import gradients
        import keras

        arrays = operator_calls.arrays(**SOFTMAX)
        offset = arrays[1].reshape(-1)
        places = np.random.default_rng(1).permutation(offset.size)[: 8 * len(HOSTILE)]
        offset[places] = HOSTILE * 8
        self.compare(SOFTMAX, arrays, dtype, joined=False)
        function = operator_calls.operator(self.name, **SOFTMAX)
        with np.errstate(over="ignore"):
            tensors = [keras.ops.convert_to_tensor(a, dtype) for a in arrays]
        _, grads = gradients.value_and_grads(function, tensors[:3], tensors[3])
        if not all(np.isfinite(g).all() for g in grads):
            raise AssertionError("all gradients must be finite. Received: some are not")
        if grads[1].reshape(-1)[places].any():
            raise AssertionError("gradients of such offsets must be zero. Received: others")

    def compiled(self, mode):
        self.compare(SOFTMAX, operator_calls.arrays(**SOFTMAX), mode=mode)

    def empty_batch(self):
        arrays = operator_calls.arrays(batch=0, **SOFTMAX)
        self.compare(SOFTMAX, arrays)

    def same_bits(self):
        """Three times the same bits, with many samples of the same pixels."""
        import gradients

        options = {"groups": 2, "mask_activation": "softmax"}
        size = (8, 8) if self.context.rehearsal else (28, 28)
        *tensors, upstream = operator_calls.arrays(size=size, spread=6.0, **options)
        tensors = [np.asarray(t, "float32") for t in operator_calls.joined(tensors)]
        function = operator_calls.operator(self.name, **options)
        runs = []
        for _ in range(3):
            output, grads = gradients.value_and_grads(function, tensors, upstream)
            runs.append([output, *grads])
        self.judge(options, tensors, upstream, output, grads)
        results = ("the output", "the gradient of inputs", "the gradient of offsets and masks")
        for run in runs[1:]:
            for what, first, again in zip(results, runs[0], run, strict=True):
                if not np.array_equal(first, again):
                    share = (first != again).mean()
                    raise AssertionError(
                        f"bits must be the same in each run. Received: {share:.1%} of the numbers "
                        f"differ in {what}"
                    )

    def beside_the_gpu(self):
        import keras

        with keras.device("cpu"):
            self.compare(SOFTMAX, operator_calls.arrays(**SOFTMAX))


def relative_error(actual, expected):
    if np.shape(actual) != np.shape(expected):
        raise AssertionError(f"shapes must be {np.shape(expected)}. Received: {np.shape(actual)}")
    if not np.size(expected):
        return 0.0
    difference = np.abs(np.asarray(actual, "float64") - expected).max()
    return float(difference / max(np.abs(expected).max(), 1e-30))


def items(context):
    result = operator_calls.not_running(context, "all checks")
    for name in operator_calls.running(context):
        check = Check(context, name)
        checks = {f"values, {dtype}": (check.values, dtype) for dtype in TOLERANCES}
        for dtype in ("float32", "float16"):
            checks[f"hostile offsets, {dtype}"] = (check.hostile_offsets, dtype)
        checks["empty batch"] = (check.empty_batch,)
        if context.backend == "torch":
            from benchmarks.gpu import torch_checks

            checks |= torch_checks.checks(check)
        elif context.backend == "jax":
            checks["jax.jit"] = (check.compiled, "jit")
        else:
            checks["tf.function"] = (check.compiled, "graph")
        result += [as_item(context, name, title, *call) for title, call in checks.items()]
    default = Check(context, None)
    result.append(as_item(context, None, "the choice", _chosen, context))
    result.append(as_item(context, None, "tensors of the processor", default.beside_the_gpu))
    if context.backend == "tensorflow":
        result.append(as_item(context, None, "tf.function with XLA", default.compiled, "jit"))
    from benchmarks.gpu import region_checks

    return result + region_checks.items(context)


def as_item(context, name, title, function, *arguments):
    """An item that writes a row on how a check went; exceptions are left to the worker."""

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                note = function(*arguments)
            except NotHere as reason:
                context.row(**fields, outcome="not run", note=str(reason))
                return
            except AssertionError as error:
                context.row(**fields, outcome="failed", note=str(error)[:500])
                return
        context.row(**fields, outcome="passed", note=note or "")

    fields = {"implementation": name or "the chosen one", "check": title}
    return Item(f"{name or 'default'}: {title}", run, fields)


class NotHere(Exception):
    """A check that this device, or a rehearsal, cannot do."""


def _chosen(context):
    chosen = operator_calls.running(context)[0]
    Check(context, None).compare(SOFTMAX, operator_calls.arrays(**SOFTMAX))
    return f"by itself, DCNv3 runs on: {chosen}"
