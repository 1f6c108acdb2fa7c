"""Grad-CAM: which parts of an image speak for a class."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_internimage.visualize import figures
from keras_internimage.visualize import network as networks
from keras_internimage.visualize.arguments import ImageLike, Path, check_drawing
from keras_internimage.visualize.gradients import evaluated, gradient
from keras_internimage.visualize.images import prepare, save_png


def grad_cam(
    model: keras.Model,
    image: ImageLike,
    class_index: int | None = None,
    stage: int = 4,
    size: int | None = None,
    normalize: bool = True,
) -> np.ndarray:
    """The parts of an image that speak for a class, by the gradient at a stage's map.

    ```
    alpha[c] = mean over the map's pixels of  d score / d A[h, w, c]
    heat     = relu(sum over c of alpha[c] A[h, w, c]),  divided by its largest value
    ```

    A is the stage's map, score the class' logit: where the model ends with softmax or sigmoid,
    what comes before it. The map is scaled to the image bilinearly; its pixel (i, j) lies on the
    image's pixel (stride i, stride j), as the convolutions of stem and down-sampling have it.

    Args:
        model: a classifier with one InternImage in it: one of this package's, also with the head
            of InternImage-H and -G, or your own on a backbone. Its output is `(N, classes)`.
        image, size, normalize: see `sampling_points`.
        class_index: index of the class, None for the one with the largest score.
        stage: 1 to 4, whose map to take.

    Returns:
        float32 array `(H, W)` in [0, 1], of the size of the image that the model gets. All zeros
        where nothing speaks for the class.

    Raises:
        ValueError: an argument is not as said above; the score does not depend on the map.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017.
    """
    x, _ = prepare(model, image, size, normalize)
    heats, _ = _grad_cam(model, x, [class_index], (stage,))
    return heats[0][0]


def draw_grad_cam(
    model: keras.Model,
    image: ImageLike,
    class_index: int | Sequence[int] | None = None,
    stages: int | Sequence[int] = (4,),
    labels: Sequence[str] | None = None,
    size: int | None = None,
    normalize: bool = True,
    side: int = 300,
    path: Path | None = None,
) -> np.ndarray:
    """Draws the photograph, and `grad_cam` of one or several stages over it.

    Args:
        model, image, size, normalize: see `grad_cam`.
        class_index: one class or a list of them, None for the one with the largest score.
        stages: one stage or several.
        labels: names of all the classes, for the titles. Names that are not ASCII need fonts that
            matplotlib finds; a class whose name no font has is drawn as its index.
        side: side of each picture in pixels.
        path: where to save the drawing as PNG, None for nowhere. A file there is replaced.

    Returns:
        uint8 RGB array of the drawing.

    Raises:
        ValueError: as `grad_cam`; `path` is no PNG; `labels` are not as many as the classes.
        FileNotFoundError: the folder of `path` does not exist.
        ModuleNotFoundError: a name is not ASCII, and matplotlib is not installed.
    """
    check_drawing(side, path, labels)
    x, photo = prepare(model, image, size, normalize)
    shown = networks.find(model).check_stages(stages)
    classes = class_index if isinstance(class_index, (list, tuple)) else [class_index]
    panels = [figures.Panel(figures.resized(photo, side), "Photograph")]
    for own, index in zip(*_grad_cam(model, x, classes, shown, labels), strict=True):
        number = f"Class {index}"
        name = number if labels is None else str(labels[index])
        panels += [
            figures.Panel(
                figures.resized(figures.overlay(photo, heat), side), name, f"stage {stage}", number
            )
            for stage, heat in zip(shown, own, strict=True)
        ]
    picture = figures.row(panels, bar=("nothing for the class", "most"))
    if path is not None:
        save_png(picture, path)
    return picture


def _grad_cam(model, x, chosen, stages, labels=None):
    """Heat maps by class and stage, and the classes."""
    network = networks.find(model)
    stages = network.check_stages(stages)
    layers = [network.maps[stage] for stage in stages]
    logits = _before_activation(model)

    def scores_and_maps(x):
        with networks.replaced_calls(logits):
            scores, maps = networks.observe(
                model, network, x, [(layer, networks.output_of) for layer in layers]
            )
        if len(getattr(scores, "shape", ())) != 2:
            raise ValueError(
                "`model` must be a classifier with outputs (N, classes). Received: "
                f"'{model.name}' with outputs {getattr(scores, 'shape', type(scores).__name__)}"
            )
        return scores, maps

    def score(added, others):
        images, which = others
        moved = [(layer, _adding(more)) for layer, more in zip(layers, added, strict=True)]
        with networks.replaced_calls([*logits, *moved]):
            scores = model(images, training=False)
        return keras.ops.sum(keras.ops.cast(scores, "float32") * which)

    scores, maps = evaluated(scores_and_maps, model, x)
    if labels is not None and len(labels) != scores.shape[1]:
        raise ValueError(
            f"`labels` must name each of the model's {scores.shape[1]} classes. "
            f"Received: {len(labels)} names"
        )
    classes = [_class(index, scores[0]) for index in chosen]
    # The gradient by what is added to a map is the gradient by the map.
    gradients = gradient(score, model)
    heats = []
    for index in classes:
        which = np.float32(np.arange(scores.shape[1]) == index)[None]
        slopes = gradients([np.zeros_like(features) for features in maps], [x, which])
        for layer, slope in zip(layers, slopes, strict=True):
            if not slope.any():
                raise ValueError(
                    f"The score of class {index} must depend on the map of each stage asked for. "
                    f"Received: a gradient of zero at '{layer.name}'"
                )
        heats.append(
            [
                _heat(features, slope, networks.stride_of(stage), x.shape[1:3])
                for stage, features, slope in zip(stages, maps, slopes, strict=True)
            ]
        )
    return heats, classes


def _class(index, scores):
    if index is None:
        return int(np.argmax(scores))
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
        raise ValueError(f"`class_index` must be an int or None. Received: class_index={index!r}")
    if not 0 <= index < len(scores):
        raise ValueError(
            f"`class_index` must be from 0 to {len(scores) - 1}. Received: class_index={index}"
        )
    return int(index)


def _adding(more):
    def replace(call):
        def moved(*args, **kwargs):
            outputs = call(*args, **kwargs)
            return outputs + keras.ops.cast(more, outputs.dtype)

        return moved

    return replace


def _heat(features, slope, stride, size):
    heat = np.maximum(features[0].astype("float64") @ slope[0].astype("float64").mean((0, 1)), 0)
    return _to_image(heat / heat.max() if heat.any() else heat, stride, size)


def _before_activation(model):
    """Replacements of calls by which a classifier gives logits."""
    last = model
    while isinstance(last, keras.Model):
        # Only a Functional or Sequential model tells which layer makes its output.
        outputs = getattr(last, "outputs", None)
        if not outputs:
            return []
        last = outputs[0]._keras_history.operation
    if isinstance(last, keras.layers.Softmax):
        return [(last, lambda _: lambda inputs, *args, **kwargs: inputs)]
    activations = (keras.activations.softmax, keras.activations.sigmoid)
    if getattr(last, "activation", None) not in activations:
        return []

    def without_activation(call):
        def linear(*args, **kwargs):
            activation = last.activation
            last.activation = keras.activations.linear
            try:
                return call(*args, **kwargs)
            finally:
                last.activation = activation

        return linear

    return [(last, without_activation)]


def _to_image(heat, stride, size):
    """A map read bilinearly at each image pixel; its own pixels lie `stride` apart from (0, 0)."""

    def matrix(length, cells):
        position = np.minimum(np.arange(length) / stride, cells - 1)
        return np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)

    down, across = (matrix(length, cells) for length, cells in zip(size, heat.shape, strict=True))
    return np.float32(np.clip(down @ heat @ across.T, 0, 1))
