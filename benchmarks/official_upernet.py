"""UperNet over InternImage as the official PyTorch code computes it, to measure against.

Written down again from the description of the model, as `official.py` is: channels first in the
heads, all maps resized to the finest one's size and concatenated before the last 3 x 3
convolution, logits resized to the images' size. The names of the tensors are those of the official
checkpoints, less the auxiliary head, which is for training only.
"""

import official
import torch
import torch.nn.functional as F
from torch import nn

POOL_SIZES = (1, 2, 3, 6)


class Backbone(nn.Module):
    """The four stages' maps, channels first."""

    def __init__(self, channels, depths, groups, **block):
        super().__init__()
        self.patch_embed = official.Stem(channels)
        last = len(depths) - 1
        self.levels = nn.ModuleList(
            official.Stage(channels * 2**i, depth, groups[i], last=i == last, **block)
            for i, depth in enumerate(depths)
        )

    def forward(self, x):
        x = self.patch_embed(x)
        maps = []
        for stage in self.levels:
            for block in stage.blocks:
                x = block(x)
            x = x if stage.norm is None else stage.norm(x)
            maps.append(x.permute(0, 3, 1, 2).contiguous())
            x = x if stage.downsample is None else stage.downsample(x)
        return maps


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs, outputs, side):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Head(nn.Module):
    def __init__(self, inputs, channels, classes):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), Unit(inputs[-1], channels, 1))
            for size in POOL_SIZES
        )
        self.bottleneck = Unit(inputs[-1] + len(POOL_SIZES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(Unit(c, channels, 1) for c in inputs[:-1])
        self.fpn_convs = nn.ModuleList(Unit(channels, channels, 3) for _ in inputs[:-1])
        self.fpn_bottleneck = Unit(len(inputs) * channels, channels, 3)

    def forward(self, maps):
        laterals = [unit(x) for unit, x in zip(self.lateral_convs, maps, strict=False)]
        pooled = [resized(module(maps[-1]), maps[-1]) for module in self.psp_modules]
        laterals.append(self.bottleneck(torch.cat([maps[-1], *pooled], 1)))
        for k in range(len(laterals) - 1, 0, -1):
            laterals[k - 1] = laterals[k - 1] + resized(laterals[k], laterals[k - 1])
        levels = [unit(x) for unit, x in zip(self.fpn_convs, laterals, strict=False)]
        levels.append(laterals[-1])
        for k in range(len(levels) - 1, 0, -1):
            levels[k] = resized(levels[k], levels[0])
        return self.conv_seg(self.fpn_bottleneck(torch.cat(levels, 1)))


class UperNet(nn.Module):
    """UperNet-T unless said otherwise.

    Input `(N, 3, H, W)`; output `(N, classes, H, W)`, logits. No stochastic depth.
    """

    def __init__(
        self,
        channels=64,
        depths=(4, 4, 18, 4),
        groups=(4, 8, 16, 32),
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=False,
        classes=150,
        head_channels=512,
    ):
        super().__init__()
        self.backbone = Backbone(
            channels,
            depths,
            groups,
            layer_scale=layer_scale,
            offset_scale=offset_scale,
            post_norm=post_norm,
        )
        widths = [channels * 2**i for i in range(len(depths))]
        self.decode_head = Head(widths, head_channels, classes)

    def forward(self, x):
        return resized(self.decode_head(self.backbone(x)), x)


def resized(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def load(path, **config):
    """A `UperNet` holding an official checkpoint's weights, all but the auxiliary head's."""
    model = UperNet(**config)
    state = torch.load(path, weights_only=True)["state_dict"]
    state = {name: tensor for name, tensor in state.items() if "auxiliary_head" not in name}
    model.load_state_dict(state, strict=True)
    return model
