"""The values that a layer's variables start with, made where that costs nothing.

JAX compiles what makes the values for each shape of a variable, which takes most of the time of
building a model, and keeps the programs in memory. NumPy makes them at once. Measured by
`benchmarks/build_time.py`.
"""

import contextlib
import contextvars

import keras
import numpy as np

_skip_initialization = contextvars.ContextVar("skip_initialization", default=False)


@contextlib.contextmanager
def skip_initialization(follow=True):
    """Layers of this package that are built in here get their variables' values right after.

    They start as zeros then: random numbers of a model with billions of parameters take minutes,
    and what it takes to draw them more memory than the model.
    """
    token = _skip_initialization.set(follow or _skip_initialization.get())
    try:
        yield
    finally:
        _skip_initialization.reset(token)


@keras.saving.register_keras_serializable(package="keras_internimage")
class InitialValues(keras.initializers.Initializer):
    """The values of another initializer, except where `skip_initialization`.

    On JAX they are NumPy's, of the same distribution and a function of the same seed. Variables so
    large that Keras has each device make its own part are left to it.

    Args:
        initializer: the other one.
        skipped: False for variables that the weights may lack.
    """

    def __init__(self, initializer, skipped=True):
        self.initializer = keras.initializers.get(initializer)
        self.skipped = skipped

    def __call__(self, shape, dtype=None, **kwargs):
        initializer = self.initializer
        if self.skipped and _skip_initialization.get():
            initializer = keras.initializers.Zeros()
        values = None
        if keras.backend.backend() == "jax" and not kwargs and not _traced():
            values = by_numpy(initializer, shape)
        if values is None:
            return initializer(shape, dtype, **kwargs)
        import jax

        return jax.device_put(values.astype(jax.numpy.dtype(dtype or keras.config.floatx())))

    def get_config(self):
        initializer = keras.initializers.serialize(self.initializer)
        return {"initializer": initializer, "skipped": self.skipped}


def _traced():
    import jax

    return isinstance(jax.device_put(np.float32(0)), jax.core.Tracer)


def initial_scale_and_shift():
    """Arguments of Keras' norms: their own initial values."""
    return {
        "gamma_initializer": InitialValues("ones"),
        "beta_initializer": InitialValues("zeros"),
    }


def by_numpy(initializer, shape):
    """What one of Keras' initializers stands for, in float32; None for one not known here."""
    kinds = keras.initializers
    if isinstance(initializer, (kinds.Zeros, kinds.Ones)):
        return (np.zeros if isinstance(initializer, kinds.Zeros) else np.ones)(shape, "float32")
    if type(initializer) is kinds.Constant and np.ndim(initializer.value) == 0:
        return np.full(shape, initializer.value, "float32")
    if not isinstance(getattr(initializer, "seed", None), int):
        return None
    draw = np.random.default_rng(initializer.seed)
    if type(initializer) is kinds.RandomUniform:
        return _uniform(draw, shape, initializer.minval, initializer.maxval)
    if type(initializer) is kinds.RandomNormal:
        return _normal(draw, shape, initializer.mean, initializer.stddev)
    if type(initializer) is kinds.TruncatedNormal:
        return _truncated(draw, shape, initializer.mean, initializer.stddev)
    if not isinstance(initializer, kinds.VarianceScaling) or len(shape) < 2:
        return None
    if initializer.input_axes is not None or initializer.output_axes is not None:
        return None
    window = int(np.prod(shape[:-2]))
    fans = {"fan_in": window * shape[-2], "fan_out": window * shape[-1]}
    fans["fan_avg"] = (fans["fan_in"] + fans["fan_out"]) / 2
    variance = initializer.scale / max(1.0, fans[initializer.mode])
    if initializer.distribution == "uniform":
        return _uniform(draw, shape, -np.sqrt(3 * variance), np.sqrt(3 * variance))
    if initializer.distribution == "untruncated_normal":
        return _normal(draw, shape, 0, np.sqrt(variance))
    return _truncated(draw, shape, 0, np.sqrt(variance) / _DEVIATION_WITHIN_TWO)


# Of standard normal numbers between -2 and 2.
_DEVIATION_WITHIN_TWO = 0.87962566103423978


def _uniform(draw, shape, low, high):
    values = draw.random(shape, "float32")
    values *= high - low
    values += low
    return values


def _normal(draw, shape, mean, deviation):
    values = draw.standard_normal(shape, "float32")
    values *= deviation
    values += mean
    return values


def _truncated(draw, shape, mean, deviation):
    values = draw.standard_normal(shape, "float32")
    while (outside := np.abs(values) > 2).any():
        values[outside] = draw.standard_normal(int(outside.sum()), "float32")
    values *= deviation
    values += mean
    return values
