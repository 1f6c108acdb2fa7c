"""Mask R-CNN over InternImage as the official PyTorch code computes it, to measure against.

Written down again from the description of the model, as `official.py` is: channels first, regions
pooled level by level, suppression with the boxes of each level or class shifted apart, masks for
those boxes alone that were detected. RoIAlign and suppression are torchvision's, which has to be
installed with its compiled operators. The names of the tensors are those of the official
checkpoints. Of one image, without padding, at its own size.
"""

import math

import official_upernet
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
LIMIT = abs(math.log(16 / 1000))
CLASSES = 80


class Conv(nn.Module):
    """A convolution under the name that it has in the checkpoints."""

    def __init__(self, inputs, outputs, side):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2)

    def forward(self, x):
        return self.conv(x)


class Pyramid(nn.Module):
    def __init__(self, widths, channels):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Conv(width, channels, 1) for width in widths)
        self.fpn_convs = nn.ModuleList(Conv(channels, channels, 3) for _ in widths)

    def forward(self, maps):
        maps = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for k in range(len(maps) - 1, 0, -1):
            maps[k - 1] = maps[k - 1] + F.interpolate(maps[k], size=maps[k - 1].shape[2:])
        maps = [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=True)]
        return [*maps, F.max_pool2d(maps[-1], 1, stride=2)]


class ProposalHead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, len(RATIOS), 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * len(RATIOS), 1)

    def forward(self, maps, size):
        boxes, scores, levels = [], [], []
        for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            x = F.relu(self.rpn_conv(x))
            logits = self.rpn_cls(x)[0].permute(1, 2, 0).reshape(-1).sigmoid()
            deltas = self.rpn_reg(x)[0].permute(1, 2, 0).reshape(-1, 4)
            best, index = logits.sort(descending=True)
            best, index = best[:1000], index[:1000]
            found = decoded(anchors(x.shape[2:], stride)[index], deltas[index], size)
            boxes.append(found)
            scores.append(best)
            levels.append(torch.full_like(index, level))
        boxes, scores, levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        there = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, levels = boxes[there], scores[there], levels[there]
        return boxes[suppressed(boxes, scores, levels, 0.7)[:1000]]


class BoxHead(nn.Module):
    def __init__(self, channels, units=1024):
        super().__init__()
        self.shared_fcs = nn.ModuleList([nn.Linear(channels * 49, units), nn.Linear(units, units)])
        self.fc_cls = nn.Linear(units, CLASSES + 1)
        self.fc_reg = nn.Linear(units, 4 * CLASSES)

    def forward(self, x):
        x = x.flatten(1)
        for linear in self.shared_fcs:
            x = F.relu(linear(x))
        return self.fc_cls(x), self.fc_reg(x)


class MaskHead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.convs = nn.ModuleList(Conv(channels, channels, 3) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, CLASSES, 1)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.conv_logits(F.relu(self.upsample(x)))


class Regions(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bbox_head = BoxHead(channels)
        self.mask_head = MaskHead(channels)


class MaskRCNN(nn.Module):
    """Mask R-CNN T: input `(1, 3, H, W)`, output boxes, scores, labels and masks."""

    def __init__(self, channels=64, depths=(4, 4, 18, 4), groups=(4, 8, 16, 32), width=256):
        super().__init__()
        block = {"layer_scale": 1.0, "offset_scale": 1.0, "post_norm": False}
        self.backbone = official_upernet.Backbone(channels, depths, groups, **block)
        self.neck = Pyramid([channels * 2**i for i in range(4)], width)
        self.rpn_head = ProposalHead(width)
        self.roi_head = Regions(width)

    def forward(self, image):
        size = image.shape[2:]
        maps = self.neck(self.backbone(image))
        proposals = self.rpn_head(maps, size)
        logits, deltas = self.roi_head.bbox_head(pooled(maps, proposals, 7))
        scores = logits.softmax(1)[:, :-1].reshape(-1)
        deltas = deltas.view(-1, 4) * deltas.new_tensor([0.1, 0.1, 0.2, 0.2])
        boxes = decoded(proposals.repeat_interleave(CLASSES, 0), deltas, size)
        labels = torch.arange(CLASSES).repeat(len(proposals))
        there = scores > 0.05
        boxes, scores, labels = boxes[there], scores[there], labels[there]
        kept = suppressed(boxes, scores, labels, 0.5)[:100]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        masks = self.roi_head.mask_head(pooled(maps, boxes, 14))
        return boxes, scores, labels, masks[torch.arange(len(labels)), labels].sigmoid()


def anchors(size, stride):
    """`(h w 3, 4)`, around the upper left corners of the cells."""
    height, width = size
    base = []
    for ratio in RATIOS:
        w, h = 8 * stride / ratio**0.5, 8 * stride * ratio**0.5
        base.append([-w / 2, -h / 2, w / 2, h / 2])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shift = stride * torch.stack([x, y, x, y], -1).view(-1, 1, 4)
    return (shift + torch.tensor(base)).view(-1, 4)


def decoded(base, deltas, size):
    """Boxes from deltas, clipped to the image."""
    sides, centres = base[:, 2:] - base[:, :2], (base[:, 2:] + base[:, :2]) / 2
    centres = centres + deltas[:, :2] * sides
    half = sides * deltas[:, 2:].clamp(-LIMIT, LIMIT).exp() / 2
    height, width = size
    boxes = torch.cat([centres - half, centres + half], 1)
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def suppressed(boxes, scores, classes, threshold):
    """Indices of the boxes that remain, the best first: all at once, or class by class if many."""
    if len(boxes) < 10000:
        shifted = boxes + (classes * (boxes.max() + 1))[:, None] if len(boxes) else boxes
        return torchvision.ops.nms(shifted, scores, threshold)
    kept = []
    for label in classes.unique():
        own = (classes == label).nonzero()[:, 0]
        kept.append(own[torchvision.ops.nms(boxes[own], scores[own], threshold)])
    kept = torch.cat(kept)
    return kept[scores[kept].sort(descending=True)[1]]


def pooled(maps, boxes, bins):
    """`(R, C, bins, bins)`, from the level that fits each box."""
    sides = boxes[:, 2:] - boxes[:, :2]
    levels = (sides.prod(1).sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3).long()
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    output = boxes.new_zeros(len(boxes), maps[0].shape[1], bins, bins)
    for level, (x, stride) in enumerate(zip(maps[:4], STRIDES, strict=False)):
        own = (levels == level).nonzero()[:, 0]
        if len(own):
            output[own] = torchvision.ops.roi_align(
                x, rois[own], bins, 1 / stride, sampling_ratio=0, aligned=True
            )
    return output


def load(path):
    """A `MaskRCNN` holding an official checkpoint's weights, every one of them."""
    model = MaskRCNN()
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    return model
