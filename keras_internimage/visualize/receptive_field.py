"""Effective receptive fields: how much each image pixel matters to the centre of a stage's map."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_internimage.visualize import figures
from keras_internimage.visualize import network as networks
from keras_internimage.visualize.arguments import ImageLike, Path, check_drawing
from keras_internimage.visualize.gradients import gradient
from keras_internimage.visualize.images import prepare_several, save_png

STAGES = (1, 2, 3, 4)


def receptive_field(
    model: keras.Model,
    images: ImageLike | Sequence[ImageLike],
    stages: int | Sequence[int] = STAGES,
    pixel: tuple[int, int] | None = None,
    draws: int = 4,
    seed: int = 0,
    size: int | None = None,
    normalize: bool = True,
) -> np.ndarray:
    """The effective receptive field of one pixel of each stage's map, averaged over images.

    ```
    R[h, w] = mean over images and v of  sum over colours of |d (v . f[pixel]) / d image[h, w]|
    ```

    divided by its sum, where f is the output of the stage's last block and v is a vector of random
    signs, one for each channel. The plain sum of the channels (all signs +) will not do here: f
    holds the output of a layer norm, whose channels add up to a constant as long as its factors
    are equal, and its gradient would be noise.

    Args:
        model: a model with one InternImage in it, see `sampling_points`.
        images: one image, a list of them, or an array `(N, H, W, 3)`, each as for
            `sampling_points` and all of the same size.
        stages: which of the stages 1 to 4.
        pixel: `(row, column)` in each stage's map, None for the one at the image's centre.
        draws: how many v to average over, for each image.
        seed: of the signs.
        size, normalize: see `sampling_points`.

    Returns:
        float64 array `(stages, H, W)`; each stage's values add up to 1.

    Raises:
        ValueError: an argument is not as said above, or the gradient vanishes.

    Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural
    Networks", NeurIPS 2016.
    """
    x = [x for x, _ in prepare_several(model, images, size, normalize)]
    return _receptive_field(model, x, stages, pixel, draws, seed)


def area_share(field: np.ndarray, share: float) -> float:
    """The smallest part of the image's area that holds a given share of a receptive field.

    Args:
        field: array of values that are not negative, `(H, W)`.
        share: of their sum, above 0 and at most 1.

    Returns:
        Number of pixels over H W, in (0, 1].

    Raises:
        ValueError: an argument is not as said above.
    """
    values = np.sort(np.asarray(field, "float64").ravel())[::-1]
    if np.ndim(field) != 2 or not np.isfinite(values).all() or values[-1] < 0 or not values[0]:
        raise ValueError(
            "`field` must be (H, W), finite, not negative and not all zero. "
            f"Received: shape={np.shape(field)}"
        )
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be above 0 and at most 1. Received: share={share!r}")
    sums = np.cumsum(values)
    # Rounding may leave the last sums a little apart.
    return float(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12)) + 1) / values.size


def draw_receptive_field(
    model: keras.Model,
    images: ImageLike | Sequence[ImageLike],
    stages: int | Sequence[int] = STAGES,
    pixel: tuple[int, int] | None = None,
    draws: int = 4,
    seed: int = 0,
    size: int | None = None,
    normalize: bool = True,
    gamma: float = 0.3,
    side: int = 300,
    path: Path | None = None,
) -> np.ndarray:
    """Draws `receptive_field`: one picture a stage, with the area that holds 50 and 95 % of it.

    Args:
        model, images, stages, pixel, draws, seed, size, normalize: see `receptive_field`.
        gamma: brightness is `(R / max R) ** gamma`.
        side: side of each picture in pixels.
        path: where to save the drawing as PNG, None for nowhere. A file there is replaced.

    Returns:
        uint8 RGB array of the drawing.

    Raises:
        ValueError: as `receptive_field`; `gamma` is not positive, or `path` no PNG.
        FileNotFoundError: the folder of `path` does not exist.
    """
    check_drawing(side, path)
    if not gamma > 0:
        raise ValueError(f"`gamma` must be positive. Received: gamma={gamma!r}")
    prepared = prepare_several(model, images, size, normalize)
    fields = _receptive_field(model, [x for x, _ in prepared], stages, pixel, draws, seed)
    panels = []
    for stage, field in zip(networks.find(model).check_stages(stages), fields, strict=True):
        half, most = (area_share(field, share) for share in (0.5, 0.95))
        picture = figures.colours(np.power(field / field.max(), gamma))
        panels.append(
            figures.Panel(
                figures.resized(picture, side),
                f"Stage {stage}",
                f"50 %: {_percent(half)} of the area\n95 %: {_percent(most)} of the area",
            )
        )
    picture = figures.row(panels, bar=("no contribution", "largest"))
    if path is not None:
        save_png(picture, path)
    return picture


def _percent(part):
    return f"{100 * part:.{1 if part >= 0.001 else 2}f} %"


def _receptive_field(model, x, stages, pixel, draws, seed):
    network = networks.find(model)
    stages = network.check_stages(stages)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"`draws` must be a positive int. Received: draws={draws!r}")
    if len({image.shape for image in x}) > 1:
        raise ValueError(
            "`images` must be of the same size. "
            f"Received: {sorted({image.shape[1:3] for image in x})}"
        )
    blocks = [network.blocks[stage][-1] for stage in stages]

    def projection(images, signs):
        observers = [(block, networks.output_of) for block in blocks]
        _, maps = networks.observe(model, network, images[0], observers)
        return sum(
            keras.ops.sum(keras.ops.cast(_at(features, pixel, block), "float32") * own)
            for features, own, block in zip(maps, signs, blocks, strict=True)
        )

    gradients = gradient(projection, model)
    rng = np.random.default_rng(seed)
    fields = np.zeros((len(stages), *x[0].shape[1:3]))
    for image in x:
        several = np.repeat(image, draws, axis=0)
        for index in range(len(stages)):
            # The draws are a batch; of the other stages nothing is asked.
            signs = [np.zeros((draws, block.mlp_fc2.units), "float32") for block in blocks]
            signs[index] += rng.choice(np.float32([-1, 1]), signs[index].shape)
            (found,) = gradients([several], signs)
            fields[index] += np.abs(found.astype("float64")).sum(axis=(0, 3))
    sums = fields.sum(axis=(1, 2), keepdims=True)
    if not np.isfinite(sums).all() or not sums.all():
        raise ValueError(
            "The gradient of each stage must be finite and not all zero. "
            f"Received: sums {dict(zip(stages, sums.ravel().tolist(), strict=True))}"
        )
    return fields / sums


def _at(features, pixel, block):
    """The features `(N, C)` of one pixel, None for the middle one."""
    height, width = features.shape[1:3]
    row, column = (height // 2, width // 2) if pixel is None else pixel
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f"`pixel` must lie in the map of '{block.name}', {height} x {width} pixels. "
            f"Received: pixel={pixel}"
        )
    return features[:, row, column]
