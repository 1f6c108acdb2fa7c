"""Cascade Mask R-CNN's training losses as a program in NumPy; see `cascade_numpy`.

Samples are not drawn: where there are more boxes than places, the first get in.
"""

import detection_oracle
import numpy as np
from detection_oracle import roi_align_matrix
from models.detection.cascade_numpy import (
    DEVIATIONS,
    STAGES,
    STRIDES,
    anchors,
    box_head,
    decode,
    mask_head,
    pool,
    proposals,
    propose_deltas,
    refine,
    softmax,
)

# The overlap from which on a region counts as an object's, and the weight, of each stage.
OVERLAPS = (0.5, 0.6, 0.7)
WEIGHTS = (1.0, 0.5, 0.25)
# What is added to each count that a sum is divided by.
TINY = np.finfo(np.float32).eps


def overlaps(boxes, others):
    return np.array([[detection_oracle.iou(a, b) for b in others] for a in boxes]).reshape(
        len(boxes), len(others)
    )


def first(positive, negative, count, positives):
    """Indices of the first positives up to a number, and of negatives in what is left."""
    positive = np.flatnonzero(positive)[:positives]
    return positive, np.flatnonzero(negative)[: count - len(positive)]


def cross_entropy(logits, wanted):
    """Of logits for yes and no."""
    return np.maximum(logits, 0) - logits * wanted + np.log1p(np.exp(-abs(logits)))


def encode(boxes, objects):
    """The deltas that make objects of boxes."""
    size, wanted = boxes[:, 2:] - boxes[:, :2], objects[:, 2:] - objects[:, :2]
    move = (objects[:, :2] + objects[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / size
    return np.concatenate([move, np.log(wanted / size)], axis=1)


def smooth_l1(x, beta=1 / 9):
    return np.where(abs(x) < beta, x**2 / (2 * beta), abs(x) - beta / 2)


def generalized_iou(box, other):
    """IoU minus the share of the smallest box around both that neither covers."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = np.maximum(sides, 0).prod()
    union = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - shared
    around = (np.maximum(box[2:], other[2:]) - np.minimum(box[:2], other[:2])).prod()
    return shared / union - (around - union) / around


def rpn_losses(images, count, positives):
    """Sums over images of both losses, divided by the number of sampled anchors."""
    class_sum, box_sum, number = 0.0, 0.0, 0
    for image in images:
        logits, deltas = map(np.concatenate, (image["logits"], image["deltas"]))
        boxes = np.concatenate(
            [anchors(*x.shape[:2], s) for x, s in zip(image["maps"], STRIDES, strict=True)]
        )
        h, w = image["size"]
        inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] < [w, h]).all(1)
        found = overlaps(boxes, image["boxes"])
        found[~inside] = -1
        assigned = np.full(len(boxes), -2)
        if found.shape[1]:
            best = found.max(1)
            assigned[best < 0.3] = -1
            assigned[best >= 0.7] = found.argmax(1)[best >= 0.7]
            for k, most in enumerate(found.max(0)):
                if most >= 0.3:
                    assigned[found[:, k] == most] = k
        else:
            assigned[:] = -1
        assigned[~inside] = -2
        positive, negative = first(assigned >= 0, assigned == -1, count, positives)
        class_sum += cross_entropy(logits[positive], 1).sum()
        class_sum += cross_entropy(logits[negative], 0).sum()
        targets = encode(boxes[positive], image["boxes"][assigned[positive]])
        box_sum += smooth_l1(deltas[positive] - targets).sum()
        number += len(positive) + len(negative)
    return {
        "rpn_class_loss": class_sum / (number + TINY),
        "rpn_box_loss": box_sum / (number + TINY),
    }


def sample_regions(image, stage, count, positives):
    """Boxes of one stage, objects in front of proposals: positives first, and their objects."""
    objects = image["boxes"]
    boxes = np.concatenate([objects, image["proposals"]])
    assigned = np.full(len(boxes), -1)
    if len(objects):
        found = overlaps(boxes, objects)
        enough = found.max(1) >= OVERLAPS[stage]
        assigned[enough] = found.argmax(1)[enough]
    positive, negative = first(assigned >= 0, assigned < 0, count, positives)
    image.setdefault("positives", []).append(len(positive))
    chosen = np.concatenate([positive, negative])
    image["is_object"] = np.isin(chosen, np.arange(len(objects))) & (assigned[chosen] >= 0)
    return boxes[chosen], assigned[positive]


def mask_target(mask, box):
    """28x28 zeros and ones: the object's bitmap pooled from the box."""
    weights = roi_align_matrix(mask.shape, box, 1, 28)
    return np.tensordot(weights, mask.astype(np.float64), 2) >= 0.5


def losses(images, state, per_level, count, rpn_samples=256, samples=512):
    """All losses, as they are summed: with the weights of stages.

    Args:
        images: list of dicts: "maps" P2 to P6; "size", height and width without padding; "boxes"
            `(M, 4)`, "labels" `(M,)` and "masks" `(M, H, W)` of its objects.
        state: official tensors by name.
        per_level, count: numbers of anchors of a level, and of proposals, 2000 in the official
            models.
        rpn_samples: anchors of an image, half of them positive at most.
        samples: regions of an image in each stage, a quarter of them positive at most.
    """
    for image in images:
        image["maps"] = [np.asarray(x, np.float64) for x in image["maps"]]
        image["logits"], image["deltas"] = propose_deltas(image["maps"], state)
        shapes = [x.shape[:2] for x in image["maps"]]
        image["proposals"] = proposals(
            image["logits"], image["deltas"], shapes, image["size"], per_level, count
        )
    result = rpn_losses(images, rpn_samples, rpn_samples // 2)
    for stage in range(STAGES):
        chosen = [sample_regions(image, stage, samples, samples // 4) for image in images]
        pooled = [
            pool(image["maps"], boxes, 7) for image, (boxes, _) in zip(images, chosen, strict=True)
        ]
        logits, deltas = box_head(state, stage, np.concatenate(pooled), training=True)
        places = np.cumsum([len(boxes) for boxes, _ in chosen])[:-1]
        parts = zip(images, chosen, np.split(logits, places), np.split(deltas, places), strict=True)
        class_sum, box_sum, mask_sums = 0.0, 0.0, []
        for image, (boxes, objects), scores, moves in parts:
            background = scores.shape[1] - 1
            labels = np.full(len(boxes), background)
            labels[: len(objects)] = image["labels"][objects]
            class_sum -= np.log(softmax(scores)[np.arange(len(boxes)), labels]).sum()
            for k, (box, wanted) in enumerate(zip(boxes, objects, strict=False)):
                moved = decode(box[None], moves[k, labels[k]][None], DEVIATIONS[stage])[0]
                box_sum += 10 * (1 - generalized_iou(moved, image["boxes"][wanted]))
            if len(objects):
                own = labels[: len(objects)]
                masks = mask_head(state, stage, pool(image["maps"], boxes[: len(objects)], 14))
                masks = masks[np.arange(len(own)), :, :, own]
                for mask, box, k in zip(masks, boxes, objects, strict=False):
                    wanted = mask_target(image["masks"][k], box)
                    mask_sums.append(cross_entropy(mask, wanted).mean())
            best = scores[:, :-1].argmax(1)
            best[: len(objects)] = labels[: len(objects)]
            moved = refine(boxes, best, moves, stage, image["size"])
            image["proposals"] = moved[~image["is_object"]]
        number = len(logits) + TINY
        of_stage = {
            "class_loss": class_sum / number,
            "box_loss": box_sum / number,
            "mask_loss": np.mean(mask_sums) if mask_sums else 0.0,
        }
        for name, value in of_stage.items():
            result[f"{name}_{stage + 1}"] = WEIGHTS[stage] * value
    return result
