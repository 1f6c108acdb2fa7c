"""What of an object's bitmap lies in a box, at a fixed size: the target of a mask head."""

from keras import ops

from keras_internimage.ops.roi_align import _axis_weights, map_rows

# Bitmaps that are looked at at once, each as large as its image.
CHUNK = 4


def crop_bitmaps(bitmaps, index, boxes, sizes, output_size: int = 28):
    """`roi_align` of bitmaps, at one map for each box.

    ```
    y = W_y bitmap W_x^T
    ```

    with the weights of the bilinear samples along each axis, as in `roi_align`: what is computed
    is the same, without a list of the pixels that a box covers, which may be the whole image.

    Args:
        bitmaps: `(N, M, H, W)`, uint8, bool or float.
        index: `(N, R)`, which of the M each box is for.
        boxes: `(N, R, 4)`, left, top, right, bottom in pixels. They are clipped to `sizes`.
        sizes: `(N, 2)`, heights and widths up to which bitmaps go on, with zeros where they end
            before; samples further out count as the nearest pixel. At least H and W, or the rest
            is not seen.
        output_size: bins along each side.

    Returns:
        A float32 tensor `(N, R, output_size, output_size)`.
    """
    count, objects, height, width = ops.shape(bitmaps)
    rois = ops.shape(index)[1]
    sizes = ops.cast(sizes, "float32")
    limits = ops.take(sizes, ops.convert_to_tensor([1, 0, 1, 0], "int32"), axis=1)[:, None]
    boxes = ops.cast(ops.stop_gradient(boxes), "float32")
    boxes = ops.minimum(ops.maximum(boxes, 0), limits)
    start = boxes[..., :2] - 0.5
    numbers = ops.concatenate(
        [start, boxes[..., 2:] - 0.5 - start, sizes[:, None] + ops.zeros_like(start)], axis=-1
    )
    places = index + ops.arange(count, dtype="int32")[:, None] * objects
    numbers, places = ops.reshape(numbers, (-1, 6)), ops.reshape(places, (-1,))
    total = ops.shape(places)[0]
    missing = -total % CHUNK
    numbers = ops.reshape(ops.pad(numbers, ((0, missing), (0, 0))), (-1, CHUNK, 6))
    places = ops.reshape(ops.pad(places, ((0, missing),)), (-1, CHUNK))
    bitmaps = ops.reshape(bitmaps, (-1, height, width))

    def crop(arguments):
        numbers, places = arguments
        none = ops.zeros_like(places)
        by_column, by_row = (
            _axis_weights(
                numbers[:, axis],
                numbers[:, 2 + axis],
                output_size,
                numbers[:, 5 - axis],
                none,
                (width, height)[axis],
                "float32",
            )
            for axis in (0, 1)
        )
        chosen = ops.cast(ops.take(bitmaps, places, axis=0), "float32")
        return ops.matmul(ops.matmul(by_row, chosen), ops.swapaxes(by_column, 1, 2))

    shape = (CHUNK, output_size, output_size)
    cropped = map_rows(crop, (numbers, places), shape, "float32")
    cropped = ops.reshape(cropped, (-1, output_size, output_size))[:total]
    return ops.reshape(cropped, (count, rois, output_size, output_size))
