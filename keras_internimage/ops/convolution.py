"""Convolutions with kernels of 3 x 3 on processors, in fewer multiplications."""

import math

import keras
from keras import ops

from keras_internimage.ops import dispatch

# Below these numbers of pixels and of channels the plain sum is as fast: the kernel is transformed
# in every call.
_FEWEST_PIXELS = 48 * 16
_FEWEST_CHANNELS = 64


def convolution(inputs, kernel, bias=None, relu: bool = False):
    """A convolution of stride 1 with zeros around by the native kernels, where they are faster.

    ```
    y[i, j] = sum_kl x[i + k - 1, j + l - 1] w[k, l] + b,  then max(y, 0) with `relu`
    ```

    Each tile of 4 x 4 pixels takes 36 products for a channel and a filter instead of 144. Rounding
    errors are one to four times the plain sum's. Gradients are the backend's, by the plain sum.

    Args:
        inputs: `(N, H, W, C)`.
        kernel: `(3, 3, C, F)`.
        bias: `(F)`, None for zeros.
        relu: whether what is negative becomes zero.

    Returns:
        A tensor `(N, H, W, F)`, or None where the kernels cannot run, or the backend's own
        convolution is as fast: small or few images or channels, other kernels than 3 x 3, other
        types than float32, other devices than processors, what is exported, several devices.

    Source: Lavin and Gray, [Fast Algorithms for Convolutional Neural
    Networks](https://arxiv.org/abs/1509.09308), CVPR 2016, the algorithm F(4 x 4, 3 x 3), with the
    points 0, 1/sqrt(2), -1/sqrt(2), sqrt(2), -sqrt(2) and infinity.
    """
    kernels = _kernels(inputs, kernel)
    if kernels is None:
        return None
    if bias is None:
        bias = ops.zeros((kernel.shape[3],), "float32")
    return kernels.convolution(inputs, kernel, bias, relu)


def runs(inputs, kernel) -> bool:
    """Whether `convolution` computes these."""
    return _kernels(inputs, kernel) is not None


def _kernels(inputs, kernel):
    if not _worthwhile(inputs, kernel) or dispatch.device_of(inputs) != "cpu":
        return None
    if keras.backend.backend() == "jax" and _several_devices():
        return None  # which have images of their own
    return dispatch.native_kernels("convolution", inputs)


def _worthwhile(inputs, kernel):
    if isinstance(inputs, keras.KerasTensor) or len(inputs.shape) != 4:
        return False
    shape, size = tuple(inputs.shape), tuple(kernel.shape)
    types = {keras.backend.standardize_dtype(tensor.dtype) for tensor in (inputs, kernel)}
    if types != {"float32"} or size[:2] != (3, 3) or min(size[2:]) < _FEWEST_CHANNELS:
        return False
    unknown = not all(isinstance(length, int) for length in shape[:3])
    return unknown or math.prod(shape[:3]) >= _FEWEST_PIXELS


def _several_devices():
    import jax

    return jax.device_count() > 1
