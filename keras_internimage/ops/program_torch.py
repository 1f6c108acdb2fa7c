"""Loops that stay loops in a `torch.export` program: PyTorch only.

Keras' `map` and `fori_loop` are unrolled while PyTorch traces, a thousand steps of suppression too.
"""

import math

import torch
from torch._higher_order_ops.while_loop import while_loop

from keras_internimage.ops import boxes as box_ops


def chunks(function, arrays, shape, dtype):
    """`function` of the rows of some arrays, one after the other, as `keras.ops.map`.

    `shape` and `dtype` are those of what it gives.
    """
    number = arrays[0].shape[0]

    def body(k, pooled):
        rows = [x.index_select(0, k.reshape(1))[0] for x in arrays]
        here = torch.arange(number, device=k.device) == k
        here = here.reshape(-1, *[1] * (pooled.ndim - 1))
        return k + 1, torch.where(here, function(rows)[None], pooled)

    device = arrays[0].device
    start = torch.zeros((), dtype=torch.int64, device=device)
    pooled = torch.zeros((number, *shape), dtype=getattr(torch, dtype), device=device)
    return while_loop(lambda k, _: k < number, body, (start, pooled))[1]


def nms(boxes, scores, classes, threshold, count):
    """As `ops.boxes.nms`: the best box is taken, `count` times."""
    number = boxes.shape[1]
    places = torch.arange(number, dtype=torch.int32, device=boxes.device)[None]
    results = torch.arange(count, dtype=torch.int32, device=boxes.device)[None]

    def body(k, scores, indices):
        best = torch.argmax(scores, dim=1, keepdim=True)
        exists = torch.gather(scores, 1, best) > -math.inf
        box = torch.gather(boxes, 1, best[..., None].expand(-1, -1, 4))
        overlap = box_ops.iou(box, boxes)[:, 0]
        same = classes == torch.gather(classes, 1, best)
        dropped = ((overlap > threshold) & same) | (places == best)
        found = torch.where(exists, best.to(torch.int32), -1)
        return (
            k + 1,
            torch.where(dropped, -math.inf, scores),
            torch.where(results == k, found, indices),
        )

    start = torch.zeros((), dtype=torch.int64, device=boxes.device)
    none = torch.full((scores.shape[0], count), -1, dtype=torch.int32, device=boxes.device)
    _, _, indices = while_loop(lambda k, *_: k < count, body, (start, scores.clone(), none))
    return torch.clamp(indices, min=0), indices >= 0
