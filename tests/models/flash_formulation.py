"""FlashInternImage in PyTorch, in float64, on an official checkpoint's tensors by their names.

Written from the architecture's description alone, it shares no code with the package. It gives what
no stored number says: the outputs of B and L at full size.
"""

import torch
import torch.nn.functional as F


class Formulation:
    """`Formulation(tensors, config)(images)`: four maps `(N, H, W, C)` and the logits.

    Args:
        tensors: arrays by official name.
        config: the official constructor's arguments.
    """

    def __init__(self, tensors, config):
        self.tensors = {
            name: torch.from_numpy(array).double()
            for name, array in tensors.items()
            if not name.endswith("num_batches_tracked")
        }
        self.config = config
        self.unread = set(self.tensors)

    def __call__(self, images):
        """`images`: an array `(N, 3, H, W)`."""
        with torch.inference_mode():
            return self.forward(torch.from_numpy(images).double())

    def get(self, name):
        self.unread.discard(name)
        return self.tensors.get(name)

    def has(self, name):
        return name in self.tensors

    def forward(self, x):
        # Channels last between all parts.
        x = self.norm(
            self.conv(x.permute(0, 2, 3, 1), "patch_embed.conv1", 2), "patch_embed.norm1.1"
        )
        x = self.norm(self.conv(F.gelu(x), "patch_embed.conv2", 2), "patch_embed.norm2.1")
        maps = []
        for level, depth in enumerate(self.config["depths"]):
            after = list(self.config.get("level2_post_norm_block_ids") or ()) if level == 2 else []
            for block in range(depth):
                x = self.block(x, f"levels.{level}.blocks.{block}", self.config["groups"][level])
                if block in after:
                    x = self.norm(x, f"levels.2.post_norms.{after.index(block)}.0")
            if not self.config.get("post_norm"):
                x = self.norm(x, f"levels.{level}.norm.0")
            maps.append(x)
            if level < 3:
                name = f"levels.{level}.downsample"
                x = self.norm(self.conv(x, f"{name}.conv", 2), f"{name}.norm.1")
        x = self.conv(x, "conv_head.0", 1)
        mean, variance, scale, shift = (
            self.get(f"conv_head.1.0.{name}")
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.gelu((x - mean) / torch.sqrt(variance + 1e-5) * scale + shift)
        return [*maps, self.linear(x.mean((1, 2)), "head")]

    def block(self, x, name, groups):
        for branch, (norm, scale) in (
            (lambda x: self.dcn(x, f"{name}.dcn", groups), ("norm1", "gamma1")),
            (lambda x: self.mlp(x, f"{name}.mlp"), ("norm2", "gamma2")),
        ):
            norm = f"{name}.{norm}.0"
            if self.config.get("post_norm"):
                y = self.norm(branch(x), norm)
            else:
                y = branch(self.norm(x, norm))
            after = norm.replace(".norm", ".res_post_norm")
            y = self.norm(y, after) if self.has(f"{after}.weight") else y
            gamma = self.get(f"{name}.{scale}")
            x = x + (y if gamma is None else gamma * y)
        return x

    def mlp(self, x, name):
        return self.linear(F.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def dcn(self, x, name, groups):
        value = self.linear(x, f"{name}.value_proj")
        branch = x
        if self.has(f"{name}.offset_mask_dw.weight"):
            branch = self.conv(x, f"{name}.offset_mask_dw", 1, groups=x.shape[-1])
        packed = self.linear(branch, f"{name}.offset_mask")
        return self.linear(self.sample(value, packed, groups), f"{name}.output_proj")

    def sample(self, value, packed, groups):
        """Sums of nine samples; a group's channels are `x0 y0 ... x8 y8 m0 ... m8`."""
        n, height, width, channels = value.shape
        packed = packed[..., : 27 * groups].reshape(n, height, width, groups, 27)
        offsets, masks = packed[..., :18].unflatten(-1, (9, 2)), packed[..., 18:]
        scale = self.config.get("offset_scale", 1.0)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        value = value.reshape(n, height * width, groups, channels // groups)
        outputs = torch.zeros_like(value)
        for point in range(9):
            i, j = point // 3 - 1, point % 3 - 1  # columns first
            x = columns[None, :, :, None] + scale * (i + offsets[..., point, 0])
            y = rows[None, :, :, None] + scale * (j + offsets[..., point, 1])
            for x_cell in (x.floor(), x.floor() + 1):
                for y_cell in (y.floor(), y.floor() + 1):
                    weight = (1 - (x - x_cell).abs()) * (1 - (y - y_cell).abs())
                    inside = (0 <= x_cell) & (x_cell < width) & (0 <= y_cell) & (y_cell < height)
                    pixel = torch.where(inside, y_cell * width + x_cell, 0).long()
                    index = pixel.reshape(n, -1, groups, 1).expand_as(value)
                    weight = (masks[..., point] * weight * inside).reshape(n, -1, groups, 1)
                    outputs += weight * value.gather(1, index)
        return outputs.reshape(n, height, width, channels)

    def linear(self, x, name):
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def norm(self, x, name):
        scale, shift = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], scale, shift, 1e-6)

    def conv(self, x, name, stride, groups=1):
        weight = self.get(f"{name}.weight")
        options = {"stride": stride, "padding": weight.shape[-1] // 2, "groups": groups}
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, self.get(f"{name}.bias"), **options)
        return y.permute(0, 2, 3, 1)
