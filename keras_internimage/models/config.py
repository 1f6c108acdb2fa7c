"""The arguments of stem and stages, as one object."""

import dataclasses
from collections.abc import Sequence

from keras_internimage.layers.blocks import check_operator


@dataclasses.dataclass(frozen=True)
class InternImageConfig:
    """What stem and stages of an InternImage are made of.

    Attributes:
        channels, depths, groups, mlp_ratio, layer_scale, offset_scale, post_norm, res_post_norm,
            dw_kernel_size, level2_post_norm, level2_post_norm_block_ids, center_feature_scale,
            remove_center, drop_path_rate, implementation, core_op, dcn_output_bias,
            mlp_fc2_bias: as for `keras_internimage.InternImage`.

    Raises:
        ValueError: widths, depths, groups and the third stage's norms do not fit each other.
    """

    channels: int
    depths: Sequence[int]
    groups: Sequence[int]
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    offset_scale: float = 1.0
    post_norm: bool = False
    res_post_norm: bool = False
    dw_kernel_size: int | None = None
    level2_post_norm: bool = False
    level2_post_norm_block_ids: Sequence[int] | None = None
    center_feature_scale: bool = False
    remove_center: bool = False
    drop_path_rate: float = 0.0
    implementation: str | None = None
    core_op: str = "DCNv3"
    dcn_output_bias: bool = True
    mlp_fc2_bias: bool = True

    def __post_init__(self):
        for name in ("depths", "groups", "level2_post_norm_block_ids"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        check_operator(self.core_op, self.dcn_output_bias, self.mlp_fc2_bias)
        if self.core_op == "DCNv4" and self.remove_center:
            # The official files do not say how many points there are: the packing of offsets and
            # masks is known for all nine alone, which the official FlashInternImage always has.
            raise ValueError(
                "`remove_center` must be False for models with DCNv4. "
                f"Received: core_op={self.core_op!r}, remove_center={self.remove_center}"
            )
        if len(self.depths) != 4 or len(self.groups) != 4:
            raise ValueError(
                "`depths` and `groups` must have one entry for each of the 4 stages. "
                f"Received: depths={self.depths}, groups={self.groups}"
            )
        for stage, (depth, groups) in enumerate(zip(self.depths, self.groups, strict=True)):
            width = self.channels * 2**stage
            if depth < 1 or groups < 1 or width % groups:
                raise ValueError(
                    "Each stage must have at least one block and a number of groups that divides "
                    "its width, channels * 2**(stage - 1). Received: "
                    f"channels={self.channels}, depths={self.depths}, groups={self.groups}"
                )
        if not all(0 <= block < self.depths[2] for block in self.norms_after_blocks):
            raise ValueError(
                "`level2_post_norm_block_ids` must be indices of blocks of the third stage, from "
                f"0. Received: level2_post_norm_block_ids={self.level2_post_norm_block_ids}, "
                f"depths={self.depths}"
            )

    @property
    def norms_after_blocks(self) -> tuple[int, ...]:
        """Blocks of the third stage that a layer norm follows, counted from 0."""
        return tuple(self.level2_post_norm_block_ids or ()) if self.level2_post_norm else ()

    @property
    def stages_end_with_norm(self) -> bool:
        """Whether a layer norm ends each stage."""
        return not self.post_norm or self.center_feature_scale
