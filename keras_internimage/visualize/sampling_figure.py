"""The paper's figure: the sampling points of a pixel, drawn on the photograph, stage by stage."""

import typing
from collections.abc import Sequence

import keras
import numpy as np

from keras_internimage.visualize import figures
from keras_internimage.visualize import network as networks
from keras_internimage.visualize.arguments import ImageLike, Path, check_drawing
from keras_internimage.visualize.images import prepare, save_png
from keras_internimage.visualize.sampling import Places, chain_of, sampling_points_of

SUPERSAMPLING = 3
# Points outside the photograph are drawn on a frame of at most this part of its side.
WIDEST_FRAME = 0.25
# Of more points than this, only the heaviest are drawn, which hold this part of the weight.
MANY, SHARE = 500, 0.95
FRAME = (226, 226, 230)
QUERY = (64, 224, 255)


def draw_sampling_points(
    model: keras.Model,
    image: ImageLike,
    stages: int | Sequence[int] = (1, 2, 3, 4),
    at: Places | None = None,
    block: int = -1,
    blocks: int | typing.Literal["stage"] = 1,
    group: int | None = None,
    size: int | None = None,
    normalize: bool = True,
    side: int = 300,
    path: Path | None = None,
) -> np.ndarray:
    """Draws `sampling_points` on the image: one picture a stage.

    The output pixel is in the middle of a cross. Its points are discs, larger and brighter the
    larger their weight, relative to the largest of the picture; of more than 500 points, the
    heaviest are drawn that hold 95 % of the weight. Where points lie outside the image, it gets a
    frame.

    Args:
        model, image, block, group, size, normalize: see `sampling_points`.
        stages: one stage or several.
        at: `(x, y)` in pixels of the image as the model gets it, or a list; None for the centre.
        blocks: how many blocks to go through, or "stage" for all of each stage.
        side: side of each picture in pixels.
        path: where to save the drawing as PNG, None for nowhere. A file there is replaced.

    Returns:
        uint8 RGB array of the drawing.

    Raises:
        ValueError: as `sampling_points`; `path` is no PNG.
        FileNotFoundError: the folder of `path` does not exist.
    """
    check_drawing(side, path)
    network = networks.find(model)
    chosen = network.check_stages(stages)
    x, photo = prepare(model, image, size, normalize)
    chains = []
    for stage in chosen:
        (last,) = chain_of(network, stage, block, 1)
        through = network.blocks[stage].index(last) + 1 if blocks == "stage" else blocks
        chains.append((stage, chain_of(network, stage, block, through)))
    found = sampling_points_of(model, network, x, chains, at, None, group)
    frame = max(_outside(points, photo.shape) for points in found)
    frame = int(np.ceil(min(frame, WIDEST_FRAME * max(photo.shape[:2]))))
    panels = [
        figures.Panel(
            _picture(photo, points, frame, side), f"Stage {stage}", _caption(points, photo, frame)
        )
        for stage, points in zip(chosen, found, strict=True)
    ]
    picture = figures.row(panels, bar=("small weight", "large"))
    if path is not None:
        save_png(picture, path)
    return picture


def _drawn(points):
    """Which points are drawn, bool `(Q, K)`: of many only the heaviest, of few all."""
    weights = np.abs(points.weights)
    count = (weights > 0).sum(axis=1, keepdims=True)
    order = np.argsort(-weights, axis=1, kind="stable")
    heaviest = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(heaviest, axis=1) - heaviest
    share = np.where(count > MANY, SHARE, 1.0)
    kept = before < share * weights.sum(axis=1, keepdims=True)
    result = np.zeros(weights.shape, bool)
    np.put_along_axis(result, order, kept, axis=1)
    return result & (weights > 0)


def _outside(points, shape):
    """How far the farthest point drawn lies outside the image, in pixels."""
    places = points.positions[_drawn(points)]
    if not len(places):
        return 0.0
    return max(0.0, -places.min(), (places - np.array([shape[1] - 1, shape[0] - 1])).max())


def _caption(points, photo, frame):
    drawn = _drawn(points)
    total = int((points.weights != 0).sum())
    lines = [f"{total:,} points"]
    if len(points.blocks) > 1:
        lines[0] += f", {len(points.blocks)} blocks"
    if drawn.sum() < total:
        lines.append(f"{drawn.sum():,} with {100 * SHARE:.0f} % of the weight")
    height, width = photo.shape[:2]
    x, y = np.moveaxis(points.positions, -1, 0)
    away = (x < -frame) | (y < -frame) | (x > width - 1 + frame) | (y > height - 1 + frame)
    if (away & drawn).any():
        lines.append(f"{(away & drawn).sum():,} farther outside")
    return "\n".join(lines)


def _picture(photo, points, frame, side):
    from PIL import Image, ImageDraw

    height, width = photo.shape[:2]
    # Grey and darker, so that the points stand out whatever lies under them.
    grey = photo.astype("float64").mean(axis=-1, keepdims=True)
    base = np.full((height + 2 * frame, width + 2 * frame, 3), FRAME, "uint8")
    inner = base[frame : frame + height, frame : frame + width]
    inner[:] = np.uint8(0.7 * (0.5 * photo + 0.5 * grey))
    canvas = Image.fromarray(figures.resized(base, side * SUPERSAMPLING))
    zoom = side * SUPERSAMPLING / max(base.shape[:2])
    layer = Image.new("RGBA", canvas.size)
    draw = ImageDraw.Draw(layer)
    # Pixels' centres are at integers in positions, half a pixel from the edge in a drawing.
    drawn = _drawn(points)
    places = (points.positions[drawn] + frame + 0.5) * zoom
    relative = np.abs(points.weights[drawn])
    relative = relative / relative.max(initial=1e-30)
    crowd = np.clip(len(relative) / 100, 1, 6) ** 0.5
    unit = side * SUPERSAMPLING / 100
    for index in np.argsort(relative, kind="stable"):
        strength = relative[index]
        radius = unit * (0.75 + 1.15 * np.sqrt(strength)) / crowd
        fill = tuple(int(c) for c in figures.colours(0.3 + 0.65 * strength))
        alpha = int(255 * (0.55 + 0.45 * strength))
        _disc(draw, places[index], radius, (*fill, alpha), (0, 0, 0, alpha), unit * 0.22)
    for place in (points.queries + frame + 0.5) * zoom:
        _cross(draw, place, 3.0, unit)
    canvas.paste(layer, mask=layer)
    size = tuple(length // SUPERSAMPLING for length in canvas.size)
    return np.asarray(canvas.resize(size, Image.Resampling.LANCZOS))


def _disc(draw, place, radius, fill, outline, width):
    x, y = place
    box = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(box, fill, outline, max(1, round(width)))


def _cross(draw, place, arm, unit):
    """A cross with an open middle, so that it hides no points there."""
    x, y = place
    for colour, width, more in (((0, 0, 0, 255), 2.0, 0.4), ((*QUERY, 255), 1.1, 0)):
        near, far = (2.4 - more) * unit, (2.4 + arm + more) * unit
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            line = (x + dx * near, y + dy * near, x + dx * far, y + dy * far)
            draw.line(line, colour, round(width * unit))
