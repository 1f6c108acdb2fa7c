"""The training itself: from settings and images to a model and its report."""

import contextlib
import dataclasses
import random

import keras
import numpy as np

from keras_internimage import __version__, training
from keras_internimage.checkpoints.errors import DownloadError
from keras_internimage.commands.train import callbacks, disk, output, tasks
from keras_internimage.commands.train.epoch_timer import EpochTimer
from keras_internimage.commands.train.layers import copy_weights
from keras_internimage.commands.train.training_progress import TrainingProgress
from keras_internimage.data import labels
from keras_internimage.data.batches import EpochSetter
from keras_internimage.variants import VARIANTS


def build_model(settings, classes, weights):
    """The model of a training: random, or with `weights`.

    Raises:
        ValueError: the weights cannot be had or do not fit; it says which options help.
    """
    weights = None if weights == "none" else weights
    try:
        return settings.of_task().module().build_model(settings, classes, weights)
    except DownloadError as error:
        raise ValueError(
            f"{error}\n--weights PATH takes a file that is here, --weights none trains from "
            "scratch."
        ) from error


def seed_everything(seed):
    """Seeds Python, NumPy and Keras' backend.

    As `keras.utils.set_random_seed`, which would import TensorFlow on every backend.
    """
    if keras.config.backend() == "tensorflow":
        keras.utils.set_random_seed(seed)
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if keras.config.backend() == "torch":
        import torch

        torch.manual_seed(seed)


class Run:
    """One training in one output folder.

    Args:
        folder: the output folder, locked.
        settings: `Settings`.
        images: what the task's `scan` found (of a resumed training without notes).
        threads: threads that decode images, None for one per processor.
        record: what `run.json` has besides the settings, by name.
    """

    def __init__(self, folder, settings, images, threads=None, record=None):
        self.folder, self.settings, self.images = folder, settings, images
        self.task, self.module = settings.of_task(), settings.of_task().module()
        self.record = {
            "classes": list(images.class_names),
            "skipped": _listed(images),
            **self.module.record(images),
            **(record or {}),
        }
        self.row = settings.recipe_row()
        keras.config.set_dtype_policy(settings.precision)
        self.classes = len(images.class_names)
        self.train, self.validation = self.module.batches(settings, self.row, images, threads)
        self.updates = len(self.train) // settings.accumulation  # in an epoch

    @property
    def extended_at(self):
        """How many epochs were done when the training was last extended, or 0."""
        return (self.record.get("extended_at") or [0])[-1]

    def begin(self, model, reasons):
        """Writes what a resumed training needs, from the first epoch on.

        Raises:
            DiskFull: there is no room for the training; nothing is left behind.
        """
        self.compile(model)
        self.check_room(model, first=True)
        try:
            output.write_images(self.folder, self.module.rows(self.images, self.settings))
            with disk.naming(self.folder / labels.FILE):
                self.module.write_labels(self.folder, self.settings, self.images)
            callbacks.save(model, self.folder / output.LAST)
            self.write_settings(reasons=reasons)
        except BaseException:
            # Without run.json, the folder would be refused from now on.
            if not (self.folder / output.SETTINGS).exists():
                for name in (output.IMAGES, *self.module.FILES, output.LAST):
                    (self.folder / name).unlink(missing_ok=True)
            raise

    def check_room(self, model, first=False):
        """Raise `DiskFull` unless there is room for the files that the training will write."""
        size = callbacks.checkpoint_size(model)
        files = {f"a new {output.LAST}": size, "logs and report": disk.OTHER_FILES}
        if first:
            files[output.LAST] = size
        if not (self.folder / output.BEST).exists():
            files[output.BEST] = size
        if not (self.folder / output.MODEL).exists():
            files[output.MODEL] = disk.size_of(model.variables)
        disk.check(self.folder, files)

    def compile(self, model):
        settings = self.settings
        if settings.freeze:
            training.freeze(model, settings.freeze)
        optimizer = training.optimizer(
            model,
            self.row,
            steps=self.updates * settings.epochs,
            batch_size=settings.batch_size * settings.accumulation,
            accumulation=settings.accumulation,
        )
        model.compile(optimizer, **self.module.objective(self.row, self.classes))
        # Built now, so that what is saved before the first step has all its variables.
        model.optimizer.build(model.trainable_variables)

    def write_settings(self, **more):
        """Writes `run.json`; `more` is added to the record."""
        self.record |= more
        content = {
            **self.record,
            "keras_internimage": __version__,
            "settings": dataclasses.asdict(self.settings),
        }
        with disk.naming(self.folder / output.SETTINGS):
            labels.write_json(self.folder / output.SETTINGS, content)

    def resume(self):
        """The model as the last whole epoch left it, and how many epochs are done."""
        output.remove_unfinished(self.folder)
        # Not load_model: what is frozen would be trainable again, and not fit the optimizer.
        model = build_model(self.settings, self.classes, "none")
        self.compile(model)
        model.load_weights(self.folder / output.LAST)  # and the optimizer's state
        done = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) // self.updates
        return model, done

    def extend(self, done):
        """Makes an unfinished training of a finished one, which now has more epochs.

        The schedule of the learning rate is that of the new number of epochs, from the point where
        the old one ended: of a cosine, the rate goes up again. Model and report stay as they are
        until the extended training is finished.

        Raises:
            OutputError: there are no more epochs than are done.
        """
        if done >= self.settings.epochs:
            raise output.OutputError(
                f"--epochs must be more than the {done} that are done, to extend a finished "
                f"training. Received: --epochs {self.settings.epochs} --output {self.folder}, "
                "which holds a finished training"
            )
        extended = [*self.record.get("extended_at", ()), done]
        self.write_settings(finished=False, extended_at=extended)

    def is_done(self, done):
        """Whether nothing is left to train after so many epochs."""
        history = output.read_history(self.folder, done)
        early = callbacks.stops_early(
            self.settings.early_stopping, history, self.extended_at, self.task.metric
        )
        return done >= self.settings.epochs or early

    def fit(self, model, done):
        """Trains to the end; raises `callbacks.Stopped` where it is stopped."""
        settings = self.settings
        history = output.read_history(self.folder, done)
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        average = keras.callbacks.SwapEMAWeights() if inner.use_ema else None
        if average is not None:
            average.set_model(model)
        self.train.epoch = done
        progress = TrainingProgress(
            settings.epochs,
            len(self.train),
            len(self.validation),
            compiles=keras.config.backend() != "torch",  # PyTorch runs op by op
        )
        progress.announce()  # Keras traces the model before it tells any callback
        with (
            callbacks.StopOnSignal() as stop,
            callbacks.TensorBoard(self.folder / output.LOGS) as board,
            contextlib.closing(progress),
        ):
            model.fit(
                self.train,
                validation_data=self.validation,
                initial_epoch=done,
                epochs=settings.epochs,
                shuffle=False,  # Keras would shuffle the batches, with a state of its own
                verbose=0,
                callbacks=[
                    EpochTimer(),
                    EpochSetter(self.train, settings.seed),
                    *([average] if average is not None else []),
                    *self.module.measures(settings, self.images, average),
                    callbacks.LearningRateLogger(),
                    callbacks.TerminateOnDivergence(),
                    callbacks.History(self.folder / output.HISTORY, append=True),
                    board,
                    callbacks.Checkpoints(self.folder, history, average, self.task.metric),
                    callbacks.EarlyStopping(
                        settings.early_stopping, history, self.extended_at, self.task.metric
                    ),
                    callbacks.UnreadableFiles(self.train, self.validation),
                    progress,
                    stop,  # the last: a signal finds the epoch's files whole
                ],
            )

    def finish(self):
        """Writes the model and the report of a finished training."""
        from keras_internimage.report import write as write_report

        history = output.read_history(self.folder, self.settings.epochs)
        best = callbacks.best_epoch(history, self.task.metric)
        # In float32, which every device can do: the weights are kept in it anyway.
        keras.config.set_dtype_policy("float32")
        trained = keras.saving.load_model(self.folder / output.BEST, compile=False)
        model = self.module.finished_model(self.settings, self.classes)
        copy_weights(trained, model)
        del trained
        callbacks.save(model, self.folder / output.MODEL)

        def common():
            """What the report of every task tells, after the validation."""
            return {
                "history": history,
                "settings": _shown(self.settings, best),
                "skipped": _listed(self.images) + self.skipped(),
                "title": f"{self.task.network(self.settings.variant)} on {self.images.folder.name}",
                "provenance": _provenance(history, model),
            }

        results = self.module.results(model, self.settings, self.images, self.validation, common)
        return best, history, write_report(self.folder, results)

    def skipped(self):
        """`(path, reason)` of the files that became unreadable."""
        return list((self.train.skipped | self.validation.skipped).items())

    def close(self):
        self.train.close()
        self.validation.close()


def _listed(images):
    return [(str(path), reason) for path, reason in images.bad]


def _provenance(history, model):
    """What the report says besides: the time is that of all epochs, also before a resumption."""
    from keras_internimage.commands.train import device as devices
    from keras_internimage.report import Provenance

    device = devices.find()
    return Provenance.collect(
        # Unknown where the first epochs are of a version that did not measure it.
        seconds=sum(history[EpochTimer.NAME]) if EpochTimer.NAME in history else None,
        parameters=model.count_params(),
        device="CPU" if device.kind == "cpu" else device.name,
    )


def _shown(settings, best):
    """The rows of the report's table of settings."""
    rows = {key.replace("_", " "): _text(value) for key, value in vars(settings).items()}
    if settings.variant in VARIANTS:
        for key in ("channels", "depths", "groups"):
            del rows[key]
    for name in tasks.PARTIAL:
        if name not in settings.of_task().options:
            del rows[name.replace("_", " ")]
    rows["best epoch"] = f"{best + 1}, whose weights are in {output.MODEL}"
    return rows


def _text(value):
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
