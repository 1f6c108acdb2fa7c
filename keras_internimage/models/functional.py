"""Models whose training starts sooner in TensorFlow.

TensorFlow traces a function twice whose first call makes variables, and keeps both programs: it
takes twice as long until training begins, and more memory from then on. What Keras makes only then
is made before.
"""

import concurrent.futures

import keras

from keras_internimage.layers.composite import registered


@registered
class FunctionalModel(keras.Model):
    """`keras.Model(inputs, outputs)`, whose steps TensorFlow traces once."""

    def make_train_function(self, force: bool = False):
        """As Keras' own."""
        build_optimizer(self)
        return super().make_train_function(force)

    def train_step(self, *args):
        """As Keras' own; `args` end with the data."""
        _build_metrics(self, args[-1])
        return super().train_step(*args)

    def test_step(self, *args):
        """As Keras' own; `args` end with the data."""
        _build_metrics(self, args[-1])
        return super().test_step(*args)


def build_optimizer(model: keras.Model) -> None:
    """Makes the variables of a compiled model's optimizer, where there are none yet."""
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)


def _build_metrics(model, data):
    """Makes the metrics that are known by their names, such as "accuracy"."""
    metrics = getattr(model, "_compile_metrics", None)
    if keras.backend.backend() != "tensorflow" or getattr(metrics, "built", True):
        return
    _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    # All variables of this thread are those of the function that is being traced. Of labels and
    # outputs only the shapes are looked at.
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        other.submit(metrics.build, y, model.output).result()
