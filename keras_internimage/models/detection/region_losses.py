"""The losses of a box head and of a mask head on sampled regions."""

import keras
from keras import ops

from keras_internimage.models.detection import losses
from keras_internimage.models.detection.inputs import padded_sizes
from keras_internimage.ops.bitmaps import crop_bitmaps

# A pixel of a mask's target belongs to the object if at least this part of it does.
THRESHOLD = 0.5


def region_labels(samples, targets, classes: int):
    """The label of each sample, `(N, S)`; `classes` is the background."""
    labels = ops.take_along_axis(targets.labels, samples.matched, axis=1)
    # A label that is none is kept apart from the background, so that the loss becomes NaN.
    labels = ops.where(labels < classes, labels, classes + 1)
    return ops.where(samples.positive, labels, classes)


def own_deltas(deltas, labels):
    """Of the deltas of all classes `(N, S, classes, 4)` those of each sample's label, float32."""
    own = ops.clip(labels, 0, deltas.shape[2] - 1)[..., None, None]
    return ops.cast(ops.take_along_axis(deltas, own, axis=2)[:, :, 0], "float32")


def number_of_regions(samples):
    """How many samples a batch has."""
    return ops.sum(ops.cast(samples.valid, "float32"))


def mask_head_loss(align, head, maps, samples, labels, targets, sizes, positives: int, trims: bool):
    """The loss of a mask head on the regions of objects; 0 where there are no masks.

    Args:
        align: the `RegionAlign` before the head.
        head: a `MaskHead`.
        maps: of the pyramid.
        samples: `Samples`.
        labels: of `region_labels`.
        targets: `Targets`.
        sizes: `(N, 2)`, heights and widths of the images.
        positives: how many samples of an image may be objects' regions.
        trims: of `may_trim`.
    """
    if targets.masks is None:
        return ops.zeros((), "float32")
    count = min(positives, samples.positive.shape[1])
    if trims:  # mostly there are fewer
        most = ops.max(ops.sum(ops.cast(samples.positive, "int32"), axis=1))
        count = ops.maximum(most, 1)
        count = int(count) if keras.backend.backend() == "torch" else count
    boxes, positive = samples.boxes[:, :count], samples.positive[:, :count]
    labels, matched = labels[:, :count], samples.matched[:, :count]
    # Other places look at nothing, which costs nothing where pixels are counted.
    boxes = ops.where(positive[..., None], boxes, 0)
    logits = head(align(maps, boxes))
    bins = logits.shape[2]
    covered = crop_bitmaps(targets.masks, matched, boxes, padded_sizes(sizes), bins)
    wanted = ops.cast(covered >= THRESHOLD, "float32")
    return losses.mask_loss(logits, labels, wanted, positive)


def may_trim(model) -> bool:
    """Whether a number that is known only when computed may be the length of an axis here.

    XLA needs to know all lengths before; `torch.compile` would compile anew for each of them.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        compiled = torch.compiler.is_compiling()
        return not compiled and not torch._C._are_functorch_transforms_active()
    if backend == "tensorflow":
        from keras_internimage.ops.portable.tensorflow import in_xla

        return not model.jit_compile and not in_xla()
    return False
