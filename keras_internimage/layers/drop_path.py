"""Stochastic depth."""

import keras
from keras import ops

from keras_internimage.layers.composite import registered


@registered
class DropPath(keras.layers.Layer):
    """Drops a residual branch for some samples of a batch while training.

    ```
    y = x * b / (1 - rate),   b ~ Bernoulli(1 - rate), one draw per sample
    ```

    At inference, and with `rate=0`, it returns its input. With `rate=0` it also has no
    random state at all, so that models without stochastic depth export as pure functions.

    Args:
        rate: probability of dropping a sample's branch, at least 0 and less than 1.
        seed: integer seed, or None for a random one.

    Raises:
        ValueError: `rate` is outside [0, 1).

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be at least 0 and less than 1. Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        if rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        # Or Keras would trace a whole model once more before it trains, for this layer's sake.
        self.built = True

    def call(self, inputs, training=None):
        if not training or self.rate == 0:
            return inputs
        return inputs * self.draw(inputs)

    def draw(self, inputs):
        """The factors `b / (1 - rate)`, shaped to be multiplied with `inputs`."""
        keep = 1.0 - self.rate
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        draw = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        return ops.cast(ops.where(draw < keep, 1.0 / keep, 0.0), inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
