"""Batches of images with the boxes, classes and masks of their objects, made in threads."""

import math

import keras
import numpy as np

from keras_internimage.data.batches import CROP, FileBatches
from keras_internimage.data.coco_masks import draw_mask
from keras_internimage.data.resizing import resize_image
from keras_internimage.preprocessing import preprocess_input, read_image
from keras_internimage.training.box_augmentations import BoxAugmentation, BoxPlacement, fit

# Of which the sides of a detector's input are.
MULTIPLE = 32
# Where a program is compiled for each shape: parts of the long side that sides are rounded up to,
# and the fewest objects.
PARTS, FEWEST = 8, 8


class DetectionFiles(FileBatches):
    """Batches `(x, y)` of image files and the objects in them, as `MaskRCNN.fit` takes them.

    ```
    x = {"images": (N, H, W, 3), "image_sizes": (N, 2), "original_sizes": (N, 2)}
    y = {"boxes": (N, M, 4), "labels": (N, M), "masks": (N, M, H, W)}
    ```

    Images are normalised, float32, each in the upper left corner and zeros to the right and below;
    `image_sizes` are their heights and widths there, `original_sizes` those in the file. Boxes are
    in pixels of the images in x; labels are -1, boxes and masks 0 where an image has fewer than M
    objects. M is as many as an image of the batch has: none is left out. Masks are uint8, 0 and 1.

    For training, an epoch visits every image once, in an order of its own; each goes where
    `augmentation` says. For evaluation, files keep their order, images are resized as large as
    fits into `fit`, and the last batch may be smaller.

    H and W are those of the batch's largest image, rounded up to multiples of 32. JAX and
    TensorFlow compile a program for each shape; with `few_shapes`, H and W are instead rounded up
    to multiples of an eighth of the long side (itself a multiple of 32 pixels), or to the short
    side where that is enough, and M to 8, 16, 32, 64 and so on. At 800 x 1333 pixels, H and W are
    then 800, 960, 1152 or 1344 in the 1x recipe.

    A file that cannot be read is noted in `skipped`. In training, another image of the batch takes
    its place; in evaluation, it is left out of the batch.

    Args:
        files: an `AnnotatedImage` for each image, as from `scan_detection`.
        batch_size: images in a batch.
        training: whether the batches are for training.
        seed: integer from which all randomness follows.
        augmentation: for training, a `training.BoxAugmentation`; None takes the default one.
        fit: for evaluation, the long and the short side that images are resized to.
        bounding_box_format: of the boxes, that of the model.
        masks: "annotated" draws the segmentations, "rectangles" the box where there is none, and
            "none" leaves "masks" out of y; `DetectionImages.masks` says it.
        few_shapes: None is True on JAX and TensorFlow.
        multiple: batches in an epoch of training are a multiple of this.
        threads: threads that decode; None takes one for each processor, 16 at most.

    Attributes:
        epoch, skipped: as of `FileBatches`.
    """

    def __init__(
        self,
        files,
        batch_size,
        *,
        training,
        seed=0,
        augmentation=None,
        fit=(1333, 800),
        bounding_box_format="xyxy",
        masks="annotated",
        few_shapes=None,
        multiple=1,
        threads=None,
    ):
        if not training and augmentation is not None:
            raise ValueError(
                "`augmentation` must be None where `training=False`. "
                f"Received: augmentation={augmentation!r}"
            )
        if masks not in ("annotated", "rectangles", "none"):
            raise ValueError(
                f"`masks` must be 'annotated', 'rectangles' or 'none'. Received: masks={masks!r}"
            )
        super().__init__(
            files, batch_size, training=training, seed=seed, multiple=multiple, threads=threads
        )
        self.augmentation = augmentation or BoxAugmentation()
        self.long, self.short = max(fit), min(fit)
        if training:
            self.long, self.short = (
                self.augmentation.long_side,
                max(self.augmentation.short_sides),
            )
        self.bounding_box_format, self.masks = bounding_box_format, masks
        if few_shapes is None:
            few_shapes = keras.config.backend() != "torch"
        self.few_shapes = few_shapes

    @classmethod
    def for_training(cls, files, batch_size, recipe, **options):
        """Batches for training by a `training.Recipe` of detection.

        The augmentation is `BoxAugmentation.of_recipe`; `options` are those of the class.
        """
        options.setdefault("augmentation", BoxAugmentation.of_recipe(recipe))
        return cls(files, batch_size, training=True, **options)

    def read(self, epoch, place, position):
        """Pixels, boxes, labels and masks of an image, and its size in the file; or None."""
        image = self.files[position]
        try:
            pixels = np.asarray(read_image(image.path))
            if pixels.shape[:2] != (image.height, image.width):
                raise ValueError(
                    f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, {image.width} x "
                    f"{image.height} by the annotations Received: {image.path}"
                )
        except (FileNotFoundError, ValueError) as error:
            self.skip(image.path, error)
            return None
        # Outside of `try`: its errors are not the file's.
        if self.training:
            random = self.random(epoch, CROP, int(place))
            placement = self.augmentation(image.height, image.width, random)
        else:
            size = (image.width, image.height)
            last = fit(*size, self.short, self.long)
            placement = BoxPlacement(size, size, (0, 0, *size), last)
        boxes, kept = placement.boxes([one.box for one in image.objects])
        objects = [image.objects[index] for index in kept]
        masks = None
        if self.masks != "none":
            masks = [placement.masks(self._mask(one, image)) for one in objects]
        labels = np.array([one.label for one in objects], "int32")
        return changed(pixels, placement), boxes, labels, masks, (image.height, image.width)

    def collate(self, items, positions, epoch, index):
        """Images and targets of a batch, filled up to one size."""
        sizes = np.array([pixels.shape[:2] for pixels, *_ in items], "int32")
        height, width = (self._side(side) for side in sizes.max(axis=0).tolist())
        most = self._objects(max(len(labels) for _, _, labels, _, _ in items))
        count = len(items)
        images = np.zeros((count, height, width, 3), "float32")
        boxes = np.zeros((count, most, 4), "float32")
        labels = np.full((count, most), -1, "int32")
        learnt = self.masks != "none"
        masks = np.zeros((count, most, height, width), "uint8") if learnt else None
        for i, (pixels, its_boxes, its_labels, its_masks, _) in enumerate(items):
            rows, columns = pixels.shape[:2]
            images[i, :rows, :columns] = preprocess_input(np.asarray(pixels, "float32"))
            boxes[i, : len(its_boxes)] = its_boxes
            labels[i, : len(its_labels)] = its_labels
            for j, mask in enumerate(its_masks or ()):
                masks[i, j, :rows, :columns] = mask
        x = {
            "images": images,
            "image_sizes": sizes,
            "original_sizes": np.array([size for *_, size in items], "int32"),
        }
        y = {"boxes": self._formatted(boxes, labels, sizes), "labels": labels}
        return x, (y | {"masks": masks} if learnt else y)

    def _mask(self, one, image):
        if one.segmentation is not None:
            return draw_mask(one.segmentation, image.height, image.width)
        if self.masks != "rectangles":
            raise ValueError(
                "Objects must have segmentations, unless masks='rectangles' or 'none'. "
                f"Received: annotation {one.id} of {image.path} without one"
            )
        left, top, right, bottom = one.box
        # Pixels whose middle is in the box.
        x, y = np.arange(image.width) + 0.5, np.arange(image.height) + 0.5
        inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
        return inside.astype("uint8")

    def _formatted(self, boxes, labels, sizes):
        if self.bounding_box_format == "xyxy":
            return boxes
        height, width = (sizes[:, None, axis : axis + 1].astype("float32") for axis in (0, 1))
        made = keras.utils.bounding_boxes.convert_format(
            boxes,
            source="xyxy",
            target=self.bounding_box_format,
            height=height,
            width=width,
        )
        made = np.array(keras.ops.convert_to_numpy(made), "float32")
        made[labels < 0] = 0
        return made

    def _side(self, side):
        whole = math.ceil(side / MULTIPLE) * MULTIPLE
        if not self.few_shapes:
            return whole
        short = math.ceil(self.short / MULTIPLE) * MULTIPLE
        step = math.ceil(self.long / MULTIPLE / PARTS) * MULTIPLE
        rounded = math.ceil(side / step) * step
        return min(rounded, short) if side <= short else rounded

    def _objects(self, most):
        if not self.few_shapes:
            return most
        return max(FEWEST, 1 << (most - 1).bit_length()) if most else FEWEST


def changed(pixels: np.ndarray, placement: BoxPlacement) -> np.ndarray:
    """An image of 8 bits `(H, W, 3)` where a placement puts it."""
    left, top, right, bottom = placement.box
    pixels = resize_image(pixels, [placement.first[::-1]])[top:bottom, left:right]
    pixels = resize_image(pixels, [placement.last[::-1]])
    return np.ascontiguousarray(pixels[:, ::-1]) if placement.mirrored else pixels
