"""The published sizes of InternImage and FlashInternImage as data, and the rules for new ones.

A variant is decided by four numbers (C1, C', L1, L3), from which `stack` makes widths,
groups and depths; `scale` goes from one variant to a larger one. Source: Wang et al.,
"InternImage", CVPR 2023, section 3.2 and table 1; InternImage-G and everything the paper
leaves out (norms, layer scale, offset scale, resolutions): the official checkpoints.
FlashInternImage has DCNv4 in place of DCNv3: Xiong et al., "Efficient Deformable ConvNets",
CVPR 2024, and its official configuration files.
"""

import dataclasses
import math
from typing import Any

STAGES = 4


def stack(
    channels: int, group_channels: int, depth1: int, depth3: int, depth4: int | None = None
) -> dict[str, Any]:
    """Widths, groups and depths of the four stages by the paper's stacking rules.

    ```
    C_i = 2^(i-1) C1      G_i = C_i / C'      L1 = L2 = L4      L1 <= L3
    ```

    Args:
        channels: C1, channels of the first stage.
        group_channels: C', channels of a DCNv3 group, must divide C1.
        depth1: L1, blocks of the first, second and fourth stage.
        depth3: L3, blocks of the third stage, at least L1.
        depth4: L4 where it departs from the third rule, as in InternImage-G alone.

    Returns:
        A dict with `channels` (C1) and the 4-tuples `widths`, `groups` and `depths`.

    Raises:
        ValueError: an argument breaks a rule.
    """
    for name, value in (
        ("channels", channels),
        ("group_channels", group_channels),
        ("depth1", depth1),
        ("depth3", depth3),
    ):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive int. Received: {name}={value!r}")
    if channels % group_channels:
        raise ValueError(
            "`group_channels` (C') must divide `channels` (C1). "
            f"Received: group_channels={group_channels}, channels={channels}"
        )
    if depth1 > depth3:
        raise ValueError(
            "`depth1` (L1) must not be greater than `depth3` (L3). "
            f"Received: depth1={depth1}, depth3={depth3}"
        )
    widths = tuple(channels * 2**i for i in range(STAGES))
    return {
        "channels": channels,
        "widths": widths,
        "groups": tuple(width // group_channels for width in widths),
        "depths": (depth1, depth1, depth3, depth1 if depth4 is None else depth4),
    }


def scale(
    phi: float,
    channels: int = 64,
    group_channels: int = 16,
    depth1: int = 4,
    depth3: int = 18,
    alpha: float = 1.09,
    beta: float = 1.36,
) -> dict[str, int]:
    """The four numbers of a variant scaled up by the paper's compound factor.

    ```
    D' = alpha^phi D  with  D = 3 L1 + L3,     C1' = beta^phi C1,     alpha beta^1.99 = 2
    ```

    so that each unit of `phi` about doubles the parameters. The paper leaves open how the
    result is made whole: here C1' goes to the nearest multiple of C', L1' to the nearest
    int of `alpha^phi L1`, and L3' takes the rest of D'. The published variants follow the
    rule by choice rather than by the letter: T and S are exactly `scale(0)` and `scale(1)`,
    B and L have the widths of `scale(2)` and `scale(3)` and are shallower; XL is narrower
    than `scale(4)`, H and G change C' as well.

    Args:
        phi: compound factor, at least 0.
        channels, group_channels, depth1, depth3: the variant to start from (InternImage-T).
        alpha, beta: growth of depth and width, at least 1.

    Returns:
        A dict of `channels`, `group_channels`, `depth1`, `depth3`: arguments for `stack`.

    Raises:
        ValueError: `phi` is negative, or `alpha` or `beta` less than 1.
    """
    if phi < 0 or alpha < 1 or beta < 1:
        raise ValueError(
            "`phi` must be at least 0, `alpha` and `beta` at least 1. "
            f"Received: phi={phi}, alpha={alpha}, beta={beta}"
        )
    depth = round(alpha**phi * (3 * depth1 + depth3))
    scaled_depth1 = max(1, round(alpha**phi * depth1))
    width = beta**phi * channels / group_channels
    return {
        "channels": group_channels * max(1, math.floor(width + 0.5)),
        "group_channels": group_channels,
        "depth1": scaled_depth1,
        "depth3": depth - 3 * scaled_depth1,
    }


@dataclasses.dataclass(frozen=True)
class Variant:
    """One size of a family: the paper's four numbers and what else tells it apart.

    Attributes:
        c1, group_channels, depth1, depth3, depth4: arguments of `stack`.
        resolution: side in pixels of the images the published classifier was trained on.
        layer_scale: initial value of the residual branches' factors, None without.
        offset_scale: factor of the operator's grid and offsets.
        post_norm, res_post_norm: where a block's layer norms stand (see `InternImageBlock`).
        dw_kernel_size: side of the depthwise convolution before the offsets, None (of DCNv4
            alone) without.
        center_feature_scale: blend the operator's output with its input.
        post_norm_period: a layer norm follows every so many blocks of the third stage, 0 none.
        use_clip_projector: attention pooling in place of average pooling.
        core_op: the operator, "DCNv3" or "DCNv4".
        dcn_output_bias, mlp_fc2_bias: whether the last layer of each of a block's two branches
            has a bias, as with DCNv3 it always has.
    """

    c1: int
    group_channels: int
    depth1: int
    depth3: int
    resolution: int
    depth4: int | None = None
    layer_scale: float | None = None
    offset_scale: float = 1.0
    post_norm: bool = False
    res_post_norm: bool = False
    dw_kernel_size: int | None = 3
    center_feature_scale: bool = False
    post_norm_period: int = 0
    use_clip_projector: bool = False
    core_op: str = "DCNv3"
    dcn_output_bias: bool = True
    mlp_fc2_bias: bool = True

    def config(self) -> dict[str, Any]:
        """Arguments for `InternImage`, by the names of the official constructor."""
        stages = stack(self.c1, self.group_channels, self.depth1, self.depth3, self.depth4)
        period = self.post_norm_period
        return {
            "channels": stages["channels"],
            "depths": stages["depths"],
            "groups": stages["groups"],
            "layer_scale": self.layer_scale,
            "offset_scale": self.offset_scale,
            "post_norm": self.post_norm,
            "res_post_norm": self.res_post_norm,
            "dw_kernel_size": self.dw_kernel_size,
            "level2_post_norm": period > 0,
            "level2_post_norm_block_ids": (
                tuple(range(period - 1, self.depth3, period)) if period else None
            ),
            "center_feature_scale": self.center_feature_scale,
            "use_clip_projector": self.use_clip_projector,
            "core_op": self.core_op,
            "dcn_output_bias": self.dcn_output_bias,
            "mlp_fc2_bias": self.mlp_fc2_bias,
        }


_SCALED: dict[str, Any] = {"post_norm": True, "layer_scale": 1e-5}
_LARGE: dict[str, Any] = {**_SCALED, "offset_scale": 2.0}
_GIANT: dict[str, Any] = {
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "post_norm_period": 6,
    "use_clip_projector": True,
}
_FLASH: dict[str, Any] = {"core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}
# What keys of FlashInternImage's rows begin with.
FLASH = "Flash"

VARIANTS = {
    #           C1, C', L1, L3, resolution
    "T": Variant(64, 16, 4, 18, 224),
    "S": Variant(80, 16, 4, 21, 224, **_SCALED),
    "B": Variant(112, 16, 4, 21, 224, **_SCALED),
    "L": Variant(160, 16, 5, 22, 384, **_LARGE),
    "XL": Variant(192, 16, 5, 24, 384, **_LARGE),
    "H": Variant(320, 32, 6, 32, 640, res_post_norm=True, **_GIANT),
    "G": Variant(512, 32, 2, 48, 512, depth4=4, post_norm=True, **_GIANT),
    "FlashT": Variant(64, 16, 4, 18, 224, dw_kernel_size=None, **_FLASH),
    "FlashS": Variant(80, 16, 4, 21, 224, **_SCALED, **_FLASH),
    "FlashB": Variant(112, 16, 4, 21, 224, offset_scale=0.5, **_SCALED, **_FLASH),
    "FlashL": Variant(160, 16, 5, 22, 384, **_LARGE, core_op="DCNv4"),
}


def title(variant: str) -> str:
    """What a variant is called: "InternImage-T" for "T", "FlashInternImage-T" for "FlashT"."""
    size = variant.removeprefix(FLASH)
    return f"{variant.removesuffix(size)}InternImage-{size}"


def function_name(variant: str) -> str:
    """The name of a variant's model function: "InternImageT", "FlashInternImageT"."""
    return title(variant).replace("-", "")


def model_name(variant: str) -> str:
    """The name of a variant's models: "internimage_t", "flash_internimage_t"."""
    return title(variant).replace("FlashI", "flash_i").replace("-", "_").lower()


def base(variant: str) -> str:
    """The InternImage of the same size: "T" for "T" and for "FlashT"."""
    return variant.removeprefix(FLASH)
