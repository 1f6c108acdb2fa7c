"""What a detector is given: images in a batch, and their sizes."""

from keras import ops

MULTIPLE = 32
_SIZES = ("image_sizes", "original_sizes")


def read_inputs(inputs):
    """Images, their heights and widths, and those before they were resized, of a model's inputs.

    Raises:
        ValueError: as `check_inputs`.
    """
    check_inputs(inputs)
    if not isinstance(inputs, dict):
        inputs = {"images": inputs}
    images = inputs["images"]
    sizes = inputs.get("image_sizes")
    if sizes is None:
        count, height, width = ops.shape(images)[:3]
        size = ops.stack([ops.cast(height, "int32"), ops.cast(width, "int32")])
        sizes = ops.tile(size[None], (count, 1))
    original_sizes = inputs.get("original_sizes")
    return images, sizes, sizes if original_sizes is None else original_sizes


def check_inputs(inputs):
    """Raise unless a dict has images and, as far as shapes tell, two numbers of each for sizes.

    Raises:
        ValueError: there are no images, or something else in the dict, or another number of sizes.
    """
    if not isinstance(inputs, dict):
        return
    known = ("images", *_SIZES)
    if "images" not in inputs or not set(inputs) <= set(known):
        raise ValueError(
            f"Inputs must be images or a dict of {', '.join(known)}. Received: {sorted(inputs)}"
        )
    images = _shape(inputs["images"])
    for name in _SIZES:
        shape = _shape(inputs.get(name))
        if shape is None:
            continue
        wanted = ((images or (None,))[0], 2)
        if len(shape) != 2 or any(
            # Sizes that are not known yet are no ints, and must not be compared.
            isinstance(a, int) and isinstance(b, int) and a != b
            for a, b in zip(shape, wanted, strict=True)
        ):
            raise ValueError(
                f"`{name}` must be (N, 2), height and width of each of N images. "
                f"Received: {name} of {shape}, images of {images}"
            )


def _shape(array):
    """The shape of an array or a tensor, as far as it is known; None for other things."""
    try:
        return tuple(array.shape)
    except (AttributeError, ValueError):  # none, or TensorFlow's of an unknown rank
        return None


def pad(images):
    """Zeros to the right and below, until the sides are multiples of 32."""
    height, width = ops.shape(images)[1:3]
    missing = [-height % MULTIPLE, -width % MULTIPLE]
    if all(isinstance(n, int) and n == 0 for n in missing):
        return images
    return ops.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))


def padded_sizes(sizes):
    """Heights and widths `(N, 2)` of images that were padded each by itself, int32."""
    return (ops.cast(sizes, "int32") + MULTIPLE - 1) // MULTIPLE * MULTIPLE


def box_scale(scale):
    """Factors `(N, 4)` of a box's coordinates from those of heights and widths, `(N, 2)`."""
    return ops.take(scale, ops.convert_to_tensor([1, 0, 1, 0], "int32"), axis=1)
