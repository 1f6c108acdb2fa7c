"""Models whose training starts sooner in TensorFlow."""

import keras

from keras_internimage.layers.composite import registered


@registered
class FunctionalModel(keras.Model):
    """`keras.Model(inputs, outputs)`, prepared for training as by `build_optimizer`."""

    def make_train_function(self, force: bool = False):
        """As Keras' own."""
        build_optimizer(self)
        return super().make_train_function(force)


def build_optimizer(model: keras.Model) -> None:
    """Makes the variables of a compiled model's optimizer, where there are none yet.

    TensorFlow traces a function twice whose first call makes variables, and keeps both programs:
    without this it takes twice as long until training begins, and a third more memory from then
    on.
    """
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
