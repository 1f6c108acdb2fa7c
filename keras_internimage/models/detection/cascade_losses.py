"""What training a cascade of heads needs besides: its box loss, and the stages' regions."""

from keras import ops

from keras_internimage.models.detection.losses import EPSILON
from keras_internimage.ops import boxes as box_ops

# Of the official models' configurations.
BOX_WEIGHT = 10.0


def giou_loss(found, wanted, positive, number):
    """The sum of `10 (1 - GIoU)` over positive samples, divided by the number of samples.

    Args:
        found: `(N, S, 4)`, decoded boxes.
        wanted: `(N, S, 4)`, the objects' boxes.
        positive: `(N, S)`.
        number: of samples, positive or not.
    """
    # What other places hold must not reach the gradient: it may be no number.
    some = ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0], "float32")
    there = positive[..., None]
    found = ops.where(there, ops.cast(found, "float32"), some)
    overlap = box_ops.generalized_iou(found, ops.where(there, wanted, some))
    return BOX_WEIGHT * ops.sum(ops.where(positive, 1 - overlap, 0)) / (number + EPSILON)


def remaining(samples, objects: int):
    """Which samples are regions of the next stage: all but the objects, which are added anew.

    Args:
        samples: `Samples`.
        objects: number of places for objects, the first ones of what was sampled from.
    """
    is_object = samples.positive & (samples.index < objects)
    return samples.valid & ops.logical_not(is_object)
