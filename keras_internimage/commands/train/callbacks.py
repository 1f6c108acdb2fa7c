"""What happens between the epochs of a training: logs, checkpoints, and stopping."""

import math
import os
import signal
import sys

import keras

from keras_internimage.commands.train import output
from keras_internimage.commands.train.stopping import Diverged, Stopped


class StopOnSignal(keras.callbacks.Callback):
    """Ends `fit` with `Stopped` after the batch in which SIGINT (Ctrl-C) or SIGTERM came.

    The second signal acts at once. What is being written is written to its end, unless a second
    one comes; and then the file before it stays.
    """

    def __init__(self):
        super().__init__()
        self.received = None
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received is not None:
            raise Stopped(number)
        self.received = number
        # print() may be at work in the interrupted code, and is not reentrant.
        os.write(2, b"\nStopping after this batch. Once more: at once.\n")

    def check(self):
        """Raises `Stopped` if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)

    def on_train_batch_end(self, batch, logs=None):
        self.check()

    def on_test_batch_end(self, batch, logs=None):
        self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()


class Watch(keras.callbacks.Callback):
    """Adds the learning rate to what is logged, and ends a training that has diverged."""

    def on_epoch_end(self, epoch, logs=None):
        rate = self.model.optimizer.learning_rate
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(rate))
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise Diverged(
                f"The loss must stay finite. Received: loss={loss} in epoch {epoch + 1}. A lower "
                "--learning-rate, or --precision float32, may help."
            )


class Skipped(keras.callbacks.Callback):
    """Names files that became unreadable, after the epoch in which they did."""

    def __init__(self, *datasets):
        super().__init__()
        self.datasets, self.told = datasets, set()

    def on_epoch_end(self, epoch, logs=None):
        for dataset in self.datasets:
            for path, reason in list(dataset.skipped.items()):
                if path not in self.told:
                    self.told.add(path)
                    print(f"\nleft out from now on: {path}: {reason}", file=sys.stderr)


class TensorBoard(keras.callbacks.Callback):
    """Losses, metrics and the learning rate of each epoch for TensorBoard, without TensorFlow.

    Those of training and of validation are two runs of the same names, `train` and `validation`, so
    that TensorBoard draws them into one picture.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.writers = {}

    def on_epoch_end(self, epoch, logs=None):
        from tensorboardX import SummaryWriter

        for name, value in logs.items():
            run = "validation" if name.startswith("val_") else "train"
            if run not in self.writers:
                # Of a training that goes on, epochs from this one on are void.
                self.writers[run] = SummaryWriter(str(self.folder / run), purge_step=epoch)
            self.writers[run].add_scalar(f"epoch/{name.removeprefix('val_')}", value, epoch + 1)
        for writer in self.writers.values():
            writer.flush()

    def close(self):
        """Ends the writers' threads."""
        for writer in self.writers.values():
            writer.close()


class Checkpoints(keras.callbacks.Callback):
    """Writes `best.keras` when validation is better than ever, and then `last.keras`.

    Better is: more accurate, or as accurate at less loss. `last.keras` is the state from which a
    training goes on, `best.keras` what was validated. With a moving average of the weights these
    differ: the average is validated.

    Args:
        folder: where the files go.
        history: of the epochs so far.
        average: `keras.callbacks.SwapEMAWeights` of this training, or None.
    """

    def __init__(self, folder, history, average=None):
        super().__init__()
        self.folder, self.average = folder, average
        past = zip(history.get("val_accuracy", ()), history.get("val_loss", ()), strict=True)
        self.best = max((score(*values) for values in past), default=None)

    def on_epoch_end(self, epoch, logs=None):
        now = score(logs["val_accuracy"], logs["val_loss"])
        if self.best is None or now > self.best:
            self.best = now
            if self.average is not None:
                self.average.on_test_begin()
            save(self.model, self.folder / output.BEST)
            if self.average is not None:
                self.average.on_test_end()
        save(self.model, self.folder / output.LAST)


def score(accuracy, loss):
    """What is compared: the accuracy, then the loss."""
    return accuracy, -loss if math.isfinite(loss) else -math.inf


def best_epoch(history):
    """The index of the epoch that `best.keras` is of: the first of the best."""
    pairs = zip(history["val_accuracy"], history["val_loss"], strict=True)
    scores = [score(*pair) for pair in pairs]
    return scores.index(max(scores))


def save(model, path):
    """Writes a whole model, or leaves the file that was there."""
    with output.replaced(path) as unfinished:
        model.save(unfinished)
