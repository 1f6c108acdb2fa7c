"""Batches of files, made in threads before they are asked for; whatever is read from them."""

import concurrent.futures
import math
import os
import threading

import keras
import numpy as np

from keras_internimage.data.check import explain

# Streams of random numbers of an epoch; each has its own, whatever the others use.
ORDER, CROP, AUGMENT, CHANGE = range(4)
# Batches made before they are asked for.
AHEAD = 3


class NoImageLeft(ValueError):
    """None of the files of a batch can be read any more, nor any other."""


class FileBatches(keras.utils.PyDataset):
    """Batches of files: what `ImageFiles` and `SegmentationFiles` have in common.

    A subclass reads one file (`read`) and makes a batch of what was read (`collate`). For training,
    an epoch visits every file once, in an order of its own, and the last batch is filled up with
    files from the epoch's beginning: XLA compiles a second program for a second shape. For
    evaluation, files keep their order, and the last batch may be smaller.

    A file that cannot be read is noted in `skipped`. In training, another one of the batch takes
    its place; in evaluation, it is left out of the batch.

    Args:
        files: sequence of tuples.
        batch_size: files in a batch.
        training: whether the batches are for training.
        seed: integer from which all randomness follows.
        multiple: batches in an epoch of training are a multiple of this.
        threads: threads that decode; None takes one for each processor, 16 at most.

    Attributes:
        epoch: the epoch, from 0, whose batches are given. Keras' `on_epoch_end` counts it up, also
            once more where Keras builds the model first; `EpochSetter` sets it to what `fit` says.
        skipped: reasons by path.
    """

    def __init__(self, files, batch_size, *, training, seed=0, multiple=1, threads=None):
        # Keras' own threads hand batches over from one epoch to the next after an early end, and
        # start before the dataset hears of the new epoch. These here know what they work on.
        super().__init__(workers=1)
        if not files:
            raise ValueError("files must hold at least one image. Received: files=()")
        self.files = tuple(files)
        self.batch_size, self.training, self.seed = batch_size, training, seed
        self.epoch, self.skipped = 0, {}
        self.batches = math.ceil(len(self.files) / batch_size)
        if training:
            self.batches = math.ceil(self.batches / multiple) * multiple
        threads = threads or min(16, os.cpu_count() or 1)
        self._decoders = concurrent.futures.ThreadPoolExecutor(threads, "decode")
        self._makers = concurrent.futures.ThreadPoolExecutor(2, "batch")
        self._lock = threading.Lock()
        self._coming = {}  # (epoch, index) -> future

    def read(self, epoch, place, position):
        """What a file, `files[position]`, gives for a place in the epoch's order, or None.

        Called in the decoding threads. None stands for a file that cannot be read, whose reason is
        in `skipped`.
        """
        raise NotImplementedError

    def collate(self, items, positions, epoch, index):
        """`(inputs, targets)` of a batch: of what `read` gave, and positions in `files`."""
        raise NotImplementedError

    def visited(self, random):
        """The positions in `files` that an epoch of training visits, in order."""
        return random.permutation(len(self.files))

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        return self.batch(index)[:2]

    def on_epoch_end(self):
        """Called by Keras."""
        self.epoch += self.training

    def batch(self, index):
        """Inputs, targets and positions (in `files`) of a batch of this epoch."""
        epoch = self.epoch
        with self._lock:
            wanted = [(epoch, ahead) for ahead in range(index, index + 1 + AHEAD)]
            # At an epoch's end, the next one's first batches: they are made during validation.
            wanted = [
                (e + i // self.batches, i % self.batches) if self.training else (e, i)
                for e, i in wanted
                if self.training or i < self.batches
            ]
            for key in set(self._coming) - set(wanted):
                self._coming.pop(key).cancel()
            for key in wanted:
                if key not in self._coming:
                    self._coming[key] = self._makers.submit(self._make, *key)
            future = self._coming.pop((epoch, index))
        return future.result()

    def close(self):
        """Ends the threads; what they have not begun is not made."""
        self._makers.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def order(self, epoch):
        """The positions in `files` that an epoch visits, in order, filled up to whole batches."""
        if not self.training:
            return np.arange(len(self.files))
        order = self.visited(self.random(epoch, ORDER))
        return np.resize(order, self.batches * self.batch_size)  # repeats from its beginning

    def random(self, epoch, stream, *more):
        """The generator of a stream of an epoch, and of what else it is for, such as a place."""
        return np.random.default_rng((self.seed, epoch, stream, *more))

    def skip(self, path, error):
        """Notes why a file could not be read."""
        try:
            missing = isinstance(error, FileNotFoundError)
            reason = "is not there any more" if missing else explain(path, error)
        except OSError:  # explain looks into the file
            reason = "cannot be opened any more"
        self.skipped[path] = reason

    def _make(self, epoch, index):
        order = self.order(epoch)
        first = index * self.batch_size
        places = range(first, min(first + self.batch_size, len(order)))
        futures = [self._decoders.submit(self.read, epoch, place, order[place]) for place in places]
        items = [future.result() for future in futures]
        positions = [int(order[place]) for place in places]
        if any(item is None for item in items):
            items, positions = self._without_bad(epoch, order, places, items, positions)
        return (*self.collate(items, positions, epoch, index), positions)

    def _without_bad(self, epoch, order, places, items, positions):
        good = [i for i, item in enumerate(items) if item is not None]
        if not self.training and good:
            return [items[i] for i in good], [positions[i] for i in good]
        if not good:  # the nearest image after the batch, whatever the batch is for
            for step in range(len(order)):
                position = int(order[(places[-1] + 1 + step) % len(order)])
                item = self.read(epoch, places[0], position)
                if item is not None:
                    break
            else:
                raise NoImageLeft(
                    f"At least one image must be readable. Received: {len(self.files)} files, "
                    f"such as {self.files[0][0]}, that were readable when the training began"
                )
            items, positions, good = [item], [position], [0]
            if not self.training:
                return items, positions
        filled, where = [], []
        for i, place in enumerate(places):
            if i < len(items) and items[i] is not None:
                filled.append(items[i])
                where.append(positions[i])
                continue
            # The next good one of the batch, read anew: a crop of its own, not the same picture.
            source = positions[next((g for g in good if g > i), good[0])]
            item = self.read(epoch, place, source)
            filled.append(items[good[0]] if item is None else item)
            where.append(positions[good[0]] if item is None else source)
        return filled, where


class EpochSetter(keras.callbacks.Callback):
    """Tells a dataset which epoch begins, and the model's random layers where they stand.

    The state of each random layer is set from (seed, epoch), so that a resumed training draws what
    an uninterrupted one would have drawn.
    """

    def __init__(self, dataset, seed):
        super().__init__()
        self.dataset, self.seed = dataset, seed

    def on_epoch_begin(self, epoch, logs=None):
        self.dataset.epoch = epoch
        states = [v for v in self.model.non_trainable_variables if v.name == "seed_generator_state"]
        for index, state in enumerate(states):
            words = np.random.SeedSequence((self.seed, epoch, index)).generate_state(2)
            state.assign(words.astype(keras.backend.standardize_dtype(state.dtype)))
