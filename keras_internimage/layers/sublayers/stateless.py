"""Whether Keras' variables have values other than their own."""

import keras


def in_stateless_scope() -> bool:
    """Whether a call is within a `keras.StatelessScope`, as those of `stateless_call` are.

    PyTorch and TensorFlow rematerialise after the scope has ended, when variables have their own
    values again: the gradient would be that of another model, and none for the values given.
    """
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope is not None
