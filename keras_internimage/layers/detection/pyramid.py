"""The feature pyramid: maps of one width, to each of which the coarser ones are added."""

from keras import ops

from keras_internimage.layers.composite import check_image_features, registered
from keras_internimage.layers.detection.convolutions import ConvolutionalLayer


@registered
class FeaturePyramid(ConvolutionalLayer):
    """A feature pyramid network.

    ```
    l_k = conv1(x_k) + up(l_{k + 1}),   P_k = conv3(l_k),   the last P = every second pixel of P_K
    ```

    `up` is nearest, to the exact size of the map it is added to: pixel `i` of `s` is number
    `floor(i n / s)` of `n`. Convolutions have a bias and nothing after them.

    Args:
        channels: width of all outputs.

    Input shape: a list of K maps `(N, h, w, C_k)`, finest first.
    Output shape: a list of K + 1 maps `(N, h, w, channels)`; the last has half the size of the
    one before, rounded up.

    Reference:
        [Feature Pyramid Networks for Object Detection](https://arxiv.org/abs/1612.03144)
    """

    def __init__(self, channels: int = 256, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

    def build(self, input_shape):
        self.laterals, self.outputs_of_levels = [], []
        for k, shape in enumerate(input_shape, start=1):
            check_image_features(self, shape)
            lateral = self._convolution(self.channels, 1, f"lateral{k}", "glorot_uniform")
            output = self._convolution(self.channels, 3, f"output{k}", "glorot_uniform")
            lateral.build(shape)
            output.build((*shape[:3], self.channels))
            self.laterals.append(lateral)
            self.outputs_of_levels.append(output)
        self.built = True

    def call(self, inputs):
        maps = [self._run(lateral, x) for lateral, x in zip(self.laterals, inputs, strict=True)]
        for k in range(len(maps) - 1, 0, -1):
            maps[k - 1] = maps[k - 1] + nearest(maps[k], ops.shape(maps[k - 1])[1:3])
        maps = [
            self._run(output, x) for output, x in zip(self.outputs_of_levels, maps, strict=True)
        ]
        return [*maps, maps[-1][:, ::2, ::2]]

    def compute_output_shape(self, input_shape):
        shapes = [(*shape[:3], self.channels) for shape in input_shape]
        half = (None if n is None else (n + 1) // 2 for n in shapes[-1][1:3])
        return [*shapes, (shapes[-1][0], *half, self.channels)]

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def nearest(inputs, size):
    """Nearest resizing of `(N, H, W, C)`, as `torch.nn.functional.interpolate(mode="nearest")`.

    Pixel `i` of `s` is number `floor(i n / s)` of `n`. `keras.ops.image.resize` rounds half
    pixels, each backend in its own way, for other factors than whole ones.
    """
    for axis, s in zip((1, 2), size, strict=True):
        n = ops.shape(inputs)[axis]
        if isinstance(n, int) and isinstance(s, int) and s % n == 0:
            inputs = ops.repeat(inputs, s // n, axis=axis) if s != n else inputs
        else:
            inputs = ops.take(inputs, ops.arange(s, dtype="int32") * n // s, axis=axis)
    return inputs
