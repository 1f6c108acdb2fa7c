"""The losses of detectors, as the official models' configurations have them.

Each is a float32 scalar for a batch: a sum over samples divided by their number. Places without a
sample have `valid` or `positive` false and count nothing.
"""

from keras import ops

# Added to each number that a sum is divided by.
EPSILON = 2.0**-23


def objectness_loss(logits, positive, valid, number):
    """Binary cross-entropy of sampled anchors: is there an object?

    ```
    L = sum -log sigmoid(z)  of objects' anchors  +  sum -log sigmoid(-z)  of others,   / number
    ```

    Args:
        logits: `(N, S)`.
        positive, valid: `(N, S)`.
        number: of samples.
    """
    logits = _float(logits)
    losses = ops.softplus(ops.where(positive, -logits, logits))
    return _sum(losses, valid) / (number + EPSILON)


def class_loss(logits, labels, valid):
    """The mean cross-entropy of sampled regions; the background is the last class.

    Args:
        logits: `(N, S, classes + 1)`.
        labels: `(N, S)`. One that is no class makes the loss NaN.
        valid: `(N, S)`.
    """
    logits = _float(logits)
    classes = logits.shape[-1]
    known = (labels >= 0) & (labels < classes)
    losses = ops.sparse_categorical_crossentropy(
        ops.where(known, labels, 0), logits, from_logits=True
    )
    losses = ops.where(known, losses, float("nan"))
    return _sum(losses, valid) / (ops.maximum(_number(valid), 1) + EPSILON)


def l1_loss(found, wanted, positive, number):
    """The sum of absolute differences over four coordinates of positive samples, / number.

    Args:
        found, wanted: `(N, S, 4)`, deltas.
        positive: `(N, S)`.
        number: of samples, positive or not.
    """
    return smooth_l1_loss(found, wanted, positive, number, 0.0)


def smooth_l1_loss(found, wanted, positive, number, beta: float):
    """As `l1_loss`, but `d^2 / (2 beta)` for a difference `d < beta`, and `d - beta / 2` above."""
    # What is wanted of other places may be infinite, or not a number.
    positive = positive[..., None]
    difference = ops.abs(ops.where(positive, _float(found), 0) - ops.where(positive, wanted, 0))
    if beta:
        difference = ops.where(
            difference < beta, difference * difference / (2 * beta), difference - beta / 2
        )
    return ops.sum(difference) / (number + EPSILON)


def mask_loss(logits, labels, targets, positive):
    """The mean binary cross-entropy of positive regions' masks, each of its own class.

    Args:
        logits: `(N, P, h, w, classes)`.
        labels: `(N, P)`.
        targets: `(N, P, h, w)`, 0 or 1.
        positive: `(N, P)`.

    Returns:
        The mean over all pixels of positive regions; 0 if there is none.
    """
    classes = logits.shape[-1]
    own = ops.clip(labels, 0, classes - 1)[:, :, None, None, None]
    own = ops.take_along_axis(logits, own, axis=-1)[..., 0]
    own = _float(own)
    losses = ops.mean(ops.softplus(own) - own * targets, axis=(2, 3))
    return _sum(losses, positive) / ops.maximum(_number(positive), 1)


def number_of_samples(positive, valid):
    """How many samples a batch has, each kind at least one in each image, as in MMDetection."""
    kinds = (positive, valid & ops.logical_not(positive))
    counts = [ops.sum(ops.cast(kind, "float32"), axis=1) for kind in kinds]
    return sum(ops.sum(ops.maximum(count, 1)) for count in counts)


def _float(x):
    return ops.cast(x, "float32")


def _number(among):
    return ops.sum(_float(among))


def _sum(losses, among):
    return ops.sum(ops.where(among, losses, 0))
