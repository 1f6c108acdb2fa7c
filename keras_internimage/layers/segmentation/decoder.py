"""The decoder of UperNet, as one layer."""

from keras_internimage.layers.composite import CompositeLayer, check_image_features, registered
from keras_internimage.layers.convolutions import NormalizedConvolution, TopDownConvolution
from keras_internimage.layers.resampling import adaptive_average_pool

# Sides of the grids that the coarsest map is pooled to.
POOL_SIZES = (1, 2, 3, 6)


@registered
class UperNetDecoder(CompositeLayer):
    """Pyramid pooling, a top-down path and the fusion of all levels.

    ```
    p     = conv3(concat(x_K, up(conv1(pool_s(x_K))) for s = 1, 2, 3, 6))     pyramid pooling
    l_k   = conv1(x_k) + up(l_{k+1}),   l_K = p                               k = K - 1, ..., 1
    y     = conv3(concat(conv3(l_1), up(conv3(l_2)), ..., up(p)))
    ```

    Batch normalisation and ReLU follow each convolution. `up` is bilinear, to the exact size of
    the map it is joined with.

    As one layer, because a Functional model keeps the outputs of all its layers until its last
    one has run: the decoder's are the largest maps of the model.

    Args:
        channels: of all its maps.

    Input shape: a list of K maps `(N, h, w, C_k)`, finest first; sizes may be unknown.
    Output shape: `(N, h_1, w_1, channels)`.

    Reference:
        [Unified Perceptual Parsing for Scene Understanding](https://arxiv.org/abs/1807.10221)
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        policy = self.dtype_policy
        self.pools = [
            NormalizedConvolution(channels, 1, name=f"pool{k}", dtype=policy)
            for k in range(1, len(POOL_SIZES) + 1)
        ]
        self.pool_fusion = NormalizedConvolution(channels, 3, name="pool_fusion", dtype=policy)
        self.fusion = NormalizedConvolution(channels, 3, name="fusion", dtype=policy)

    def build(self, input_shape):
        for shape in input_shape:
            check_image_features(self, shape)
        *fine, coarsest = input_shape
        self.laterals, self.outputs_of_levels = [], []
        for k, shape in enumerate(fine, start=1):
            lateral = TopDownConvolution(self.channels, name=f"lateral{k}", dtype=self.dtype_policy)
            output = NormalizedConvolution(
                self.channels, 3, name=f"output{k}", dtype=self.dtype_policy
            )
            level = (*shape[:3], self.channels)
            lateral.build([shape, level])
            output.build(level)
            self.laterals.append(lateral)
            self.outputs_of_levels.append(output)
        for pool, size in zip(self.pools, POOL_SIZES, strict=True):
            pool.build((coarsest[0], size, size, coarsest[-1]))
        pooled = (*coarsest[:3], self.channels)
        self.pool_fusion.build([tuple(coarsest), *[pooled] * len(self.pools)])
        self.fusion.build([(*shape[:3], self.channels) for shape in input_shape])
        self.built = True

    def call(self, inputs, training=None):
        *fine, coarsest = inputs
        pooled = [
            pool(adaptive_average_pool(coarsest, (size, size)), training=training)
            for pool, size in zip(self.pools, POOL_SIZES, strict=True)
        ]
        above = self.pool_fusion([coarsest, *pooled], training=training)
        levels = [above]
        # From the coarsest to the finest: each map receives the one above it.
        for k in reversed(range(len(fine))):
            above = self.laterals[k]([fine[k], above], training=training)
            levels.insert(0, self.outputs_of_levels[k](above, training=training))
        del above
        return self.fusion(levels, training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:3], self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
