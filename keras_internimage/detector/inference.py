"""From images to the objects in them, as the official models are tested."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_internimage import backends
from keras_internimage.data import ahead
from keras_internimage.data.detection_classes import detection_classes
from keras_internimage.data.labels import check_unique
from keras_internimage.data.resizing import Resizing, check_positive, resize_image
from keras_internimage.detector.detections import Detections
from keras_internimage.preprocessing import preprocess_input, read_image

# Shorter and longer side of the images that the published accuracies were measured on.
RESIZING = Resizing(800, 1333)
# Sides of what the model is given.
MULTIPLE = 32


class Detector:
    """A model of detection with its classes and its preprocessing.

    ```
    image -> resizing -> normalisation -> zeros to the right and below -> boxes, classes, masks
          -> boxes in the pixels of the image
    ```

    Args:
        model: a `MaskRCNN`, or another model with its inputs and outputs, for images of any size.
        class_names: names of the classes, as many as the model has. None takes COCO's for 80, and
            else numbers.
        resizing: the size at which the model sees images. None is that of the published accuracy:
            `Resizing(800, 1333)`. Each image is resized, larger or smaller.
        threshold: detections are more probable. Never less than the model's own
            `score_threshold`, 0.05 in the published models.
        category_ids: what COCO files call the classes. None takes COCO's own for its 80 names, and
            else 1, 2, 3 and so on.
        multiple: of which the sides of the model's input are. At 32 an image alone is seen as by
            the official code. At 128, say, JAX compiles fewer programs; what lies at the right and
            lower border is then detected a little differently, as in a batch of differing images.

    Raises:
        ValueError: an argument is not as said above.
    """

    def __init__(
        self,
        model: keras.Model,
        class_names: Sequence[str] | None = None,
        *,
        resizing: Resizing | None = None,
        threshold: float = 0.05,
        category_ids: Sequence[int] | None = None,
        multiple: int = MULTIPLE,
    ):
        classes = check_model(model)
        self.model = model
        self.class_names = _names(class_names, classes)
        self.category_ids = _ids(category_ids, self.class_names)
        if not isinstance(resizing, Resizing | None):
            raise ValueError(
                f"resizing must be a Resizing or None. Received: resizing={resizing!r}"
            )
        self.resizing = resizing or RESIZING
        if not 0 <= threshold < 1:
            raise ValueError(
                f"threshold must be at least 0 and less than 1. Received: threshold={threshold!r}"
            )
        self.threshold = threshold
        check_positive("multiple", multiple)
        if multiple % MULTIPLE:
            raise ValueError(f"multiple must be one of {MULTIPLE}. Received: multiple={multiple}")
        self.multiple = multiple

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def labels(self) -> tuple[str, ...]:
        """`class_names`, as other finished models call them."""
        return self.class_names

    def predict(self, images: Any, batch_size: int = 1) -> list[Detections]:
        """Detects the objects of images.

        Images of files are turned upright by their EXIF orientation. In a batch the smaller images
        are filled up with zeros to the largest.

        Args:
            images: a path, a folder (all images below it), a `PIL.Image.Image`, an array
                `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, or a sequence of those, an array
                `(N, H, W, 3)` included. Arrays hold 0 to 255, uint8 or a float type, which is
                rounded.
            batch_size: images at a time.

        Returns:
            `Detections` of each image.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: an image cannot be read, or an argument is not as said above.
            MemoryError: what the model makes of the images does not fit into memory.
        """
        check_positive("batch_size", batch_size)
        found: list[Detections] = []
        for _, detections, error in self.stream(ahead.sequence(images), batch_size):
            if error is not None:
                raise error
            found.append(detections)
        return found

    def stream(
        self, images: Sequence, batch_size: int = 1
    ) -> Iterator[tuple[Any, Any, Exception | None]]:
        """Detects image by image while the next ones are read in threads.

        Yields:
            `(image, Detections, None)` in order, or `(image, None, error)` for what cannot be
            read, or does not fit into memory.
        """
        for batch in ahead.batches(images, self._read, batch_size):
            seen = [made for _, (made, _) in batch if made is not None]
            try:
                found = iter(self._detect(seen, batch_size) if seen else ())
            except MemoryError as error:
                yield from ((image, None, failed or error) for image, (_, failed) in batch)
                continue
            for image, (made, failed) in batch:
                yield (image, None, failed) if made is None else (image, next(found), None)

    def export(self, path: str | os.PathLike, **options: Any) -> pathlib.Path:
        """Writes the model as a file for another program, with normalisation and class names.

        The file takes images at the size that the model is to see.

        Args:
            path: as for `keras_internimage.export`.
            **options: of `keras_internimage.export`. Here `include_preprocessing` is True and
                `labels` are the detector's unless given.

        Returns:
            `path`, as a `pathlib.Path`.

        Raises:
            ValueError, ImportError, RuntimeError: as `keras_internimage.export`.
        """
        from keras_internimage import exports

        options = {"include_preprocessing": True, "labels": self.class_names, **options}
        return exports.export(self.model, path, **options)

    def _read(self, image):
        """`((pixels as the model sees them, height, width), None)`, or `(None, error)`."""
        try:
            pixels = np.asarray(read_image(_eight_bits(image)))
        except FileNotFoundError:
            text = f"An image must exist. Received: {image}, no such file"
            return None, FileNotFoundError(text)
        except (ValueError, MemoryError) as error:
            return None, error
        height, width = pixels.shape[:2]
        return (resize_image(pixels, self.resizing.sizes(height, width)), height, width), None

    def _detect(self, seen, batch_size):
        sizes = np.array([pixels.shape[:2] for pixels, _, _ in seen], "int32")
        original = np.array([size for _, *size in seen], "int32")
        height, width = -(-sizes.max(0) // self.multiple) * self.multiple
        count = len(seen)
        if keras.backend.backend() == "jax":  # which compiles for each number of images
            count = batch_size
        images = np.zeros((count, height, width, 3), "float32")
        for image, (pixels, _, _) in zip(images, seen, strict=False):
            image[: pixels.shape[0], : pixels.shape[1]] = preprocess_input(pixels.astype("float32"))
        missing = ((0, count - len(seen)), (0, 0))
        inputs = {
            "images": images,
            "image_sizes": np.pad(sizes, missing, "edge"),
            "original_sizes": np.pad(original, missing, "edge"),
        }
        found = model_detections(self.model, inputs, original.tolist())
        return [one.above(self.threshold) for one in found]


_OUTPUTS = ("num_detections", "boxes", "labels", "scores", "masks")


def model_detections(
    model: keras.Model, inputs: dict[str, Any], sizes: Sequence[Sequence[int]]
) -> list[Detections]:
    """What a model detects in the first images of its inputs.

    Args:
        model: as of `Detector`.
        inputs: a dict as the model is called with.
        sizes: height and width of the images in whose pixels the model gives boxes: as many as
            results are wanted.

    Raises:
        MemoryError: what the model makes of the images does not fit into memory.
    """
    with backends.memory_errors():
        outputs = model.predict_on_batch(inputs)
    parts = [np.asarray(keras.ops.convert_to_numpy(outputs[name])) for name in _OUTPUTS]
    return [
        _of_image(model, int(height), int(width), *(part[index] for part in parts))
        for index, (height, width) in enumerate(sizes)
    ]


def _of_image(model, height, width, number, boxes, labels, scores, masks):
    boxes = keras.utils.bounding_boxes.convert_format(
        boxes[:number].astype("float32"),
        source=model.bounding_box_format,
        target="xyxy",
        height=height,
        width=width,
    )
    # Clipped by the model; what it multiplies afterwards is rounded.
    boxes = np.clip(keras.ops.convert_to_numpy(boxes), 0, [width, height, width, height])
    return Detections(
        height,
        width,
        boxes.astype("float32"),
        # Copies, not views of a whole batch.
        labels[:number].astype("int32"),
        scores[:number].astype("float32"),
        masks[:number].astype("float32"),
    )


def check_model(model: keras.Model) -> int:
    """The number of classes of a detector.

    Raises:
        ValueError: it is none, or takes images of one size only.
    """
    classes = getattr(model, "classes", None)
    if not isinstance(classes, int) or not isinstance(
        getattr(model, "bounding_box_format", None), str
    ):
        raise ValueError(
            "model must be a detector, such as MaskRCNN. "
            f"Received: {getattr(model, 'name', model)} of type {type(model).__name__}"
        )
    features: Any = getattr(model, "features", None)
    size = getattr(features, "input_shape", (None,) * 4)[1:3]
    if any(size):
        raise ValueError(
            "model must take images of any size: its backbone's image_shape must be "
            f"(None, None, 3). Received: {model.name}, for images of {size[0]} x {size[1]}"
        )
    return classes


def _names(given, classes):
    coco = tuple(row.name for row in detection_classes("coco"))
    if given is None:
        return coco if classes == len(coco) else tuple(map(str, range(classes)))
    if isinstance(given, str) or len(given) != classes:
        raise ValueError(
            f"class_names must be as many as the model has classes, {classes}. Received: {given!r}"
        )
    names = tuple(map(str, given))
    check_unique("class_names", names)
    return names


def _ids(given, names):
    if given is None:
        rows = detection_classes("coco")
        if names == tuple(row.name for row in rows):
            return tuple(row.id for row in rows)
        return tuple(range(1, len(names) + 1))
    ids = tuple(map(int, given))
    if len(ids) != len(names) or len(set(ids)) < len(ids):
        raise ValueError(
            f"category_ids must be as many as class_names, {len(names)}, and different. "
            f"Received: category_ids={given!r}"
        )
    return ids


def _eight_bits(image):
    """An array of floats as one of 8 bits; anything else as it is."""
    if not isinstance(image, np.ndarray) or image.dtype.kind != "f":
        return image
    low, high = (image.min(), image.max()) if image.size else (0, 0)
    if not (low >= 0 and high <= 255):  # NaN, too
        raise ValueError(
            f"An image's values must be 0 to 255. Received: an array from {low:.4g} to {high:.4g}"
        )
    if 0 < high <= 1 and ((image > 0) & (image < 1)).any():
        raise ValueError(
            "An image's values must be 0 to 255; those of 0 to 1 must be multiplied by 255. "
            f"Received: an array from {low:.4g} to {high:.4g}"
        )
    return np.rint(image).astype("uint8")
