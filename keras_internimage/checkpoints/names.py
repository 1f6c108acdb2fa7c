"""Keras variables <-> tensors of the official checkpoints: names and layouts.

An ordered table gives for every layer its official counterpart and its kind; a kind says
which weights the layer has and how each is laid out on the other side. Every layout change
is a permutation or a concatenation, so it is undone exactly, and the same table carries
gradients over.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one Keras variable is made of official tensors.

    Attributes:
        to_keras: official arrays -> the Keras array.
        to_official: the Keras array -> a tuple of official arrays.
    """

    to_keras: Callable[..., np.ndarray]
    to_official: Callable[[np.ndarray], tuple[np.ndarray, ...]]

    def official_shapes(self, shape):
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

# Kinds of layers: the weights in the order in which Keras stores them, each with the ending
# of its official names ("+" separates the two that are joined) and its layout.
NORM = (("gamma", ".weight", SAME), ("beta", ".bias", SAME))
LINEAR = (("kernel", ".weight", TRANSPOSED), ("bias", ".bias", SAME))
CONV = (("kernel", ".weight", CONVOLUTION), ("bias", ".bias", SAME))
DEPTHWISE_CONV = (("kernel", ".weight", DEPTHWISE), ("bias", ".bias", SAME))
BATCH_NORM = NORM + (
    ("moving_mean", ".running_mean", SAME),
    ("moving_variance", ".running_var", SAME),
)
OFFSET_MASK = (
    ("kernel", ".offset.weight+.mask.weight", JOINED_KERNEL),
    ("bias", ".offset.bias+.mask.bias", JOINED_BIAS),
)
CENTER_SCALE = (("kernel", "_weight", TRANSPOSED), ("bias", "_bias", SAME))
ATTENTION_INPUT = (("kernel", ".weight", TRANSPOSED), ("bias", "_bias", SAME))
SHUFFLED_CONV = (("kernel", ".weight", SHUFFLED_KERNEL), ("bias", ".bias", SHUFFLED_BIAS))
SCALES = (("gamma1", ".gamma1", SAME), ("gamma2", ".gamma2", SAME))

# Keras layer, official module, kind. {i} and {j} count from 1 on the left; {i-1} and so on
# is the official count from 0.
_BLOCK = "stage{i}_block{j}"
_OFFICIAL_BLOCK = "levels.{i-1}.blocks.{j-1}"
LAYERS = (
    ("stem/conv{k}", "patch_embed.conv{k}", CONV),
    ("stem/norm{k}", "patch_embed.norm{k}.1", NORM),
    (f"{_BLOCK}/norm{{k}}", f"{_OFFICIAL_BLOCK}.norm{{k}}.0", NORM),
    (f"{_BLOCK}/dcn/center_feature_scale",
     f"{_OFFICIAL_BLOCK}.dcn.center_feature_scale_proj", CENTER_SCALE),
    (f"{_BLOCK}/dcn/dw_conv", f"{_OFFICIAL_BLOCK}.dcn.dw_conv.0", DEPTHWISE_CONV),
    (f"{_BLOCK}/dcn/dw_norm", f"{_OFFICIAL_BLOCK}.dcn.dw_conv.1.1", NORM),
    (f"{_BLOCK}/dcn/offset_mask", f"{_OFFICIAL_BLOCK}.dcn", OFFSET_MASK),
    (f"{_BLOCK}/dcn/input_proj", f"{_OFFICIAL_BLOCK}.dcn.input_proj", LINEAR),
    (f"{_BLOCK}/dcn/output_proj", f"{_OFFICIAL_BLOCK}.dcn.output_proj", LINEAR),
    (f"{_BLOCK}/mlp_fc{{k}}", f"{_OFFICIAL_BLOCK}.mlp.fc{{k}}", LINEAR),
    (_BLOCK, _OFFICIAL_BLOCK, SCALES),
    (f"{_BLOCK}/res_post_norm{{k}}", f"{_OFFICIAL_BLOCK}.res_post_norm{{k}}.0", NORM),
    ("stage3_post_norm{k}", "levels.2.post_norms.{k-1}.0", NORM),
    ("stage{i}_norm", "levels.{i-1}.norm.0", NORM),
    ("stage{i}_downsample/conv", "levels.{i-1}.downsample.conv", CONV),
    ("stage{i}_downsample/norm", "levels.{i-1}.downsample.norm.1", NORM),
    ("head_conv", "conv_head.0", CONV),
    ("head_norm", "conv_head.1.0", BATCH_NORM),
    ("head_x4", "dcnv3_head_x4.0", SHUFFLED_CONV),
    ("head_x3", "dcnv3_head_x3", CONV),
    ("attention_pool/norm_{s}", "clip_projector.norm1_{s}.0", NORM),
    ("attention_pool/query", "clip_projector.cross_dcn.q", ATTENTION_INPUT),
    ("attention_pool/key", "clip_projector.cross_dcn.k", ATTENTION_INPUT),
    ("attention_pool/value", "clip_projector.cross_dcn.v", ATTENTION_INPUT),
    ("attention_pool/proj", "clip_projector.cross_dcn.proj", LINEAR),
    ("fc_norm", "fc_norm.0", NORM),
    ("predictions", "head", LINEAR),
)  # fmt: skip

CLASSIFIER = ("head.weight", "head.bias")
_HEAD = ("conv_head.", "dcnv3_head_x4.", "dcnv3_head_x3.", "clip_projector.", "fc_norm.", "head.")
# Counters of batch normalisation's updates: no part of the function.
BATCH_COUNTER = "num_batches_tracked"


def _pattern(layer):
    layer = re.sub(r"\{([ijk])\}", r"(?P<\1>[0-9]+)", layer)
    return re.compile(layer.replace("{s}", "(?P<s>[qkv])"))


_PATTERNS = tuple((_pattern(layer), official, kind) for layer, official, kind in LAYERS)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the table says of one Keras variable.

    Attributes:
        path: the variable's path from the layer on, without a model's name before it.
        official: names of the official tensors it is made of.
        layout: how.
    """

    path: str
    official: tuple[str, ...]
    layout: Layout


@functools.lru_cache(maxsize=8192)
def _layer(path):
    """The table's layer a layer's path ends in: (path, official module, kind) or None."""
    parts = path.split("/")
    for start in range(len(parts)):
        candidate = "/".join(parts[start:])
        for pattern, official, kind in _PATTERNS:
            match = pattern.fullmatch(candidate)
            if match:
                return candidate, _fill(official, match.groupdict()), kind
    return None


def _fill(official, values):
    for key, value in values.items():
        official = official.replace(f"{{{key}}}", value)
        if value.isdigit():
            official = official.replace(f"{{{key}-1}}", str(int(value) - 1))
    return official


def weight_path(layer, index):
    """Path of the weight that Keras stores as number `index` of a layer, or None.

    Args:
        layer: names of the layer and of those around it, joined by `/`.
        index: position among the layer's own weights.
    """
    found = _layer(layer)
    if found is None or index >= len(found[2]):
        return None
    return f"{found[0]}/{found[2][index][0]}"


def entry(path):
    """The table's entry for a Keras variable.

    Args:
        path: `variable.path`, with or without the model's name before it.

    Returns:
        An `Entry`, or None when the variable is none of InternImage's weights.
    """
    layer, _, leaf = path.rpartition("/")
    found = _layer(layer)
    if found is None:
        return None
    layer, module, kind = found
    for name, endings, layout in kind:
        if name == leaf:
            official = tuple(module + ending for ending in endings.split("+"))
            return Entry(f"{layer}/{leaf}", official, layout)
    return None


def to_official(path, array):
    """Split a Keras variable's value, or its gradient, into official tensors.

    Args:
        path: `variable.path`.
        array: NumPy array of the variable's shape.

    Returns:
        A dict of contiguous arrays by official name.

    Raises:
        ValueError: the path is none of InternImage's weights.
    """
    found = _known(path)
    parts = found.layout.to_official(np.asarray(array))
    return {
        name: np.ascontiguousarray(part) for name, part in zip(found.official, parts, strict=True)
    }


def to_keras(path, official):
    """Make a Keras variable's value of official tensors: the inverse of `to_official`.

    Args:
        path: `variable.path`.
        official: arrays by official name, more are ignored.

    Returns:
        A contiguous array in Keras' layout.

    Raises:
        ValueError: the path is none of InternImage's weights.
        KeyError: a tensor is missing.
    """
    found = _known(path)
    return np.ascontiguousarray(found.layout.to_keras(*(official[name] for name in found.official)))


def _known(path):
    found = entry(path)
    if found is None:
        raise ValueError(f"The path must be one of InternImage's weights. Received: path={path!r}")
    return found


def is_head(official_name):
    """Whether an official tensor belongs to the classifier rather than to the backbone."""
    return official_name.startswith(_HEAD)


def _official_pattern(module, ending):
    text = re.escape(module + ending)
    text = re.sub(r"\\\{[ijk](\\-1)?\\\}", "[0-9]+", text)
    return text.replace(r"\{s\}", "[qkv]")


_OFFICIAL = re.compile(
    "|".join(
        sorted(
            {
                _official_pattern(module, ending)
                for _, module, kind in LAYERS
                for _, endings, _ in kind
                for ending in endings.split("+")
            }
        )
    )
)


def is_official(name):
    """Whether `name` is one of the names the official models use."""
    return _OFFICIAL.fullmatch(name) is not None
