"""What happens between the epochs of a training: logs, checkpoints, and stopping."""

import math
import os
import signal
import sys

import keras

from keras_internimage.commands.train import disk, output
from keras_internimage.commands.train.stopping import Diverged, Stopped


class StopOnSignal(keras.callbacks.Callback):
    """Ends `fit` with `Stopped` after the batch in which SIGINT (Ctrl-C) or SIGTERM came.

    A second signal ends it at once. A file that is being written when the first one comes is
    finished; when a second one comes, the file's former version stays.
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
        # The interrupted code may be inside print(), which is not reentrant.
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


class LearningRateLogger(keras.callbacks.Callback):
    """Adds the learning rate to what the callbacks after this one log."""

    def on_epoch_end(self, epoch, logs=None):
        rate = self.model.optimizer.learning_rate
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(rate))


class TerminateOnDivergence(keras.callbacks.Callback):
    """Ends `fit` with `Diverged` after an epoch whose loss is not finite.

    Unlike `keras.callbacks.TerminateOnNaN`, which ends `fit` as if all epochs were done.
    """

    def on_epoch_end(self, epoch, logs=None):
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise Diverged(
                f"The loss must stay finite. Received: loss={loss} in epoch {epoch + 1}. A lower "
                "--learning-rate, or --precision float32, may help."
            )


class UnreadableFiles(keras.callbacks.Callback):
    """Names files that became unreadable, after the epoch in which they did."""

    def __init__(self, *datasets):
        super().__init__()
        self.datasets, self.named = datasets, set()

    def on_epoch_end(self, epoch, logs=None):
        for dataset in self.datasets:
            for path, reason in list(dataset.skipped.items()):
                if path not in self.named:
                    self.named.add(path)
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
        with disk.naming(self.folder):
            self._write(epoch, logs)

    def _write(self, epoch, logs):
        from tensorboardX import SummaryWriter

        for name, value in logs.items():
            run = "validation" if name.startswith("val_") else "train"
            if run not in self.writers:
                # What an interrupted training wrote about later epochs is void.
                self.writers[run] = SummaryWriter(str(self.folder / run), purge_step=epoch)
            self.writers[run].add_scalar(f"epoch/{name.removeprefix('val_')}", value, epoch + 1)
        for writer in self.writers.values():
            writer.flush()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """Ends the writers' threads."""
        try:
            with disk.naming(self.folder):
                for writer in self.writers.values():
                    writer.close()
        except disk.DiskFull:
            if error is None:  # otherwise that one is the cause, and names its file
                raise


class History(keras.callbacks.CSVLogger):
    """Adds a row to `history.csv` after each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        with disk.naming(self.filename):
            super().on_epoch_end(epoch, logs)


class Checkpoints(keras.callbacks.Callback):
    """Writes `best.keras` when validation is better than ever, and then `last.keras`.

    Better is: more accurate (of segmentation: of higher mIoU), or as accurate at less loss.
    `last.keras` is the state from which a training resumes, `best.keras` what was validated. With a
    moving average of the weights these differ: the average is validated.

    Before each epoch there must be room for both, so that no epoch is trained in vain.

    Args:
        folder: where the files go.
        history: of the epochs so far.
        average: `keras.callbacks.SwapEMAWeights` of this training, or None.
        metric: what is measured in validation: its key in the history.
    """

    def __init__(self, folder, history, average=None, metric="val_accuracy"):
        super().__init__()
        self.folder, self.average, self.metric = folder, average, metric
        past = zip(history.get(metric, ()), history.get("val_loss", ()), strict=True)
        self.best = max((score(*values) for values in past), default=None)

    def on_epoch_begin(self, epoch, logs=None):
        size = checkpoint_size(self.model)
        files = {f"a new {output.LAST}": size}  # the old one stays until it is written
        if not (self.folder / output.BEST).exists():
            files[output.BEST] = size
        disk.check(self.folder, files)

    def on_epoch_end(self, epoch, logs=None):
        now = score(logs[self.metric], logs["val_loss"])
        if self.best is None or now > self.best:
            self.best = now
            if self.average is not None:
                self.average.on_test_begin()
            save(self.model, self.folder / output.BEST)
            if self.average is not None:
                self.average.on_test_end()
        save(self.model, self.folder / output.LAST)


class EarlyStopping(keras.callbacks.Callback):
    """Ends `fit` after so many epochs without a better one, as `Checkpoints` judges it.

    It knows of the epochs before a resumption, which `keras.callbacks.EarlyStopping` does not.

    Args:
        patience: number of epochs.
        history: of the epochs so far.
        start: the epoch, from 0, from which on epochs without improvement are counted.
        metric: what is measured in validation: its key in the history.
    """

    def __init__(self, patience, history, start=0, metric="val_accuracy"):
        super().__init__()
        self.patience, self.start, self.metric = patience, start, metric
        self.history = {key: list(history.get(key, ())) for key in (metric, "val_loss")}

    def on_epoch_end(self, epoch, logs=None):
        for key, values in self.history.items():
            values.append(logs[key])
        if stops_early(self.patience, self.history, self.start, self.metric):
            self.model.stop_training = True


def stops_early(patience, history, start=0, metric="val_accuracy"):
    """Whether a training ends after the epochs in its history; arguments as of `EarlyStopping`."""
    epochs = len(history.get("val_loss", ()))
    if not patience or not epochs:
        return False
    return epochs - max(best_epoch(history, metric) + 1, start) >= patience


def score(metric, loss):
    """What is compared: the metric, then the loss. The mIoU is NaN where no pixel counts."""
    return tuple(x if math.isfinite(x) else -math.inf for x in (metric, -loss))


def best_epoch(history, metric="val_accuracy"):
    """The index of the epoch that `best.keras` is of: the first of the best."""
    pairs = zip(history[metric], history["val_loss"], strict=True)
    scores = [score(*pair) for pair in pairs]
    return scores.index(max(scores))


def save(model, path):
    """Writes a whole model, or leaves the file that was there.

    Raises:
        DiskFull: there is no room for it.
    """
    with output.durable_write(path, checkpoint_size(model)) as unfinished:
        model.save(unfinished)


def checkpoint_size(model):
    """Bytes of a model's file, with the state of its optimizer if it has one."""
    optimizer = getattr(model, "optimizer", None)
    state = [] if optimizer is None else optimizer.variables
    return disk.size_of([*model.variables, *state])
