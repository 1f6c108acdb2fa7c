"""InternImage's official PyTorch code path for CPUs, written down again to measure against.

The official repository has CUDA kernels for DCNv3 and, where they cannot run, PyTorch code. What
follows has the structure of the latter: the operator with sampling grids in normalised
coordinates and `grid_sample` on images rearranged to channels first; convolutions on channels
first, everything else on channels last, with a permutation at each change. The names of a
`Classifier`'s tensors are those of the official checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import nn

POINTS = 9
LAYER_NORM_EPSILON = 1e-6


def operator(inputs, offset, mask, groups, offset_scale=1.0):
    """DCNv3 with 3 x 3 points, stride 1 and padding 1; `mask` is normalised already."""
    n, height, width, channels = inputs.shape
    inputs = F.pad(inputs, (0, 0, 1, 1, 1, 1))
    device = inputs.device
    # Made on the device: a copy from the host would wait for it.
    sizes = torch.stack([torch.full((), side + 2.0, device=device) for side in (width, height)])
    y, x = torch.meshgrid(
        torch.linspace(1.5, height + 0.5, height, device=device),
        torch.linspace(1.5, width + 0.5, width, device=device),
        indexing="ij",
    )
    reference = (torch.stack((x, y), -1) / sizes).reshape(1, height, width, 1, 2)
    steps = torch.arange(-1.0, 2, device=device)
    i, j = torch.meshgrid(steps, steps, indexing="ij")
    kernel = (torch.stack((i, j), -1) / sizes).reshape(1, POINTS, 2).repeat(groups, 1, 1)
    kernel = kernel.reshape(1, 1, 1, -1, 2) * offset_scale
    places = (reference + kernel).repeat(n, 1, 1, 1, 1).flatten(3, 4)
    places = places + offset * offset_scale / sizes.repeat(groups * POINTS)
    grids = (2 * places - 1).view(n, height * width, groups, POINTS, 2)
    grids = grids.transpose(1, 2).flatten(0, 1)
    images = inputs.view(n, -1, channels).transpose(1, 2)
    images = images.reshape(n * groups, channels // groups, height + 2, width + 2)
    samples = F.grid_sample(
        images, grids, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    mask = mask.view(n, height * width, groups, POINTS).transpose(1, 2)
    mask = mask.reshape(n * groups, 1, height * width, POINTS)
    output = (samples * mask).sum(-1).view(n, channels, height * width)
    return output.transpose(1, 2).reshape(n, height, width, channels).contiguous()


def normalised(mask, groups):
    """The softmax over the points of each group."""
    shape = mask.shape
    return F.softmax(mask.reshape(*shape[:3], groups, POINTS), -1).reshape(shape)


class ToLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class ToFirst(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


def norm(channels, channels_first=False, back=False):
    """A layer norm; on channels first if so said, and then back to them."""
    layers = [nn.LayerNorm(channels, eps=LAYER_NORM_EPSILON)]
    if channels_first:
        layers.insert(0, ToLast())
    if back:
        layers.append(ToFirst())
    return nn.Sequential(*layers)


class Stem(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels // 2, 3, stride=2, padding=1)
        self.norm1 = norm(channels // 2, channels_first=True, back=True)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = norm(channels, channels_first=True)

    def forward(self, x):
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = norm(2 * channels, channels_first=True)

    def forward(self, x):
        return self.norm(self.conv(x.permute(0, 3, 1, 2)))


class DCNv3(nn.Module):
    # What stands in its place computes the same: `benchmarks.gpu` has the official kernels there.
    operator = staticmethod(operator)

    def __init__(self, channels, groups, offset_scale):
        super().__init__()
        self.groups = groups
        self.offset_scale = offset_scale
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            norm(channels, channels_first=True),
            nn.GELU(),
        )
        self.offset = nn.Linear(channels, groups * POINTS * 2)
        self.mask = nn.Linear(channels, groups * POINTS)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, x):
        value = self.input_proj(x)
        features = self.dw_conv(x.permute(0, 3, 1, 2))
        offset = self.offset(features)
        mask = normalised(self.mask(features), self.groups)
        return self.output_proj(self.operator(value, offset, mask, self.groups, self.offset_scale))


class Perceptron(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, channels, groups, offset_scale, layer_scale, post_norm):
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = norm(channels)
        self.dcn = DCNv3(channels, groups, offset_scale)
        self.norm2 = norm(channels)
        self.mlp = Perceptron(channels)
        self.gamma1 = self.gamma2 = None
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(layer_scale * torch.ones(channels))
            self.gamma2 = nn.Parameter(layer_scale * torch.ones(channels))

    def forward(self, x):
        x = self._branch(x, self.norm1, self.dcn, self.gamma1)
        return self._branch(x, self.norm2, self.mlp, self.gamma2)

    def _branch(self, x, norm, function, gamma):
        y = norm(function(x)) if self.post_norm else function(norm(x))
        return x + (y if gamma is None else gamma * y)


class Stage(nn.Module):
    def __init__(self, channels, depth, groups, last, **block):
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, groups, **block) for _ in range(depth))
        self.norm = None if block["post_norm"] else norm(channels)
        self.downsample = None if last else Downsample(channels)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        for layer in (self.norm, self.downsample):
            x = x if layer is None else layer(x)
        return x


class Classifier(nn.Module):
    """InternImage-T, -S, -B, -L or -XL; the arguments are the official constructor's.

    Input `(N, 3, H, W)`, output `(N, num_classes)`, logits. No stochastic depth.
    """

    def __init__(
        self,
        channels=64,
        depths=(4, 4, 18, 4),
        groups=(4, 8, 16, 32),
        layer_scale=None,
        offset_scale=1.0,
        post_norm=False,
        num_classes=1000,
    ):
        super().__init__()
        self.patch_embed = Stem(channels)
        self.levels = nn.ModuleList(
            Stage(
                channels * 2**i,
                depth,
                group_count,
                last=i == len(depths) - 1,
                offset_scale=offset_scale,
                layer_scale=layer_scale,
                post_norm=post_norm,
            )
            for i, (depth, group_count) in enumerate(zip(depths, groups, strict=True))
        )
        width = channels * 2 ** (len(depths) - 1)
        self.conv_head = nn.Sequential(
            nn.Conv2d(width, width * 3 // 2, 1, bias=False),
            nn.Sequential(nn.BatchNorm2d(width * 3 // 2)),
            nn.GELU(),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.head = nn.Linear(width * 3 // 2, num_classes)

    def forward(self, x):
        x = self.patch_embed(x)
        for stage in self.levels:
            x = stage(x)
        x = self.conv_head(x.permute(0, 3, 1, 2))
        return self.head(self.avgpool(x).flatten(1))


def load(path, **config):
    """A `Classifier` holding an official checkpoint's weights, every one of them."""
    model = Classifier(**config)
    model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True)
    return model
