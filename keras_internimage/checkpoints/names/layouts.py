"""How Keras variables are laid out in the official files, and which weights a layer has.

Every layout change is a permutation or a concatenation, so it is undone exactly, and gradients
are carried over as weights are. What the official code stores without using it comes back as zeros.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from keras_internimage.ops.dcnv4 import channels as packed_channels
from keras_internimage.ops.dcnv4 import packing


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one Keras variable is made of official tensors.

    Attributes:
        to_keras: official arrays -> the Keras array.
        to_official: the Keras array -> a tuple of official arrays.
    """

    to_keras: Callable[..., np.ndarray]
    to_official: Callable[[np.ndarray], tuple[np.ndarray, ...]]

    def official_shapes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Shapes of the official tensors of a Keras variable of this shape."""
        # Broadcasting one element costs no memory, whatever the shape.
        return tuple(part.shape for part in self.to_official(np.broadcast_to(np.int8(0), shape)))


def _axes(*order):
    inverse = tuple(np.argsort(order))
    return Layout(lambda w: w.transpose(order), lambda w: (w.transpose(inverse),))


def _split_points(joined, axis):
    # Two coordinates and one mask entry per sampling point: offsets first, two thirds of all.
    return tuple(np.split(joined, [joined.shape[axis] // 3 * 2], axis=axis))


# PixelShuffle reads output channel c at (dy, dx) from channel 4c + 2dy + dx, Keras' depth to
# space from (2dy + dx) C + c.
def _to_depth_to_space(w, axis=0):
    shape = w.shape
    w = w.reshape(*shape[:axis], shape[axis] // 4, 4, *shape[axis + 1 :])
    return np.swapaxes(w, axis, axis + 1).reshape(shape)


def _from_depth_to_space(w, axis=0):
    shape = w.shape
    w = w.reshape(*shape[:axis], 4, shape[axis] // 4, *shape[axis + 1 :])
    return np.swapaxes(w, axis, axis + 1).reshape(shape)


SAME = Layout(lambda w: w, lambda w: (w,))
TRANSPOSED = _axes(1, 0)
CONVOLUTION = _axes(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)
DEPTHWISE = _axes(2, 3, 0, 1)  # (channels, 1, h, w) -> (h, w, channels, 1)
JOINED_KERNEL = Layout(
    lambda offset, mask: np.concatenate([offset.T, mask.T], axis=1),
    lambda w: tuple(part.T for part in _split_points(w, 1)),
)
JOINED_BIAS = Layout(
    lambda offset, mask: np.concatenate([offset, mask]),
    lambda w: _split_points(w, 0),
)
SHUFFLED_KERNEL = Layout(
    lambda w: _to_depth_to_space(w.transpose(2, 3, 1, 0), 3),
    lambda w: (_from_depth_to_space(w, 3).transpose(3, 2, 0, 1),),
)
SHUFFLED_BIAS = Layout(_to_depth_to_space, lambda w: (_from_depth_to_space(w),))

# DCNv4's offsets and masks: official rows go group by group, with unused ones at the end. How
# many groups there are is seen from their number, as all official models have nine points.
_POINTS = 9


def _from_packed(w):
    return w[packing(w.shape[0] // (3 * _POINTS), _POINTS)]


def _to_packed(w):
    groups, rest = divmod(w.shape[0], 3 * _POINTS)
    if rest:
        raise ValueError(f"Points of DCNv4 must be {_POINTS} a group. Received: {w.shape[0]} units")
    packed = np.zeros((packed_channels(groups, _POINTS), *w.shape[1:]), w.dtype)
    packed[packing(groups, _POINTS)] = w
    return packed


PACKED_KERNEL = Layout(lambda w: _from_packed(w).T, lambda w: (_to_packed(w.T),))
PACKED_BIAS = Layout(_from_packed, lambda w: (_to_packed(w),))

# A matrix on what was pooled in 7 x 7 bins: official inputs are ordered by channel, row, column,
# Keras' by row, column, channel.
_BINS = 7
POOLED_KERNEL = Layout(
    lambda w: w.reshape(w.shape[0], -1, _BINS, _BINS).transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
    lambda w: (
        w.reshape(_BINS, _BINS, -1, w.shape[1]).transpose(3, 2, 0, 1).reshape(w.shape[1], -1),
    ),
)

# Kinds of layers: the weights in the order in which Keras stores them, each with the ending
# of its official names ("+" separates the two that are joined) and its layout.
Kind = tuple[tuple[str, str, Layout], ...]
NORM: Kind = (("gamma", ".weight", SAME), ("beta", ".bias", SAME))
LINEAR: Kind = (("kernel", ".weight", TRANSPOSED), ("bias", ".bias", SAME))
LINEAR_WITHOUT_BIAS: Kind = (("kernel", ".weight", TRANSPOSED),)
POOLED_LINEAR: Kind = (("kernel", ".weight", POOLED_KERNEL), ("bias", ".bias", SAME))
CONV: Kind = (("kernel", ".weight", CONVOLUTION), ("bias", ".bias", SAME))
CONV_WITHOUT_BIAS: Kind = (("kernel", ".weight", CONVOLUTION),)
DEPTHWISE_CONV: Kind = (("kernel", ".weight", DEPTHWISE), ("bias", ".bias", SAME))
BATCH_NORM: Kind = NORM + (
    ("moving_mean", ".running_mean", SAME),
    ("moving_variance", ".running_var", SAME),
)
OFFSET_MASK: Kind = (
    ("kernel", ".offset.weight+.mask.weight", JOINED_KERNEL),
    ("bias", ".offset.bias+.mask.bias", JOINED_BIAS),
)
PACKED_OFFSET_MASK: Kind = (
    ("kernel", ".weight", PACKED_KERNEL),
    ("bias", ".bias", PACKED_BIAS),
)
CENTER_SCALE: Kind = (("kernel", "_weight", TRANSPOSED), ("bias", "_bias", SAME))
ATTENTION_INPUT: Kind = (("kernel", ".weight", TRANSPOSED), ("bias", "_bias", SAME))
SHUFFLED_CONV: Kind = (("kernel", ".weight", SHUFFLED_KERNEL), ("bias", ".bias", SHUFFLED_BIAS))
SCALES: Kind = (("gamma1", ".gamma1", SAME), ("gamma2", ".gamma2", SAME))
