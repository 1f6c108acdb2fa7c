"""The image head of InternImage-H and -G: two feature levels joined, then attention pooling."""

import keras
from keras import ops

from keras_internimage.layers.composite import (
    CompositeLayer,
    check_image_features,
    linear_initializer,
    registered,
)


@registered
class PixelShuffleAdd(keras.layers.Layer):
    """Adds features at half resolution, with their channels unfolded into pixels, to others.

    ```
    y[n, 2 i + di, 2 j + dj, c] = fine[n, 2 i + di, 2 j + dj, c]
                                + coarse[n, i, j, (2 di + dj) C + c]
    ```

    Input shape: a list `[coarse (N, H / 2, W / 2, 4 C), fine (N, H, W, C)]`.
    Output shape: `(N, H, W, C)`.

    Raises:
        ValueError: `fine` is not twice as large as `coarse`, which in InternImage-H and -G
            means that the image's sides are not multiples of 32.
    """

    def call(self, inputs):
        coarse, fine = inputs
        self._check(coarse.shape, fine.shape)
        return fine + ops.depth_to_space(coarse, 2, data_format="channels_last")

    def compute_output_shape(self, input_shape):
        coarse, fine = input_shape
        self._check(coarse, fine)
        return fine

    def _check(self, coarse, fine):
        known = [
            (a, b)
            for a, b in zip(coarse[1:3], fine[1:3], strict=True)
            if isinstance(a, int) and isinstance(b, int)
        ]
        if any(2 * a != b for a, b in known):
            raise ValueError(
                f"The fine features of '{self.name}' must be twice as large as the coarse ones; "
                "for InternImage-H and -G height and width of the image must be multiples of 32. "
                f"Received: coarse shape={tuple(coarse)}, fine shape={tuple(fine)}"
            )


@registered
class AttentionPooling(CompositeLayer):
    """Pools the pixels of a feature map by attention, with their mean as the only query.

    ```
    t      = pixels of x, row by row                      (N, H W, C)
    q      = query(norm_q(mean(t)));  k = key(norm_k(t));  v = value(norm_v(t))
    output = proj(softmax(q k' / sqrt(C / heads)) v)      (N, output_dim), heads apart
    ```

    Args:
        num_heads: number of attention heads, must divide the number of channels.
        output_dim: number of output channels.

    Input shape: `(N, H, W, C)`. Output shape: `(N, output_dim)`.

    Raises:
        ValueError: `num_heads` does not divide the number of channels.

    Source: the attention pooling block of the official InternImage-H.
    """

    def __init__(self, num_heads: int, output_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.output_dim = output_dim
        self.norm_q = self._layer_norm("norm_q")
        self.norm_k = self._layer_norm("norm_k")
        self.norm_v = self._layer_norm("norm_v")

    def build(self, input_shape):
        check_image_features(self, input_shape)
        channels = input_shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the number of input channels. "
                f"Received: num_heads={self.num_heads}, input channels={channels}"
            )
        # An initializer for each: one would draw the same numbers for all.
        self.query, self.key, self.value = (
            self._dense(channels, name, kernel_initializer=linear_initializer())
            for name in ("query", "key", "value")
        )
        self.proj = self._dense(self.output_dim, "proj", kernel_initializer=linear_initializer())
        tokens = (input_shape[0], None, channels)
        for layer in (self.norm_q, self.norm_k, self.norm_v, self.query, self.key, self.value):
            layer.build(tokens)
        self.proj.build((input_shape[0], channels))
        self.built = True

    def call(self, inputs):
        shape = ops.shape(inputs)
        channels = inputs.shape[-1]
        tokens = ops.reshape(inputs, (shape[0], shape[1] * shape[2], channels))
        mean = ops.mean(tokens, axis=1, keepdims=True)
        query = self._project(self.norm_q, self.query, mean)
        key = self._project(self.norm_k, self.key, tokens)
        value = self._project(self.norm_v, self.value, tokens)
        pooled = ops.dot_product_attention(query, key, value)
        return self._run(self.proj, ops.reshape(pooled, (-1, channels)))

    def _project(self, norm, projection, x):
        x = self._run(projection, self._run(norm, x))
        shape = ops.shape(x)
        size = x.shape[-1] // self.num_heads
        return ops.reshape(x, (shape[0], shape[1], self.num_heads, size))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.output_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "output_dim": self.output_dim,
        }
