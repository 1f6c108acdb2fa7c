"""RoIAlign in the stage of correctness: its implementations against the oracle in float64."""

import functools

import numpy as np

from benchmarks.gpu import correctness
from benchmarks.gpu.worker import Item

STRIDES = (4.0, 8.0)
BINS = 7
SIZES = {False: ((50, 76), (25, 38)), True: ((9, 13), (5, 7))}  # of the maps; tiny in a rehearsal


def items(context):
    """A list of `worker.Item`."""
    from keras_internimage.ops import dispatch, native

    request = dispatch.Request(
        backend=context.backend, device=context.device, operator="roi_align", named=True
    )
    runs = {"portable": None, "native": native.Native().why_not(request)}
    found = []
    for name, reason in runs.items():
        if reason is not None:
            say = functools.partial(_not_running, context, name, reason)
            found.append(Item(f"RoIAlign, {name}", say))
            continue
        for dtype in correctness.TOLERANCES:
            title = f"RoIAlign, {dtype}"
            found.append(correctness.as_item(context, name, title, _values, context, name, dtype))
        if name == "native":  # which promises it in every mode
            title = "RoIAlign, same bits"
            found.append(correctness.as_item(context, name, title, _same_bits, context, name))
    return found


def _not_running(context, name, reason):
    context.row(implementation=name, check="RoIAlign", outcome="not run", note=reason)


def _case(context):
    """Maps, boxes of all kinds, their levels, and a gradient."""
    rng = np.random.default_rng(0)
    images, regions = 2, 8 if context.rehearsal else 64
    sizes = SIZES[context.rehearsal]
    extent = np.array(sizes[0][::-1]) * STRIDES[0]
    corner = rng.uniform(-0.2, 0.9, (images, regions, 2)) * extent
    boxes = np.concatenate([corner, corner + rng.exponential(0.3, corner.shape) * extent], 2)
    boxes[:, 0] = [0, 0, *extent]
    boxes[:, 1, 2:] = boxes[:, 1, :2]  # no extent
    boxes[:, 2, 0], boxes[:, 3, 2] = np.nan, np.inf
    levels = rng.integers(0, 2, (images, regions)).astype("int32")
    maps = [rng.standard_normal((images, *size, 40), "float32") for size in sizes]
    upstream = rng.standard_normal((images, regions, BINS, BINS, 40), "float32")
    return maps, boxes.astype("float32"), levels, upstream


def _compute(name, dtype, maps, boxes, levels, upstream):
    """The arguments as they were rounded, and the output and gradients."""
    import gradients
    import keras

    from keras_internimage.ops.roi_align import roi_align

    *maps, upstream = (keras.ops.convert_to_tensor(x, dtype) for x in (*maps, upstream))
    boxes, levels = map(keras.ops.convert_to_tensor, (boxes, levels))

    def run(*maps):
        return roi_align(list(maps), boxes, STRIDES, levels, BINS, implementation=name)

    rounded = [gradients.to_numpy(x) for x in (*maps, upstream)]
    output, grads = gradients.value_and_grads(run, maps, rounded[-1])
    return rounded, [output, *grads]


def _values(context, name, dtype):
    import detection_oracle

    maps, boxes, levels, upstream = _case(context)
    (*maps, upstream), found = _compute(name, dtype, maps, boxes, levels, upstream)
    truth = [np.zeros(upstream.shape), *(np.zeros(x.shape) for x in maps)]
    for n, r in np.ndindex(*levels.shape):
        if not np.isfinite(boxes[n, r]).all():
            continue
        level = levels[n, r]
        size = maps[level].shape[1:3]
        weights = detection_oracle.roi_align_matrix(size, boxes[n, r], STRIDES[level], BINS)
        truth[0][n, r] = np.einsum("ijyx,yxc->ijc", weights, maps[level][n])
        truth[1 + level][n] += np.einsum("ijyx,ijc->yxc", weights, upstream[n, r])
    errors = [correctness.relative_error(a, b) for a, b in zip(found, truth, strict=True)]
    # The portable implementation takes positions as single floats from the map's corner on.
    largest, limits = (errors[0], max(errors[1:])), correctness.TOLERANCES[dtype]
    limits = [max(limit, 1e-4) for limit in limits] if name == "portable" else limits
    if not all(e <= limit for e, limit in zip(largest, limits, strict=True)):
        raise AssertionError(
            f"errors must be up to {tuple(limits)} (output, gradients). Received: "
            f"({largest[0]:.1e}, {largest[1]:.1e})"
        )
    return f"largest errors: output {largest[0]:.1e}, gradients {largest[1]:.1e}"


def _same_bits(context, name):
    arguments = _case(context)
    _, first = _compute(name, "float16", *arguments)
    for _ in range(2):
        _, again = _compute(name, "float16", *arguments)
        if not all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)):
            raise AssertionError("bits must be the same in each run. Received: others")
