"""How far a training is, and how long it will still take: a line in a terminal, lines in a file."""

import shutil
import sys
import time

import keras

from keras_internimage.progress import StatusLine, clock

# Seconds between two updates of a terminal's line, and between two lines of a file.
TERMINAL, FILE = 0.1, 30.0
# So many measured steps give the first estimate.
FIRST_STEPS = 3
# Of a step of training, which computes gradients too. Taken until the first validation is over.
VALIDATION_STEP = 1 / 3
_BAR = 20


class TrainingProgress(keras.callbacks.Callback):
    """Prints the progress of a training, with the time that is left of all its epochs.

    After the first steps, and at the end of each epoch, there is a line with the estimate. Between
    these, a terminal shows a progress bar; any other output gets a line from time to time, so that
    a log file is never silent for long.

    The estimate is the measured time of the steps to come, without the first one, which compiles,
    and what the last epoch took besides its steps: validation and saving.

    Args:
        epochs: of the whole training.
        steps: batches of an epoch.
        validation_steps: batches of a validation.
        compiles: whether the first step compiles the model; then that is said.
        clock: function that returns seconds.
        stream: where to print, None for standard output.
        interval: seconds between two lines where the stream is no terminal.
    """

    def __init__(
        self,
        epochs,
        steps,
        validation_steps,
        compiles,
        clock=time.monotonic,
        stream=None,
        interval=FILE,
    ):
        super().__init__()
        self.epochs, self.steps, self.validation_steps = epochs, steps, validation_steps
        self.compiles, self.clock = compiles, clock
        self.stream = sys.stdout if stream is None else stream
        self.terminal = self.stream.isatty()
        self.interval = TERMINAL if self.terminal else interval
        self.line = StatusLine(self.stream)
        self.epoch = self.batch = self.validated = 0
        self._announced = self._estimated = False
        self._first = None  # seconds of the first step
        self._seconds = self._measured = 0  # of the other steps, and how many they were
        self._rest = None  # seconds of the last epoch besides its steps
        self._epoch_start = self._step_start = self._steps_end = self._shown = 0.0

    def announce(self):
        """Says that the model is compiled, where it is; once."""
        if self.compiles and not self._announced:
            self._print("Compiling the model: the first step takes longer than the others.")
        self._announced = True

    def seconds_left(self):
        """Seconds to the end of the training, None before a step was measured."""
        if self._measured:
            step = self._seconds / self._measured
        elif self._first is not None and self.epoch:  # one step an epoch
            step = self._first
        else:
            return None
        rest = self._rest
        if rest is None:
            rest = VALIDATION_STEP * step * self.validation_steps
        left = step * ((self.epochs - self.epoch) * self.steps - self.batch)
        left += rest * (self.epochs - self.epoch)
        if self.batch == self.steps:  # in validation
            left -= min(rest, self.clock() - self._steps_end)
        return left

    def on_train_begin(self, logs=None):
        self.announce()
        self._shown = self.clock()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.batch, self.validated = epoch, 0, 0
        self._epoch_start = self._step_start = self.clock()

    def on_train_batch_end(self, batch, logs=None):
        now = self.clock()
        if self._first is None:
            self._first = now - self._step_start
            if self.compiles:
                self._print(f"The first step took {clock(self._first)}.")
        else:
            self._seconds += now - self._step_start
            self._measured += 1
        self.batch = batch + 1
        self._step_start = self._steps_end = now
        first = not self._estimated and self._measured >= FIRST_STEPS
        if first or now - self._shown >= self.interval:
            self._show(logs, whole=first)

    def on_test_batch_end(self, batch, logs=None):
        self.validated = batch + 1
        if self.clock() - self._shown >= self.interval:
            self._show(None)

    def on_epoch_end(self, epoch, logs=None):
        now = self.clock()
        self._rest = now - self._steps_end
        self.epoch, self.batch = epoch + 1, 0
        text = f"epoch {self.epoch} of {self.epochs}: {_results(logs)}, "
        text += f"{clock(now - self._epoch_start)}"
        self._print(text + self._left())
        self._estimated = True

    def close(self):
        """Takes the terminal's line away."""
        self.line.clear()

    def _left(self):
        left = None if self.epoch == self.epochs else self.seconds_left()
        return "" if left is None else f"; about {clock(left)} left of the training"

    def _show(self, logs, whole=False):
        """A line about the epoch that runs; `whole` is one that stays in a terminal too."""
        self._shown = self.clock()
        where = f"epoch {self.epoch + 1} of {self.epochs}, "
        if self.batch == self.steps and self.validated:
            done, total, what = self.validated, self.validation_steps, "validation batch"
        else:
            done, total, what = self.batch, self.steps, "step"
        results = _results(logs)
        rest = f"{what} {done} of {total}{': ' if results else ''}{results}{self._left()}"
        self._estimated = self._estimated or self._measured >= FIRST_STEPS
        if not self.terminal or whole:
            self._print(where + rest)
            return
        filled = _BAR * done // total
        bar = f"[{'=' * filled}{' ' * (_BAR - filled)}] "
        # A line that is longer than the terminal is wide could not be rewritten.
        self.line.show((where + bar + rest)[: shutil.get_terminal_size().columns - 1])

    def _print(self, text):
        self.line.clear()
        print(text, file=self.stream, flush=True)
        self._shown = self.clock()


def _results(logs):
    """Losses and accuracies as text."""
    words = []
    for key, name in (
        ("loss", "loss"),
        ("accuracy", "accuracy"),
        ("logits_mean_iou", "mIoU"),
        ("val_loss", "validation loss"),
        ("val_accuracy", "validation accuracy"),
        ("val_logits_mean_iou", "validation mIoU"),
    ):
        if key in (logs or {}):
            value = float(logs[key])
            words.append(f"{name} {value:.4f}" if "loss" in key else f"{name} {value:.1%}")
    return ", ".join(words)
