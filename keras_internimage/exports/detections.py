"""Running a detector's file, and comparing what it detects with what the model does.

As sets: a detection is the same as the nearest one of its label. Row by row would not do, since
scores that differ by rounding change places.
"""

import keras
import numpy as np

from keras_internimage.exports import formats, verify

# Largest differences: of boxes over the largest coordinate or 1, of scores and masks' pixels.
BOXES, SCORES, MASKS = 2e-5, 1e-4, 1e-3
# An overlap or a score may lie at its threshold: of all detections this share may be others.
OTHERS = 0.02


class Comparison:
    """How far detections of a file are from the model's, image by image.

    Attributes:
        total: detections of both, each pair counted twice.
        others: those without a partner.
        boxes, scores, masks: largest differences of partners.
    """

    def __init__(self, score_threshold):
        self.score_threshold = score_threshold
        self.total = self.others = 0
        self.boxes = self.scores = self.masks = 0.0

    def add(self, expected, found):
        """Adds the detections of one image, both dicts of arrays with rows."""
        want, got = _rows(expected), _rows(found)
        pairs = _pairs(want, got)
        self.total += len(want["labels"]) + len(got["labels"])
        for side, rows, other in ((0, want, expected), (1, got, found)):
            paired = {pair[side] for pair in pairs}
            limit = self._limit(other)
            self.others += sum(
                row not in paired and score > limit for row, score in enumerate(rows["scores"])
            )
        for i, j in pairs:
            scale = max(1.0, float(np.abs(want["boxes"]).max()))
            self.boxes = max(self.boxes, _largest(want["boxes"][i] - got["boxes"][j]) / scale)
            self.scores = max(self.scores, _largest(want["scores"][i] - got["scores"][j]))
            self.masks = max(self.masks, _largest(want["masks"][i] - got["masks"][j]))

    def _limit(self, rows):
        """Scores up to this may be of one side alone: they are at the threshold, or cut off."""
        full = rows["num_detections"] == len(rows["scores"])
        last = rows["scores"].min() if full else self.score_threshold
        return max(last, self.score_threshold) + 2 * SCORES


def check(model, written, path, target, options, say):
    """As `verify.check`, for an `ImageDetector`."""
    run = formats.runner(path)
    names = formats.output_names(model)
    compared = Comparison(model.detector.score_threshold)
    expected_of = compiled(model)
    for images in verify.batches(model, options):
        found = run(images)
        # A PyTorch program has no names for its outputs, but their order.
        if not set(names) <= set(found):
            found = dict(zip(names, found.values(), strict=True))
        expected = dict(zip(names, expected_of(images), strict=True))
        for name in names:
            _check_output(path, name, expected[name], found[name])
        for k in range(len(images)):
            compared.add(*({n: x[k] for n, x in side.items()} for side in (expected, found)))
    if not compared.total:
        say("  runs; nothing is detected on noise or photographs: there is nothing to compare")
        return
    wrong = [
        f"{name} by {found:.2g} (at most {bound:g})"
        for name, found, bound in (
            ("boxes", compared.boxes, BOXES),
            ("scores", compared.scores, SCORES),
            ("masks", compared.masks, MASKS),
        )
        if found > bound
    ]
    if compared.others > OTHERS * compared.total:
        wrong.append(f"{compared.others} of {compared.total} by box or label")
    if wrong:
        raise RuntimeError(
            f"The detections of {target.title} must be the model's. Received: they differ, "
            f"{', '.join(wrong)}; nothing was written"
        )
    say(
        f"  runs; {compared.total - compared.others} of {compared.total} detections are the same; "
        f"largest difference of boxes {compared.boxes:.1e}, of scores {compared.scores:.1e}, of "
        f"masks {compared.masks:.1e}"
    )


def compiled(model):
    """A function from images to the model's outputs as arrays, by their sorted names."""
    function = model
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Its loops are long.
        function = tf.function(model, autograph=False, reduce_retracing=True)
    return lambda images: verify.arrays(function, images)


def _check_output(path, name, want, got):
    if want.shape != got.shape or not np.isfinite(got).all():
        raise RuntimeError(
            f"{path.name} must give finite {name} of the shape {want.shape}. "
            f"Received: shape={got.shape}, finite={bool(np.isfinite(got).all())}"
        )


def _rows(detections):
    """The detections there are, without the rows after them."""
    count = int(detections["num_detections"])
    return {name: x[:count] for name, x in detections.items() if name != "num_detections"}


def _pairs(want, got):
    """Rows of both that are the nearest of their label to each other, and near."""
    boxes, others = want["boxes"], got["boxes"]
    if not len(boxes) or not len(others):
        return []
    distance = np.abs(boxes[:, None] - others[None]).max(-1)
    # Of boxes in one place, the one with the nearest score.
    distance = distance + 1e-3 * np.abs(want["scores"][:, None] - got["scores"][None])
    distance[want["labels"][:, None] != got["labels"][None]] = np.inf
    limit = 1e-2 * max(1.0, float(np.abs(boxes).max()))
    nearest, back = distance.argmin(1), distance.argmin(0)
    return [(i, j) for i, j in enumerate(nearest) if back[j] == i and distance[i, j] < limit]


def _largest(x):
    return float(np.abs(x).max())
