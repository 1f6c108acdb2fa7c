"""Cascade Mask R-CNN's inference as a program in NumPy, in float64, one image after the other.

Of the official Cascade models only names and shapes of tensors are at hand, no numbers. So the
Keras model is checked against this program, which was written from a description of the official
models in words alone: it has nothing of the model's code, takes weights under their official names
in the official layout (channels first), and computes with loops over boxes. Its training is in
`cascade_losses`. Both begin with the pyramid's maps P2 to P6, `(h, w, C)`.

Boxes are left, top, right, bottom in pixels of the resized image.
"""

import detection_oracle
import numpy as np
from detection_oracle import roi_align_matrix

STAGES = 3
STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
# What deltas are multiplied by, in each stage.
DEVIATIONS = np.array([(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)])


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def convolve(x, weight, bias=None):
    """`(..., h, w, C)` with a kernel `(out, C, k, k)`, zeros around."""
    side = weight.shape[-1]
    h, w = x.shape[-3:-1]
    edge = [(0, 0)] * (x.ndim - 3) + [(side // 2, side // 2)] * 2 + [(0, 0)]
    padded = np.pad(x, edge)
    y = 0.0
    for i, j in np.ndindex(side, side):
        y = y + padded[..., i : i + h, j : j + w, :] @ weight[:, :, i, j].T
    return y if bias is None else y + bias


def module(state, name):
    """Weight and bias of a module in float64."""
    return [
        np.asarray(state[f"{name}.{part}"], np.float64)
        for part in ("weight", "bias")
        if f"{name}.{part}" in state
    ]


def anchors(h, w, stride):
    """Three boxes around the top left corner of each cell: row, column, ratio."""
    boxes = []
    for y, x, r in ((y, x, r) for y in range(h) for x in range(w) for r in RATIOS):
        half = np.array([8 * stride / np.sqrt(r), 8 * stride * np.sqrt(r)]) / 2
        centre = np.array([x * stride, y * stride])
        boxes.append(np.concatenate([centre - half, centre + half]))
    return np.array(boxes)


def propose_deltas(maps, state):
    """Of each map's anchors the logits `(h w 3,)` and the deltas `(h w 3, 4)`."""
    logits, deltas = [], []
    for x in maps:
        y = relu(convolve(x, *module(state, "rpn_head.rpn_conv")))
        logits.append(convolve(y, *module(state, "rpn_head.rpn_cls")).reshape(-1))
        deltas.append(convolve(y, *module(state, "rpn_head.rpn_reg")).reshape(-1, 4))
    return logits, deltas


def decode(boxes, deltas, deviations=(1, 1, 1, 1)):
    pairs = zip(boxes, deltas * np.asarray(deviations), strict=True)
    return np.array([detection_oracle.decode(box, d) for box, d in pairs]).reshape(-1, 4)


def clip(boxes, size):
    h, w = size
    return np.clip(boxes, 0, [w, h, w, h])


def proposals(logits, deltas, shapes, size, per_level, count, threshold=0.7):
    """At most `count` regions, the best first."""
    boxes, scores, levels = [], [], []
    for k, (h, w) in enumerate(shapes):
        best = np.argsort(-logits[k], kind="stable")[:per_level]
        found = clip(decode(anchors(h, w, STRIDES[k])[best], deltas[k][best]), size)
        extent = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        boxes.append(found[extent])
        scores.append(logits[k][best][extent])
        levels.append(np.full(extent.sum(), k))
    boxes, scores, levels = map(np.concatenate, (boxes, scores, levels))
    return boxes[detection_oracle.nms(boxes, scores, levels, threshold)[:count]]


def pool(maps, boxes, bins):
    """RoIAlign `(R, bins, bins, C)` of each box from the one of P2 to P5 that fits its size."""
    pooled = []
    for box in boxes:
        side = np.sqrt(max(np.prod(box[2:] - box[:2]), 0))
        level = int(np.clip(np.floor(np.log2(side / 56 + 1e-6)), 0, 3))
        weights = roi_align_matrix(maps[level].shape[:2], box, STRIDES[level], bins)
        pooled.append(np.tensordot(weights, maps[level], 2))
    return np.array(pooled).reshape(-1, bins, bins, maps[0].shape[-1])


def box_head(state, stage, pooled, training=False):
    """Logits `(R, classes + 1)` and deltas `(R, classes, 4)` of a stage."""
    name = f"roi_head.bbox_head.{stage}"
    x = pooled
    for k in range(4):
        x = convolve(x, *module(state, f"{name}.shared_convs.{k}.conv"))
        norm = f"{name}.shared_convs.{k}.bn"
        gamma, beta = module(state, norm)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        if training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = relu((x - mean) / np.sqrt(variance + 1e-5) * gamma + beta)
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)

    def linear(x, part):
        weight, bias = module(state, f"{name}.{part}")
        return x @ weight.T + bias

    x = relu(linear(x, "shared_fcs.0"))
    return linear(x, "fc_cls"), linear(x, "fc_reg").reshape(len(x), -1, 4)


def mask_head(state, stage, pooled):
    """Logits `(R, 28, 28, classes)` of a stage."""
    name = f"roi_head.mask_head.{stage}"
    x = pooled
    for k in range(4):
        x = relu(convolve(x, *module(state, f"{name}.convs.{k}.conv")))
    weight, bias = module(state, f"{name}.upsample")
    count, h, w, _ = x.shape
    y = np.zeros((count, h, 2, w, 2, len(bias)))
    for i, j in np.ndindex(2, 2):
        y[:, :, i, :, j] = x @ weight[:, :, i, j] + bias
    y = relu(y.reshape(count, 2 * h, 2 * w, -1))
    return convolve(y, *module(state, f"{name}.conv_logits"))


def refine(boxes, labels, deltas, stage, size):
    """The boxes moved by the deltas of a class of each, clipped."""
    own = deltas[np.arange(len(boxes)), labels]
    return clip(decode(boxes, own, DEVIATIONS[stage]), size)


def cascade(maps, boxes, state, size):
    """The last stage's boxes of all classes `(R, classes, 4)`, and the probabilities.

    Each stage looks at the boxes that the one before has moved.
    """
    logits = []
    for stage in range(STAGES):
        scores, deltas = box_head(state, stage, pool(maps, boxes, 7))
        logits.append(scores)
        if stage < STAGES - 1:
            boxes = refine(boxes, scores[:, :-1].argmax(1), deltas, stage, size)
    classes = deltas.shape[1]
    flat = decode(boxes.repeat(classes, 0), deltas.reshape(-1, 4), DEVIATIONS[-1])
    probabilities = softmax(np.mean(logits, axis=0))[:, :-1]
    return clip(flat, size).reshape(-1, classes, 4), probabilities


def detect(maps, state, size, original_size, per_level, count, threshold, most):
    """Detections of one image: boxes in the original image's pixels, scores, labels, masks.

    Args:
        maps: P2 to P6.
        state: official tensors by name.
        size, original_size: height and width of the image, and before it was resized.
        per_level, count: numbers of anchors of a level, and of proposals.
        threshold: that scores exceed.
        most: number of detections.
    """
    maps = [np.asarray(x, np.float64) for x in maps]
    shapes = [x.shape[:2] for x in maps]
    regions = proposals(*propose_deltas(maps, state), shapes, size, per_level, count)
    boxes, probabilities = cascade(maps, regions, state, size)
    scale = np.tile(np.array(size[::-1]) / np.array(original_size[::-1]), 2)
    candidates = [
        (probabilities[r, c], c, boxes[r, c] / scale)
        for r, c in np.ndindex(*probabilities.shape)
        if probabilities[r, c] > threshold
    ]
    if not candidates:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros((0, 28, 28))
    scores, labels, boxes = map(np.array, zip(*candidates, strict=True))
    kept = detection_oracle.nms(boxes, scores, labels, 0.5)[:most]
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    pooled = pool(maps, boxes * scale, 14)
    masks = np.mean([sigmoid(mask_head(state, k, pooled)) for k in range(STAGES)], axis=0)
    return boxes, scores, labels, masks[np.arange(len(labels)), :, :, labels]
