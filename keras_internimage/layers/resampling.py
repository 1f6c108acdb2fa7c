"""Changing the size of feature maps: adaptive average pooling and bilinear resizing.

Both are PyTorch's functions, which the official heads are made of, at any size, also one that is
unknown before the program runs.
"""

import keras
import numpy as np
from keras import ops

from keras_internimage.layers.composite import check_image_features, registered

Sizes = tuple[int, int]


def adaptive_average_pool(inputs, output_size: Sizes):
    """The mean over windows that cover the image, as many of them as asked for.

    ```
    y[i] = mean(x[floor(i n / s) : ceil((i + 1) n / s)])      along each side, n to s pixels
    ```

    Windows overlap where `s` does not divide `n`, and repeat pixels where it is greater than `n`.
    Computed in float32 or better, as a product with one matrix for each side.

    Args:
        inputs: `(N, H, W, C)`.
        output_size: numbers of rows and columns.

    Returns:
        A tensor `(N, *output_size, C)` of the inputs' type.

    Source: `torch.nn.functional.adaptive_avg_pool2d`. Keras' own layer has the same
    windows, but needs a known size in TensorFlow and JAX, and ONNX has no such operation.
    """
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    wide = "float64" if dtype == "float64" else "float32"
    height, width = ops.shape(inputs)[1:3]
    rows = _pooling_matrix(height, output_size[0], wide)
    columns = _pooling_matrix(width, output_size[1], wide)
    channels = inputs.shape[-1]
    # `matmul`, not `einsum`: with an unknown batch LiteRT cannot read what becomes of that.
    x = ops.reshape(ops.cast(inputs, wide), (-1, height, width * channels))
    x = ops.reshape(ops.matmul(rows, x), (-1, output_size[0], width, channels))
    return ops.cast(ops.matmul(columns, x), dtype)


def _pooling_matrix(n, s, dtype):
    """Weights `(s, n)` of the means over `s` windows of `n` pixels."""
    # NumPy where the size is known: exported files then hold the matrix alone.
    module = np if isinstance(n, int) else ops
    pixels, windows = module.arange(n, dtype="int32"), module.arange(s, dtype="int32")
    start = windows * n // s
    end = ((windows + 1) * n + s - 1) // s
    inside = (pixels[None] >= start[:, None]) & (pixels[None] < end[:, None])
    return ops.cast(inside, dtype) / ops.cast(end - start, dtype)[:, None]


def resize_bilinear(inputs, size):
    """Bilinear resizing with pixel centres at halves, without antialiasing.

    ```
    y[i] = (1 - f) x[k] + f x[k + 1],    k + f = (i + 1/2) n / s - 1/2    within [0, n - 1]
    ```

    along each side of `n` to `s` pixels.

    Args:
        inputs: `(N, H, W, C)`.
        size: height and width of the result, ints or what `keras.ops.shape` gives.

    Returns:
        A tensor `(N, *size, C)` of the inputs' type.

    Source: `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
    """
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    known = all(isinstance(n, int) for n in (*inputs.shape[1:3], *size))
    if keras.backend.backend() == "jax" and known and dtype in ("float32", "float64"):
        return _resize_by_columns(inputs, size)
    if all(isinstance(n, int) for n in size) or keras.backend.backend() != "tensorflow":
        outputs = ops.image.resize(
            inputs,
            tuple(size),
            interpolation="bilinear",
            antialias=False,
            data_format="channels_last",
        )
    else:  # Keras compares the size with 0, which a graph has no answer to
        import tensorflow as tf

        outputs = tf.image.resize(inputs, tf.stack(size), method="bilinear", antialias=False)
    return ops.cast(outputs, dtype)


def _resize_by_columns(inputs, size):
    """`R x C^T` as products of matrices, without the transposed copy that `jax.image.resize` makes.

    Columns come first: so the larger product is the one whose result needs no other order.
    """
    import jax.numpy as jnp

    batch, height, width, channels = inputs.shape
    rows, columns = (
        jnp.asarray(bilinear_matrix(n, s), inputs.dtype)
        for n, s in zip((height, width), size, strict=True)
    )
    # GPUs may compute a product of float32 numbers in less, unless told not to.
    x = jnp.reshape(inputs, (batch * height, width, channels))
    x = jnp.matmul(columns, x, precision="highest")
    x = jnp.reshape(x, (batch, height, size[1] * channels))
    return jnp.reshape(jnp.matmul(rows, x, precision="highest"), (batch, *size, channels))


def bilinear_matrix(n: int, s: int) -> np.ndarray:
    """Weights `(s, n)` of `resize_bilinear` along one side, of `n` to `s` pixels; float64."""
    places = np.clip((np.arange(s) + 0.5) * n / s - 0.5, 0, n - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(n)), 0)


@registered
class AdaptiveAveragePooling2D(keras.layers.Layer):
    """The layer of `adaptive_average_pool`.

    Args:
        output_size: number of rows and columns, one int for both, or two.

    Input shape: `(N, H, W, C)`, H and W may be unknown. Output shape: `(N, *output_size, C)`.

    Raises:
        ValueError: `output_size` is not as said above.
    """

    def __init__(self, output_size: int | Sizes, **kwargs):
        super().__init__(**kwargs)
        self.output_size = two_sizes("output_size", output_size)

    def build(self, input_shape):
        check_image_features(self, input_shape)
        self.built = True

    def call(self, inputs):
        return adaptive_average_pool(inputs, self.output_size)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.output_size, input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "output_size": self.output_size}


@registered
class BilinearResizing(keras.layers.Layer):
    """The layer of `resize_bilinear`, to the size of another tensor.

    Input shape: a list `[x (N, H, W, C), other (N, Ho, Wo, anything)]`; sizes may be unknown.
    Output shape: `(N, Ho, Wo, C)`.
    """

    def call(self, inputs):
        x, other = inputs
        return resize_bilinear(x, ops.shape(other)[1:3])

    def compute_output_shape(self, input_shape):
        x, other = input_shape
        return (x[0], *other[1:3], x[-1])


def two_sizes(name: str, value: int | Sizes) -> Sizes:
    """`value` as two positive ints.

    Raises:
        ValueError: it is neither a positive int nor two of them.
    """
    sizes = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(sizes, (tuple, list))
        or len(sizes) != 2
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    ):
        raise ValueError(f"`{name}` must be a positive int or two. Received: {name}={value!r}")
    return (sizes[0], sizes[1])
