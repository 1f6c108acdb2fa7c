"""A convolution over feature maps of several sizes, as one layer."""

import keras
import numpy as np
from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import check_image_features, registered
from keras_internimage.layers.initial_values import InitialValues
from keras_internimage.layers.resampling import bilinear_matrix, resize_bilinear


@registered
class FusionConvolution(keras.layers.Layer):
    """A convolution of feature maps that are resized to the first one's size and concatenated.

    ```
    y = conv(concat(x1, resize(x2), resize(x3), ...))       zeros around, stride 1, no bias
    ```

    The maps are never concatenated: a convolution of a concatenation is the sum of convolutions
    of its parts. Of a map that is much smaller than the first, not even the resized one is made:
    resizing is linear and acts on places alone, so that it commutes with the product with each
    of the kernel's matrices.

    ```
    y = sum_ij shift_ij(resize(x w_ij)) = sum_ij R_i (x w_ij) C_j^T
    ```

    with the rows of the resizing's matrices `R` and `C` shifted by the tap, zeros outside. The
    products with `w_ij` take `h w / (H W)` of the convolution's multiplications, those with `R`
    and `C` few: together 0.37 for four maps of 512 channels, the first of 128 x 128 pixels and
    the others of scales 1/2, 1/4 and 1/8. Which order has fewer multiplications is decided for
    each map where sizes are known when the layer is called or traced; where they are not, maps
    are resized first.

    Args:
        filters: number of output channels.
        kernel_size: odd side of the kernel.
        kernel_initializer: of the one kernel for all maps, of the shape
            `(side, side, sum of channels, filters)`.

    Input shape: a list of `(N, Hk, Wk, Ck)`; heights and widths may be unknown.
    Output shape: `(N, H1, W1, filters)`.

    Raises:
        ValueError: an argument is not as said above.
    """

    def __init__(
        self, filters: int, kernel_size: int = 3, kernel_initializer="glorot_uniform", **kwargs
    ):
        super().__init__(**kwargs)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be a positive odd int. Received: kernel_size={kernel_size!r}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        for shape in input_shape:
            check_image_features(self, shape)
        channels = sum(shape[-1] for shape in input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels, self.filters),
            initializer=InitialValues(self.kernel_initializer),
        )
        self.built = True

    def call(self, inputs):
        size = ops.shape(inputs[0])[1:3]
        starts = np.cumsum([0, *(x.shape[-1] for x in inputs)]).tolist()
        outputs = None
        # The first map, which needs no resizing, comes last: what the others need in between is
        # large, and so is a sum that waits meanwhile.
        for k in (*range(1, len(inputs)), 0):
            kernel = self.kernel[:, :, starts[k] : starts[k + 1]]
            y = _convolve_resized(inputs[k], kernel, size)
            outputs = y if outputs is None else sublayers.add(outputs, y)
        return outputs

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:3], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _convolve_resized(x, kernel, size):
    """The convolution of `x` resized to `size`, in the cheaper order."""
    own_size = ops.shape(x)[1:3]
    known = all(isinstance(n, int) for n in (*own_size, *size))
    if known and _projecting_is_cheaper(own_size, size, kernel.shape):
        return _project_then_resize(x, kernel, size)
    if not known or tuple(own_size) != tuple(size):
        x = resize_bilinear(x, size)
    return sublayers.convolve(x, kernel)


def _projecting_is_cheaper(own_size, size, kernel_shape):
    """Whether `_project_then_resize` has fewer multiplications; per image and filter."""
    (h, w), (height, width) = own_size, size
    side, _, channels, _ = kernel_shape
    resized_first = side**2 * channels * height * width
    projected = side**2 * channels * h * w
    columns = side * h * width * side * w
    rows = height * side * h * width
    return projected + columns + rows < resized_first


def _project_then_resize(x, kernel, size):
    """`sum_ij R_i (x w_ij) C_j^T`, as three kinds of matrix products."""
    h, w = x.shape[1:3]
    side, _, channels, filters = kernel.shape
    height, width = size
    # Along a row of the image the taps' products lie beside each other: (w, side) is one axis.
    columns = _taps(w, width, side).transpose(1, 2, 0).reshape(width, w * side)
    columns = ops.convert_to_tensor(columns, x.dtype)
    rows = _taps(h, height, side).transpose(1, 0, 2).reshape(height, side * h)
    pixels = ops.reshape(x, (-1, channels))
    resized = []
    for i in range(side):
        matrix = ops.reshape(ops.transpose(kernel[i], (1, 0, 2)), (channels, side * filters))
        y = sublayers.matmul(pixels, matrix)
        y = sublayers.matmul(columns, ops.reshape(y, (-1, w * side, filters)))
        resized.append(ops.reshape(y, (-1, h, width * filters)))
    resized = ops.concatenate(resized, axis=1)
    y = sublayers.matmul(ops.convert_to_tensor(rows, x.dtype), resized)
    return ops.reshape(y, (-1, height, width, filters))


def _taps(n, s, side):
    """Weights `(side, s, n)`: what each tap reads of `n` pixels resized to `s`, zeros around."""
    padded = np.pad(bilinear_matrix(n, s), ((side // 2, side // 2), (0, 0)))
    return np.stack([padded[tap : tap + s] for tap in range(side)])
