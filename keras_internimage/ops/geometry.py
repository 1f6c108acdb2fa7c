"""The geometry of one DCNv3 call: everything about it that is not a tensor."""

import dataclasses
import math
import numbers
from typing import TYPE_CHECKING, Any, TypeAlias

# Positions further than this from their pixel are outside every image. Infinities, and NaN with a
# minus sign, are replaced by it.
FAR = 2.0**24

# One number for both axes, or one for each: (vertical, horizontal).
PairLike: TypeAlias = int | tuple[int, int] | list[int]


def as_pair(name: str, value: PairLike, minimum: int = 1, odd: bool = False) -> tuple[int, int]:
    """`value` as a pair of ints (vertical, horizontal), each at least `minimum`, or also odd.

    Raises:
        ValueError: It is none, with `name` for what it is.
    """
    pair: Any = (value, value) if isinstance(value, numbers.Integral) else value
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in pair)
        or min(pair) < minimum
        or (odd and not all(v % 2 for v in pair))
    ):
        kind = "odd " if odd else ""
        raise ValueError(
            f"`{name}` must be an {kind}integer, or a pair of {kind}integers (height, width), not "
            f"below {minimum}. Received: {name}={value!r}"
        )
    return (int(pair[0]), int(pair[1]))


@dataclasses.dataclass(frozen=True)
class DCNv3Geometry:
    """Where the sampling points of a DCNv3 operator lie.

    With `P` points to a group, point `p` of the output pixel `(h, w)` reads the input at

    ```
    x = w * strides[1] - padding[1] + cx + offset_scale * (i * dilation_rate[1] - cx + dx)
    y = h * strides[0] - padding[0] + cy + offset_scale * (j * dilation_rate[0] - cy + dy)
    cx = dilation_rate[1] * (kernel_size[1] - 1) // 2,  cy likewise
    ```

    in pixels of the unpadded input. `i` runs over the kernel's columns and is the outer index,
    `j` runs over its rows and is the inner one ("x-major" order): `p = i * kernel_size[0] + j`.
    `offset_scale` scales the kernel's own grid as well as the learned offsets.

    Args:
        kernel_size: Integer or pair (height, width).
        strides: Integer or pair (vertical, horizontal).
        padding: Integer or pair; rows and columns of zeros on each side.
        dilation_rate: Integer or pair.
        groups: Number of groups; each has its own offsets and masks.
        offset_scale: Positive number.
        remove_center: Whether the kernel's middle point is left out. Needs odd kernel sizes
            and at least two points.

    Raises:
        ValueError: If an argument is not of the kind, or not in the range, given above.

    Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with
    Deformable Convolutions", 2023, and the order of points of its official code.
    """

    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation_rate: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_scale: float = 1.0
    remove_center: bool = False

    if TYPE_CHECKING:
        # More types are taken than the attributes have.
        def __init__(
            self,
            kernel_size: PairLike = 3,
            strides: PairLike = 1,
            padding: PairLike = 1,
            dilation_rate: PairLike = 1,
            groups: int = 1,
            offset_scale: float = 1.0,
            remove_center: bool = False,
        ) -> None: ...

    def __post_init__(self):
        def assign(name, value):
            object.__setattr__(self, name, value)

        assign("kernel_size", as_pair("kernel_size", self.kernel_size, 1))
        assign("strides", as_pair("strides", self.strides, 1))
        assign("padding", as_pair("padding", self.padding, 0))
        assign("dilation_rate", as_pair("dilation_rate", self.dilation_rate, 1))
        if (
            not isinstance(self.groups, numbers.Integral)
            or isinstance(self.groups, bool)
            or self.groups < 1
        ):
            raise ValueError(
                f"`groups` must be a positive integer. Received: groups={self.groups!r}"
            )
        assign("groups", int(self.groups))
        if (
            not isinstance(self.offset_scale, numbers.Real)
            or isinstance(self.offset_scale, bool)
            or not math.isfinite(self.offset_scale)
            or self.offset_scale <= 0
        ):
            raise ValueError(
                "`offset_scale` must be a positive finite number. "
                f"Received: offset_scale={self.offset_scale!r}"
            )
        assign("offset_scale", float(self.offset_scale))
        if not isinstance(self.remove_center, bool):
            raise ValueError(
                f"`remove_center` must be a boolean. Received: remove_center={self.remove_center!r}"
            )
        rows, columns = self.kernel_size
        if self.remove_center and (rows % 2 == 0 or columns % 2 == 0 or rows * columns == 1):
            raise ValueError(
                "`remove_center=True` needs a kernel with odd sizes and more than one point. "
                f"Received: kernel_size={self.kernel_size}"
            )

    @property
    def points(self) -> int:
        """`P`, the number of sampling points of a group."""
        return self.kernel_size[0] * self.kernel_size[1] - int(self.remove_center)

    @property
    def center(self) -> tuple[int, int]:
        """Pair of ints: the kernel's middle relative to its first row and column."""
        (step_y, step_x), (rows, columns) = self.dilation_rate, self.kernel_size
        return step_y * (rows - 1) // 2, step_x * (columns - 1) // 2

    def output_size(self, height: int | None, width: int | None) -> tuple:
        """Output size `(Ho, Wo)` for an input of `height` by `width` pixels.

        Either may be `None` (unknown), and so is the corresponding result then. Sizes may be
        symbolic integers of a backend; only Python integers are checked.

        Raises:
            ValueError: If the dilated kernel is larger than the padded input.
        """

        def one(name, size, axis):
            if size is None:
                return None
            span = self.dilation_rate[axis] * (self.kernel_size[axis] - 1) + 1
            out = (size + 2 * self.padding[axis] - span) // self.strides[axis] + 1
            if isinstance(out, int) and (out < 1 or size < 1):
                raise ValueError(
                    f"The padded input's {name} must be at least the dilated kernel's, {span}. "
                    f"Received: {name}={size}, padding={self.padding[axis]}, "
                    f"kernel_size={self.kernel_size[axis]}, "
                    f"dilation_rate={self.dilation_rate[axis]}"
                )
            return out

        return one("height", height, 0), one("width", width, 1)

    def grid(self) -> list[tuple[float, float]]:
        """The kernel's own points: a list of `P` pairs of floats `(x, y)`, scaled, x-major.

        The position of point `p` without a learned offset, relative to the pixel at
        `stride * output - padding + center`.
        """
        (rows, columns), (step_y, step_x), (y, x) = (
            self.kernel_size,
            self.dilation_rate,
            self.center,
        )
        points = [(i * step_x - x, j * step_y - y) for i in range(columns) for j in range(rows)]
        if self.remove_center:
            del points[len(points) // 2]
        return [(self.offset_scale * i, self.offset_scale * j) for i, j in points]
