"""The feature pyramid: maps of one width, to each of which the coarser ones are added."""

from keras import ops

from keras_internimage.layers.composite import check_image_features, registered
from keras_internimage.layers.detection.convolutions import ConvolutionalLayer

# That of MMCV's norms.
_EPSILON = 1e-5


@registered
class FeaturePyramid(ConvolutionalLayer):
    """A feature pyramid network.

    ```
    l_k = conv1(x_k) + up(l_{k + 1}),   P_k = conv3(l_k),   the last P = every second pixel of P_K
    ```

    `up` is nearest, to the exact size of the map it is added to: pixel `i` of `s` is number
    `floor(i n / s)` of `n`. Convolutions have a bias and nothing after them, or with `norm` no bias
    and a layer norm after them.

    Args:
        channels: width of all outputs.
        norm: whether layer norms follow the convolutions, as in ViTDet's pyramid and in the
            official detectors on FlashInternImage.

    Input shape: a list of K maps `(N, h, w, C_k)`, finest first.
    Output shape: a list of K + 1 maps `(N, h, w, channels)`; the last has half the size of the
    one before, rounded up.

    Reference:
        [Feature Pyramid Networks for Object Detection](https://arxiv.org/abs/1612.03144)
    """

    def __init__(self, channels: int = 256, norm: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.norm = norm

    def build(self, input_shape):
        self.laterals, self.outputs_of_levels = [], []
        self.lateral_norms, self.output_norms = [], []
        for k, shape in enumerate(input_shape, start=1):
            check_image_features(self, shape)
            own = (*shape[:3], self.channels)
            for name, side, of, convolutions, norms in (
                ("lateral", 1, shape, self.laterals, self.lateral_norms),
                ("output", 3, own, self.outputs_of_levels, self.output_norms),
            ):
                convolution = self._convolution(
                    self.channels, side, f"{name}{k}", "glorot_uniform", use_bias=not self.norm
                )
                convolution.build(of)
                convolutions.append(convolution)
                if self.norm:
                    norm = self._layer_norm(f"{name}{k}_norm", _EPSILON)
                    norm.build(own)
                    norms.append(norm)
        self.built = True

    def call(self, inputs):
        maps = self._convolve(self.laterals, self.lateral_norms, inputs)
        for k in range(len(maps) - 1, 0, -1):
            maps[k - 1] = maps[k - 1] + nearest(maps[k], ops.shape(maps[k - 1])[1:3])
        maps = self._convolve(self.outputs_of_levels, self.output_norms, maps)
        return [*maps, maps[-1][:, ::2, ::2]]

    def _convolve(self, convolutions, norms, maps):
        for layers in (convolutions, norms) if self.norm else (convolutions,):
            maps = [self._run(layer, x) for layer, x in zip(layers, maps, strict=True)]
        return maps

    def compute_output_shape(self, input_shape):
        shapes = [(*shape[:3], self.channels) for shape in input_shape]
        half = (None if n is None else (n + 1) // 2 for n in shapes[-1][1:3])
        return [*shapes, (shapes[-1][0], *half, self.channels)]

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "norm": self.norm}


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
