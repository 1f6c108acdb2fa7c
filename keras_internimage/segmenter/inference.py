"""From an image to the class of each of its pixels, as the official models are tested."""

import math
import numbers
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_internimage import backends
from keras_internimage.data import ahead
from keras_internimage.data.labels import check_unique
from keras_internimage.data.palette import Colour, default_palette
from keras_internimage.data.resizing import (
    Map,
    Resizing,
    Rows,
    bands,
    check_positive,
    resize_image,
    resized,
    scaled,
)
from keras_internimage.layers import BilinearResizing
from keras_internimage.layers.resampling import two_sizes
from keras_internimage.preprocessing import preprocess_input, read_image
from keras_internimage.segmenter.windows import Windows

if TYPE_CHECKING:
    import PIL.Image

# Of the published multi-scale numbers, which also average over mirrored images.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# How far the sum of a softmax' outputs may be from 1: they are rounded to bfloat16 by some models.
_ROUNDED = 0.02


class Segmenter:
    """A segmentation model with its classes and its preprocessing.

    ```
    image -> resizing -> normalisation -> logits -> bilinear to the size that the model saw
          -> bilinear to the image's own size -> softmax -> argmax
    ```

    With several scales or mirrored images, probabilities are averaged. The two last sizes are made
    a few rows at a time, so that not the size of the image decides on the memory, but that which
    the model sees.

    Args:
        model: a Keras model from normalised images `(N, H, W, 3)` to logits `(N, h, w, classes)`,
            or to a dict with "logits". A `UperNet` is run up to its last convolution, at 1/4. Of a
            model that ends in a softmax, the logarithms of its probabilities are taken: they are
            logits, too, and give the same result.
        labels: names of the classes, two or more. Outputs of the model beyond them are left out:
            those for Cityscapes have 150, of which 19 mean something.
        palette: a colour for each class; None takes `data.palette.default_palette`.
        resizing: the size at which the model sees images. None leaves them at their own, or at the
            model's where that is fixed.
        crop: None for the whole image at once, or the side, or height and width, of a sliding
            window: scores are averaged over the windows that cover a pixel.
        stride: of the window, one int or two, at most `crop`. None takes 2/3 of it.
        scales: factors of the image's size, such as `SCALES`.
        flip: whether mirrored images are averaged in.
        batch_size: windows at a time.

    Raises:
        ValueError: an argument is not as said above.
    """

    def __init__(
        self,
        model: "keras.Model",
        labels: Sequence[str],
        *,
        palette: Sequence[Colour] | None = None,
        resizing: Resizing | None = None,
        crop: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 4,
    ):
        outputs = check_model(model)
        self.labels = tuple(map(str, labels))
        # Of one class, every pixel would be it.
        if not 2 <= len(self.labels) <= outputs:
            raise ValueError(
                f"labels must be at least two, and no more than the model's outputs, {outputs}. "
                f"Received: {len(self.labels)} labels"
            )
        check_unique("labels", self.labels)
        self.palette = _colours(palette, len(self.labels))
        if not isinstance(resizing, Resizing | None):
            raise ValueError(
                f"resizing must be a Resizing or None. Received: resizing={resizing!r}"
            )
        self.model, self.resizing, self.flip = model, resizing, bool(flip)
        self.scales = _positive(scales)
        check_positive("batch_size", batch_size)
        self.batch_size = batch_size
        self.crop, self.stride = _window(crop, stride)
        self._network, self._fixed = _unscaled(model), model.input_shape[1:3]
        if any(self._fixed):
            self._check_fixed()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def predict(self, images: Any) -> list[np.ndarray]:
        """The most probable class of each pixel of images; those of files are turned upright.

        Args:
            images: a path, a folder (all images below it), a `PIL.Image.Image`, a uint8 array
                `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, or a sequence of those, a uint8 array
                `(N, H, W, 3)` included.

        Returns:
            For each image what `label_map` gives, at the image's size.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError, MemoryError: an image cannot be read, or as `label_map`.
        """
        return [self.label_map(read_image(image)) for image in ahead.sequence(images)]

    def label_map(self, image: "PIL.Image.Image") -> np.ndarray:
        """The most probable class of each pixel.

        Args:
            image: of Pillow, RGB, upright.

        Returns:
            uint8 array `(H, W)`, or int32 for more than 256 classes.

        Raises:
            ValueError: `image` is not as said above, or the model gives infinite logits or NaN.
            MemoryError: what the model makes of the image does not fit into memory.
        """
        dtype = "uint8" if self.classes <= 256 else "int32"
        labels = np.empty((image.height, image.width), dtype)
        for start, stop, scores in self._scores(image):
            labels[start:stop] = scores.argmax(-1)
        return labels

    def probabilities(self, image: "PIL.Image.Image") -> np.ndarray:
        """The probability of each class in each pixel.

        Args:
            image: as for `label_map`.

        Returns:
            float32 array `(H, W, classes)`; 0.6 KB a pixel for 150 classes.

        Raises:
            ValueError, MemoryError: as `label_map`.
        """
        made = np.empty((image.height, image.width, self.classes), "float32")
        several = len(self.scales) > 1 or self.flip
        for start, stop, scores in self._scores(image):
            made[start:stop] = scores if several else _softmax(scores)
        return made

    def export(self, path: str | os.PathLike, **options: Any) -> pathlib.Path:
        """Writes the model as a file for another program, with preprocessing and labels.

        The file takes images at the size that the model is to see, and gives the classes that
        have labels.

        Args:
            path: as for `keras_internimage.export`.
            **options: of `keras_internimage.export`. Here `include_preprocessing` is True and
                `labels` are the segmenter's unless given. `include_argmax=True` gives the class of
                each pixel in place of logits.

        Returns:
            `path`, as a `pathlib.Path`.

        Raises:
            ValueError, ImportError, RuntimeError: as `keras_internimage.export`.
        """
        from keras_internimage import exports

        model, logits = self.model, _logits(self.model)
        if logits is not None and self.classes < logits.shape[-1]:
            # Before they are resized.
            model = self._network
            logits = BilinearResizing()([model.output[..., : self.classes], model.input])
        if logits is not None and (model is not self.model or isinstance(model.output, dict)):
            model = keras.Model(model.input, logits, name=self.model.name)
        options = {"include_preprocessing": True, "labels": self.labels, **options}
        return exports.export(model, path, **options)

    def _scores(self, image):
        """Yields `(start, stop, scores)` of all rows of an image.

        Scores are logits, or, with several scales or flips, the mean of probabilities.
        """
        if getattr(image, "mode", None) != "RGB":
            raise ValueError(f"image must be a PIL image of mode RGB. Received: image={image!r}")
        pixels = np.asarray(image)
        flips = (False, True) if self.flip else (False,)
        views = [self._view(pixels, scale, flip) for scale in self.scales for flip in flips]
        height, width = pixels.shape[:2]
        for start, stop in bands(height, width * self.classes):
            if len(views) == 1:
                yield start, stop, views[0].rows(start, stop)
                continue
            mean = 0
            for view in views:
                mean = mean + _softmax(view.rows(start, stop))
            yield start, stop, mean / np.float32(len(views))

    def _view(self, pixels, scale, flip) -> Rows:
        """Logits at the size of an image, as the model sees it at one scale."""
        height, width = pixels.shape[:2]
        seen = resize_image(pixels, self._sizes(height, width, scale))
        seen = preprocess_input(seen.astype("float32"))
        if flip:
            seen = seen[:, ::-1]
        rows: Rows
        if self.crop is None:
            # Mirroring and this resizing may change places.
            logits = self._predict(seen[None])[0]
            rows = resized(Map(logits[:, ::-1] if flip else logits), *seen.shape[:2])
        else:
            rows = Windows(self._predict, seen, self.crop, self.stride, self.batch_size)
            rows = _Mirrored(rows) if flip else rows
        return resized(rows, height, width)

    def _sizes(self, height, width, scale):
        if self.crop is None and any(self._fixed):
            return [(self._fixed[0] or height, self._fixed[1] or width)]
        if self.resizing is None:
            return [(scaled(height, scale), scaled(width, scale))]
        return self.resizing.sizes(height, width, scale)

    def _predict(self, images):
        with backends.memory_errors():
            outputs = self._network.predict_on_batch(np.ascontiguousarray(images))
        if isinstance(outputs, dict):
            outputs = outputs["logits"]
        scores = np.asarray(keras.ops.convert_to_numpy(outputs), "float32")
        if _are_probabilities(scores):
            scores = np.log(np.maximum(scores, np.finfo("float32").tiny))
        scores = scores[..., : self.classes]
        if not np.isfinite(scores).all():
            raise ValueError(
                "The model's logits must be finite. Received: infinite ones or NaN from "
                f"{self.model.name}, for images of {images.shape[2]} x {images.shape[1]} pixels"
            )
        return scores

    def _check_fixed(self):
        shape = f"the model takes images of {self._fixed[0]} x {self._fixed[1]} pixels"
        if self.crop is not None:
            if any(n not in (None, side) for n, side in zip(self._fixed, self.crop, strict=True)):
                raise ValueError(
                    f"crop must be what the model takes. Received: crop={self.crop}, where {shape}"
                )
            return
        for name, value in (("resizing", self.resizing), ("scales", self.scales)):
            if value not in (None, (1,)):
                raise ValueError(
                    f"{name} must be left out for a model of a fixed size, unless a window slides "
                    f"(crop). Received: {name}={value}, where {shape}"
                )


class _Mirrored:
    """`Rows` with the columns in reverse."""

    def __init__(self, source):
        self.source, self.height, self.width = source, source.height, source.width

    def rows(self, start, stop):
        return self.source.rows(start, stop)[:, ::-1]


def check_model(model: "keras.Model") -> int:
    """The number of outputs of a segmentation model.

    Raises:
        ValueError: it is none.
    """
    taken: Any = getattr(model, "input_shape", None)
    given: Any = getattr(model, "output_shape", None)
    logits = _logits(model)
    shape = given if logits is None else tuple(logits.shape)
    fits = isinstance(taken, tuple) and len(taken) == 4 and taken[3] == 3
    if not fits or not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] is None:
        raise ValueError(
            "model must take images (N, H, W, 3) and give logits (N, H, W, classes). "
            f"Received: {getattr(model, 'name', model)}, from {taken} to {given}"
        )
    return shape[-1]


def _colours(palette, classes) -> tuple[Colour, ...]:
    if palette is None:
        return default_palette(classes)
    colours = np.asarray(palette)
    whole = colours.shape == (classes, 3) and np.issubdtype(colours.dtype, np.integer)
    if not whole or colours.min() < 0 or colours.max() > 255:
        raise ValueError(
            f"palette must have a colour (R, G, B), 0 to 255, for each of {classes} classes. "
            f"Received: palette={palette!r}"
        )
    return tuple(map(tuple, colours.tolist()))


def _positive(scales):
    given = tuple(scales) if np.ndim(scales) == 1 else ()
    if not given or not all(isinstance(x, numbers.Real) and 0 < x < math.inf for x in given):
        raise ValueError(
            f"scales must be positive numbers, one or more. Received: scales={scales!r}"
        )
    return given


def _window(crop, stride):
    if crop is None:
        if stride is not None:
            raise ValueError(f"stride needs crop. Received: stride={stride}, crop=None")
        return None, None
    crop = two_sizes("crop", crop)
    chosen = tuple(max(n * 2 // 3, 1) for n in crop) if stride is None else stride
    chosen = two_sizes("stride", chosen)
    if any(step > side for step, side in zip(chosen, crop, strict=True)):
        raise ValueError(
            f"stride must be at most crop, or windows leave gaps. "
            f"Received: stride={stride}, crop={crop}"
        )
    return crop, chosen


def _logits(model):
    """The logits of a Functional model, symbolic; None for a model of another kind."""
    outputs = getattr(model, "output", None)
    if isinstance(outputs, dict):
        outputs = outputs.get("logits")
    return outputs if isinstance(outputs, keras.KerasTensor) else None


def _unscaled(model):
    """The model without other outputs and without the resizing of its logits, its last layer."""
    logits = _logits(model)
    if logits is None:
        return model
    history = logits._keras_history
    if isinstance(history.operation, BilinearResizing):
        node = history.operation._inbound_nodes[history.node_index]
        logits = node.input_tensors[0]
    return keras.Model(model.input, logits)


def _are_probabilities(scores):
    """Whether the outputs of each pixel, with all classes, are those of a softmax.

    Logits are not: they sum up to 1, and none of them is negative, in no more than single pixels.
    """
    if not scores.size or not scores.min() >= 0:
        return False
    return bool((np.abs(scores.sum(-1) - 1) < _ROUNDED).all())


def _softmax(logits):
    made = logits - logits.max(-1, keepdims=True)
    np.exp(made, out=made)
    made /= made.sum(-1, keepdims=True)
    return made
