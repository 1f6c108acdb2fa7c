"""Where DCNv3 reads: sampling points of output pixels, in the image."""

import typing
from collections.abc import Sequence

import keras
import numpy as np

from keras_internimage.visualize import network as networks
from keras_internimage.visualize.arguments import ImageLike
from keras_internimage.visualize.gradients import evaluated
from keras_internimage.visualize.images import prepare

# One pair of coordinates, or several.
Places: typing.TypeAlias = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


class SamplingPoints(typing.NamedTuple):
    """The sampling points of Q output pixels, K of each.

    Positions are `(x, y)` in pixels of the image that the model gets, with integers at the centres
    of pixels: (0, 0) is the centre of the upper left one. Points may lie outside the image, where
    the operator reads zeros.

    Attributes:
        positions: float64 `(Q, K, 2)`, where the points lie.
        weights: float64 `(Q, K)`, what each is multiplied with. Softmax weights of a pixel add up
            to 1.
        queries: float64 `(Q, 2)`, where the output pixels themselves lie.
        pixels: int `(Q, 2)`, row and column of the output pixels in the block's map.
        stride: image pixels between two pixels of the map.
        groups: number of groups that the K points of a pixel are from.
        blocks: names of the blocks sampled through, the last one first.
    """

    positions: np.ndarray
    weights: np.ndarray
    queries: np.ndarray
    pixels: np.ndarray
    stride: int
    groups: int
    blocks: tuple[str, ...]


def sampling_points(
    model: keras.Model,
    image: ImageLike,
    stage: int = 3,
    at: Places | None = None,
    pixels: Places | None = None,
    block: int = -1,
    blocks: int = 1,
    group: int | None = None,
    size: int | None = None,
    normalize: bool = True,
) -> SamplingPoints:
    """The points of the image at which a block's DCNv3 samples, for chosen output pixels.

    Offsets and masks are those that the layer predicts for this image. With G groups of P points,
    the output pixel's groups follow each other, each with its points in the operator's order:
    `positions.reshape(Q, G, P, 2)`. Weights are `mask / G`, the mean over the groups; of a single
    `group` they are its mask. Where the layer has `center_feature_scale`, of share s, masks are
    multiplied by `1 - s`, and each group has one more point, the pixel itself, of weight s.

    With `blocks=k`, they are the points of points, through the last k blocks up to `block`, as
    in the figures of papers on deformable convolutions. A point between pixels reads its four
    neighbours, each with its bilinear weight, and each of them is an output pixel of the block
    before: weights are multiplied along the way, averaged over the groups. Residual connections,
    MLPs and norms between two blocks do not move anything and are left out. Points of the
    same pixel of the first of the k blocks' outputs are joined; where pixels have different numbers
    of points, `positions` and `weights` are filled with their own position and 0.

    Args:
        model: a model with one InternImage in it: a classifier, an `InternImageBackbone`, or a
            model with these inside.
        image: a path, PIL image or uint8 array `(H, W, 3)`, cut and scaled by
            `preprocessing.load_image`; or a float array `(H, W, 3)` or `(1, H, W, 3)`, which the
            model gets as it is.
        stage: 1 to 4.
        at: `(x, y)`, or a list of them, in pixels of the image as the model gets it: the nearest
            output pixels are taken. Default: the image's centre.
        pixels: instead of `at`, `(row, column)` or a list of them, in the block's map.
        block: index of the block in the stage, from 0, or from -1 backwards.
        blocks: how many blocks to go through.
        group: index of one group of `block`'s DCNv3; None takes all.
        size: side of photographs in pixels, where the model takes any (default 224).
        normalize: False for a model that takes pixel values of 0 to 255 and scales them itself.

    Returns:
        `SamplingPoints`.

    Raises:
        ValueError: an argument is not as said above, or the model has no InternImage.

    Source: Wang et al., "InternImage", CVPR 2023, figure on sampling locations; points of points:
    Dai et al., "Deformable Convolutional Networks", ICCV 2017.
    """
    network = networks.find(model)
    x, _ = prepare(model, image, size, normalize)
    chain = chain_of(network, stage, block, blocks)
    return sampling_points_of(model, network, x, [(stage, chain)], at, pixels, group)[0]


def sampling_points_of(model, network, x, chains, at, pixels, group):
    """`SamplingPoints` of several chains of blocks, by one call of the model.

    Args:
        model, network: the model called and its `Network`.
        x: array `(1, H, W, 3)`.
        chains: pairs `(stage, blocks)`, the last block first.
        at, pixels, group: see `sampling_points`.
    """
    for _, chain in chains:
        _check_group(group, chain[0].dcn.groups)
    layers = [block.dcn for _, chain in chains for block in chain]
    predictions = iter(_predictions(model, network, x, layers))
    return [
        _points_of(stage, chain, [next(predictions) for _ in chain], at, pixels, group)
        for stage, chain in chains
    ]


def _points_of(stage, chain, levels, at, pixels, group):
    stride = networks.stride_of(stage)
    pixels = _pixels(levels[0][0].shape[:2], stride, at, pixels)
    found = [_compose(levels, tuple(pixel), group) for pixel in pixels]
    count = max(len(weights) for _, weights in found)
    queries = pixels[:, ::-1].astype("float64")
    positions = np.repeat(queries[:, None], count, axis=1)
    weights = np.zeros((len(found), count))
    for query, (own_positions, own_weights) in enumerate(found):
        positions[query, : len(own_weights)] = own_positions
        weights[query, : len(own_weights)] = own_weights
    return SamplingPoints(
        positions * stride,
        weights,
        queries * stride,
        pixels,
        stride,
        1 if group is not None else chain[0].dcn.groups,
        tuple(layer.name for layer in chain),
    )


def chain_of(network, stage, block, blocks):
    """The blocks to go through, the last first."""
    network.check_stage(stage)
    own = network.blocks[stage]
    if isinstance(block, bool) or not isinstance(block, int) or not -len(own) <= block < len(own):
        raise ValueError(
            f"`block` must be the index of one of the {len(own)} blocks of stage {stage}. "
            f"Received: block={block!r}"
        )
    last = block % len(own)
    if isinstance(blocks, bool) or not isinstance(blocks, int) or not 1 <= blocks <= last + 1:
        raise ValueError(
            f"`blocks` must be 1 to {last + 1}, the blocks of stage {stage} up to the chosen one. "
            f"Received: blocks={blocks!r}"
        )
    return own[last - blocks + 1 : last + 1][::-1]


def _check_group(group, groups):
    if group is not None and (
        isinstance(group, bool) or not isinstance(group, int) or not 0 <= group < groups
    ):
        raise ValueError(
            f"`group` must be None or the index of one of the {groups} groups. "
            f"Received: group={group!r}"
        )


def _pixels(map_size, stride, at, pixels):
    """Rows and columns of the output pixels, int `(Q, 2)`."""
    height, width = map_size
    if at is not None and pixels is not None:
        raise ValueError(f"Only one of `at` and `pixels` must be given. Received: {at=}, {pixels=}")
    if pixels is not None:
        pixels = np.asarray(pixels)
        if pixels.dtype.kind not in "iu" or pixels.shape[-1:] != (2,) or pixels.ndim not in (1, 2):
            raise ValueError(
                "`pixels` must be (row, column) or a list of them, integers. "
                f"Received: pixels={pixels.tolist()}"
            )
        pixels = pixels.reshape(-1, 2)
        if (pixels < 0).any() or (pixels >= map_size).any():
            raise ValueError(
                f"`pixels` must lie in the map of {height} x {width} pixels. "
                f"Received: pixels={pixels.tolist()}"
            )
        return pixels.astype(int)
    if at is None:
        return np.array([[height // 2, width // 2]])
    at = np.asarray(at, "float64")
    if at.shape[-1:] != (2,) or at.ndim not in (1, 2) or not np.isfinite(at).all():
        raise ValueError(f"`at` must be (x, y) or a list of them. Received: at={at.tolist()}")
    at = at.reshape(-1, 2)
    if (at < -0.5).any() or (at > np.array([width, height]) * stride - 0.5).any():
        raise ValueError(
            f"`at` must lie in the image, {width * stride} pixels wide and {height * stride} high. "
            f"Received: at={at.tolist()}"
        )
    nearest = np.floor(at[:, ::-1] / stride + 0.5).astype(int)
    return np.minimum(nearest, np.array(map_size) - 1)


def _predictions(model, network, x, layers):
    """`_positions` of each of the layers."""

    def predict(dcn, inputs, _):
        # Within the layer's call: types and scopes are those in which it computes.
        return dcn.predict_points(inputs)

    def predictions(x):
        return networks.observe(model, network, x, [(dcn, predict) for dcn in layers])[1]

    for dcn, tensors in zip(layers, evaluated(predictions, model, x), strict=True):
        yield _positions(dcn, *(None if tensor is None else tensor[0] for tensor in tensors))


def _positions(dcn, offset, mask, scale):
    """Where and with which weights each output pixel of a layer samples its input.

    Returns:
        positions `(Ho, Wo, G, P, 2)`, `(x, y)` in pixels of the input, and weights
        `(Ho, Wo, G, P)`, both with one more point where there is a `scale`.
    """
    geometry = dcn.geometry
    height, width = offset.shape[:2]
    groups, points = geometry.groups, geometry.points
    offset = offset.astype("float64")
    if mask is None:
        offset, mask = np.split(offset, [2 * groups * points], axis=-1)
    mask = mask.reshape(height, width, groups, points).astype("float64")
    if dcn.mask_activation == "softmax":
        mask = np.exp(mask - mask.max(axis=-1, keepdims=True))
        mask /= mask.sum(axis=-1, keepdims=True)
    start = [c - p for c, p in zip(geometry.center, geometry.padding, strict=True)]
    rows = np.arange(height) * geometry.strides[0] + start[0]
    columns = np.arange(width) * geometry.strides[1] + start[1]
    origin = np.stack(np.meshgrid(columns, rows), axis=-1)[:, :, None, None]
    offset = offset.reshape(height, width, groups, points, 2) * geometry.offset_scale
    positions = origin + np.array(geometry.grid()) + offset
    if scale is not None:
        scale = scale[..., None].astype("float64")
        own = np.broadcast_to(origin, (height, width, groups, 1, 2))
        positions = np.concatenate([positions, own], axis=3)
        mask = np.concatenate([mask * (1 - scale), scale], axis=3)
    return positions, mask


def _compose(levels, pixel, group):
    """Positions `(K, 2)` and weights `(K,)` of one output pixel through several layers."""
    (positions, weights), *before = levels
    positions, weights = positions[pixel], weights[pixel]
    if group is not None:
        positions, weights = positions[group : group + 1], weights[group : group + 1]
    weights = weights / len(weights)
    for own_positions, own_weights in before:
        share = _splat(positions.reshape(-1, 2), weights.ravel(), own_positions.shape[:2])
        pixels = np.nonzero(share)
        positions = own_positions[pixels]
        weights = own_weights[pixels] * share[pixels][:, None, None] / own_weights.shape[2]
    return positions.reshape(-1, 2), weights.ravel()


def _splat(positions, weights, size):
    """What bilinear reading at the positions takes from each pixel of a map `(height, width)`."""
    shares = np.zeros(size)
    corner = np.floor(positions)
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = (corner + (right, below)).T
        part = weights * np.prod(1 - np.abs(positions - np.stack([x, y], axis=-1)), axis=-1)
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
        np.add.at(shares, (y[inside].astype(int), x[inside].astype(int)), part[inside])
    return shares
