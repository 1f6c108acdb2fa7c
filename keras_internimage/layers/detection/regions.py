"""Pooling regions of interest from the pyramid's level that fits their size."""

import keras
from keras import ops

from keras_internimage.layers.composite import check_image_features, registered
from keras_internimage.ops.roi_align import covered_pixels, largest, roi_align

# A region is pooled where its square root of the area is 14 to 28 pixels, if there is such a map.
FINEST = 56.0
_SIDE = 28.0


def region_levels(boxes, levels: int):
    """The pyramid's level of each box: `floor(log2(sqrt(area) / 56 + 1e-6))` within the levels.

    Args:
        boxes: `(..., 4)`.
        levels: number of levels.

    Returns:
        An int32 tensor `(...)`, 0 for the finest.

    Source: [Feature Pyramid Networks](https://arxiv.org/abs/1612.03144), equation 1.
    """
    boxes = ops.cast(boxes, "float32")
    sides = boxes[..., 2:] - boxes[..., :2]
    side = ops.sqrt(ops.maximum(sides[..., 0] * sides[..., 1], 0))
    # Comparisons with powers of two: a logarithm may round up to a whole number.
    level = ops.zeros_like(side, dtype="int32")
    for k in range(1, levels):
        level = level + ops.cast(side / FINEST + 1e-6 >= 2.0**k, "int32")
    return level


@registered
class RegionAlign(keras.layers.Layer):
    """`roi_align` of each region from the level of the pyramid that fits its size.

    Args:
        output_size: bins along each side.
        strides: pixels of the image in one of each map, finest first, each twice the one before
            from 4 on.

    Call arguments:
        inputs: a list of maps `(N, h, w, C)`, of `strides`; more maps are ignored.
        boxes: `(N, R, 4)`, left, top, right, bottom in pixels of the image.

    Returns:
        A tensor `(N, R, output_size, output_size, C)`.
    """

    def __init__(self, output_size: int, strides=(4, 8, 16, 32), **kwargs):
        super().__init__(**kwargs)
        self.output_size = output_size
        self.strides = tuple(strides)

    def build(self, input_shape):
        for shape in input_shape:
            check_image_features(self, shape)
        self.built = True

    def call(self, inputs, boxes):
        maps = inputs[: len(self.strides)]
        levels = region_levels(boxes, len(maps))
        # Except on the coarsest map a region's area there is less than 28^2 pixels.
        sizes = [ops.shape(x)[1:3] for x in maps]
        bounds = [covered_pixels(*size, _SIDE**2) for size in sizes[:-1]]
        bounds.append(sizes[-1][0] * sizes[-1][1])
        return roi_align(maps, boxes, self.strides, levels, self.output_size, largest(bounds))

    def compute_output_shape(self, input_shape, boxes_shape=None):
        count = None if boxes_shape is None else boxes_shape[1]
        return (input_shape[0][0], count, self.output_size, self.output_size, input_shape[0][-1])

    def get_config(self):
        return {
            **super().get_config(),
            "output_size": self.output_size,
            "strides": self.strides,
        }
