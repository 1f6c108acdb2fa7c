"""How long the epochs of a training took."""

import time

import keras


class EpochTimer(keras.callbacks.Callback):
    """Adds the seconds that each epoch took, with its validation, to what is logged.

    It is the first of the callbacks, so that all others see the value. The name is the last one in
    the order of the alphabet, hence the last column of `history.csv`: a row that is added to a file
    without this column leaves the other columns right.
    """

    NAME = "wall_seconds"

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        logs[self.NAME] = round(time.monotonic() - self._began, 3)
