"""Stage: the operator's time, next to the official kernels' algorithm and to copying the bytes.

Masks are normalised before, for all sides, so that all compute the same; in InternImage, ours
normalise them as well. Sides take turns; figures are medians over the rounds. Their results are
compared before anything is timed, and a side whose results differ gets no time.
"""

import functools

import numpy as np

from benchmarks.gpu import frameworks, official_kernels, operator_calls
from benchmarks.gpu.driver import CudaError
from benchmarks.gpu.worker import Item, summary

# Size of the image, channels, groups: the shapes that papers on these operators measure, and
# InternImage-T's stages at 224 pixels.
PAPER = ((56, 128, 4), (28, 256, 8), (14, 512, 16), (7, 1024, 32))
STAGES = ((56, 64, 4), (28, 128, 8), (14, 256, 16), (7, 512, 32))
BATCH, TINY = 64, ((6, 16, 2), (4, 32, 2))
ROUNDS = 7
# Mean difference between two sides, relative to the mean: near a pixel's edge, rounding decides
# about single numbers.
AGREEMENT = {"float32": 1e-3, "float16": 2e-2}
OFFICIAL, FLOOR, GRID_SAMPLE = "official kernel", "copy of the bytes", "grid_sample"


def shapes(rehearsal):
    """Triples of the shapes, the batch and where they are from."""
    if rehearsal:
        return [(TINY[0], 2, "paper"), (TINY[1], 2, "InternImage-T")]
    return [
        *((shape, BATCH, "paper") for shape in PAPER),
        *((shape, BATCH, "InternImage-T") for shape in STAGES),
    ]


def items(context):
    result = operator_calls.not_running(context, "all times")
    for dtype in ("float16", "float32"):
        for kind in ("forward", "backward"):
            for shape, batch, source in shapes(context.rehearsal):
                title = f"{kind}, {dtype}, {batch}x{shape[0]}x{shape[0]}x{shape[1]}"
                case = Case(context, shape, batch, source, dtype, kind, title)
                result.append(Item(title, case.run))
    return result


@functools.cache
def _arrays(shape, batch):
    size, channels, groups = shape
    arrays = operator_calls.arrays(
        size=(size, size), batch=batch, depth=channels // groups, groups=groups
    )
    logits = arrays[2].reshape(*arrays[2].shape[:3], groups, -1)
    weights = np.exp(logits)
    arrays[2] = (weights / weights.sum(-1, keepdims=True)).reshape(arrays[2].shape)
    arrays[3][...] = 1  # what the frameworks' sides are given
    return arrays


class Case:
    """One row of the table: a shape, a dtype, and the forward or the backward pass."""

    def __init__(self, context, shape, batch, source, dtype, kind, title):
        self.context, self.framework = context, frameworks.of(context)
        self.shape, self.batch, self.source = shape, batch, source
        self.dtype, self.kind, self.title = dtype, kind, title

    def run(self):
        arrays = _arrays(self.shape, self.batch)
        sides, results = {}, {}
        for name in operator_calls.running(self.context):
            self._add(sides, results, name, self._ours, name, arrays)
        if self.context.backend == "torch":
            self._add(sides, results, GRID_SAMPLE, self._grid_sample, arrays)
        kernels = []
        try:
            self._add(sides, results, OFFICIAL, self._official, kernels, arrays)
            if OFFICIAL in sides and FLOOR not in self.context.without:
                sides[FLOOR] = (kernels[0].seconds(self.kind, floor=True), 1)
            self._drop_wrong(sides, results)
            rounds = 2 if self.context.rehearsal else ROUNDS
            seconds = frameworks.measure(
                sides, rounds, trying=self.context.trying, failed=self._failed
            )
            self._write(seconds, _bytes(self.dtype, arrays, self.kind))
        finally:
            for one in kernels:
                one.close()

    def row(self, side, **fields):
        self.context.row(
            **{
                "side": side,
                "check": self.title,
                "pass": self.kind,
                "dtype": self.dtype,
                "shape": f"{self.batch}x{self.shape[0]}x{self.shape[0]}x{self.shape[1]}",
                "groups": self.shape[2],
                "source": self.source,
                **fields,
            }
        )

    def _failed(self, label, error):
        usable = self.framework.usable()
        # The official kernels need a compiler, which need not be there.
        missing = usable and isinstance(error, CudaError)
        self.row(label, outcome="not run" if missing else "failed", note=summary(error))
        if not usable:
            raise error

    def _add(self, sides, results, label, make, *arguments):
        if label in self.context.without:
            self.row(label, outcome="not run", note="it ended an earlier process")
            return
        self.context.trying(label)
        try:
            seconds, calls, arrays = make(*arguments)
            results[label] = arrays()
            sides[label] = (seconds, calls)
        except Exception as error:
            self._failed(label, error)

    def _official(self, kernels, arrays):
        from keras_internimage.ops import DCNv3Geometry

        geometry = DCNv3Geometry(groups=self.shape[2])
        on_arrays = official_kernels.OnArrays(self.context.device, geometry, self.dtype, *arrays)
        kernels.append(on_arrays)
        step = max(1, self.batch - 1)
        # As the frameworks' sides give them: the first and the last image.
        results = lambda: [a[::step] for a in on_arrays.results(self.kind)]  # noqa: E731
        return on_arrays.seconds(self.kind), 1, results

    def _ours(self, name, arrays):
        function = operator_calls.operator(name, groups=self.shape[2])
        tensors = operator_calls.joined(arrays[:3])
        return self._timed(function, tensors)

    def _grid_sample(self, arrays):
        import official

        def function(*tensors):
            # As under `torch.autocast`, which has `grid_sample` compute in float32.
            output = official.operator(*(t.float() for t in tensors), self.shape[2])
            return output.to(tensors[0].dtype)

        return self._timed(function, arrays[:3])

    def _timed(self, function, arrays):
        tensors = [self.framework.tensor(a, self.dtype) for a in arrays]
        make = getattr(self.framework, self.kind)
        run, results, calls = make(function, *tensors)

        def apart():
            # Chains of calls have other results than one call.
            once = results if calls == 1 else make(function, *tensors, chain=1)[1]
            arrays = once()
            if len(arrays) == 2:
                arrays[1:] = operator_calls.split(arrays[1])
            return arrays

        return functools.partial(self.framework.seconds, run), calls, apart

    def _drop_wrong(self, sides, results):
        """Leaves out sides that differ from most others; with two, both say so."""
        labels = list(results)
        agreeing = {
            label: [o for o in labels if _difference(results[label], results[o]) < self._limit()]
            for label in labels
        }
        for label in labels:
            if 2 * len(agreeing[label]) <= len(labels) and len(labels) > 1:
                others = [o for o in labels if o not in agreeing[label]]
                worst = max(_difference(results[label], results[o]) for o in others)
                note = f"results differ from those of {', '.join(others)}, by up to {worst:.1e}"
                self.row(label, outcome="failed", note=note)
                del sides[label]

    def _limit(self):
        return AGREEMENT[self.dtype]

    def _write(self, seconds, moved):
        for label, value in seconds.items():
            extra = {}
            for other, name in ((OFFICIAL, "official_over_this"), (FLOOR, "this_over_floor")):
                if other in seconds and label not in (OFFICIAL, FLOOR):
                    ratio = seconds[other] / value
                    extra[name] = ratio if other == OFFICIAL else 1 / ratio
            self.row(
                label,
                outcome="measured",
                milliseconds=1e3 * value,
                gigabytes_per_second=moved / value / 1e9,
                **extra,
            )


def _bytes(dtype, arrays, kind):
    """What one pass has to read and write."""
    read = sum(a.size for a in arrays[:3])
    numbers = read + arrays[3].size if kind == "forward" else 2 * read + arrays[3].size
    return numbers * np.dtype(dtype).itemsize


def _difference(one, other):
    """The largest of the arrays' mean differences; infinite where one is not finite."""
    found = [
        np.abs(a - b).mean() / max(np.abs(b).mean(), 1e-30) for a, b in zip(one, other, strict=True)
    ]
    return max(f if np.isfinite(f) else np.inf for f in found)
