"""Metrics of segmentation: confusion matrices that count every pixel exactly."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_internimage.training.losses import check_logits_and_masks

# Counts are kept in two integers of 32 bits, which every backend has: `high * 2**BITS + low`.
# float32 would lose counts beyond 2**24, and JAX has no integers of 64 bits by default.
BITS = 30


@dataclasses.dataclass(frozen=True)
class SegmentationScores:
    """What a confusion matrix says. Arrays are `(classes,)`, float64; undefined values are NaN.

    ```
    IoU_c = tp_c / (true_c + predicted_c - tp_c)        accuracy_c = tp_c / true_c
    ```

    Attributes:
        iou: intersection over union of each class; NaN where it is neither there nor predicted.
        accuracy: the share of each class' pixels that are predicted as it; NaN where it is not
            there.
        pixels: the number of true pixels of each class.
        mean_iou, mean_accuracy: means over the classes that have a value (mIoU, mAcc).
        pixel_accuracy: the share of all pixels that are right (aAcc).
    """

    iou: np.ndarray
    accuracy: np.ndarray
    pixels: np.ndarray
    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float


def segmentation_scores(counts: np.ndarray) -> SegmentationScores:
    """The scores of a confusion matrix.

    Args:
        counts: integers `(classes, classes)`; rows are true classes, columns predicted ones.
    """
    right, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    iou = _ratio(right, true + predicted - right)
    accuracy = _ratio(right, true)
    return SegmentationScores(
        iou,
        accuracy,
        true,
        _mean(iou),
        _mean(accuracy),
        float(right.sum() / true.sum()) if true.sum() else float("nan"),
    )


def pixel_confusion(
    truth: np.ndarray, predicted: np.ndarray, classes: int, ignore_value: int = 255
) -> np.ndarray:
    """Counts int64 `(classes, classes)` of the pixels of two label maps.

    Args:
        truth: integers of any shape: 0 to `classes - 1`, or `ignore_value`.
        predicted: integers of that shape, 0 to `classes - 1`.
        classes: number of classes.
        ignore_value: of pixels that count nowhere.

    Raises:
        ValueError: shapes differ, or a value is no class.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            "`truth` and `predicted` must have one shape. "
            f"Received: truth.shape={truth.shape}, predicted.shape={predicted.shape}"
        )
    counted = truth != ignore_value
    true, found = truth[counted].astype("int64"), predicted[counted].astype("int64")
    for name, values in (("truth", true), ("predicted", found)):
        if len(values) and (values.min() < 0 or values.max() >= classes):
            raise ValueError(
                f"`{name}` must be in 0..{classes - 1}. "
                f"Received: values from {values.min()} to {values.max()}"
            )
    counts = np.bincount(true * classes + found, minlength=classes * classes)
    return counts.reshape(classes, classes)


def _ratio(part, whole):
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


class _PixelMetric(keras.metrics.Metric):
    """A metric of segmentation with a confusion matrix of its own."""

    def __init__(self, classes: int, ignore_value: int = 255, name: str | None = None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise ValueError(f"classes must be a positive integer. Received: classes={classes!r}")
        self.classes, self.ignore_value = classes, ignore_value
        shape = (classes * classes + 1,)  # the last counts pixels that cannot be counted
        self._low = self.add_variable(shape, "zeros", dtype="int32", name="low")
        self._high = self.add_variable(shape, "zeros", dtype="int32", name="high")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts the pixels of a batch.

        Args:
            y_true: integers `(N, H, W)` or `(N, H, W, 1)`: class numbers, or `ignore_value`.
            y_pred: logits or probabilities `(N, H, W, classes)`.
            sample_weight: must be None: counts are integers.

        Raises:
            ValueError: shapes are not as said, or there is a weight. Logits of another resolution
                than the masks' are refused, too: resize them in the model.
        """
        if sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} counts pixels and takes no weights. "
                "Received: sample_weight, which is not None"
            )
        y_true = check_logits_and_masks(y_true, y_pred, self.classes)
        true = ops.reshape(y_true, (-1,))
        found = ops.reshape(ops.cast(ops.argmax(y_pred, axis=-1), "int32"), (-1,))
        valid = ops.logical_and(true >= 0, true < self.classes)
        unknown = ops.any(ops.isnan(y_pred), axis=-1)
        valid = ops.logical_and(valid, ops.logical_not(ops.reshape(unknown, (-1,))))
        last = self.classes * self.classes
        index = ops.where(valid, true * self.classes + found, last)
        counted = ops.cast(ops.not_equal(true, self.ignore_value), "int32")
        batch = ops.segment_sum(counted, index, num_segments=last + 1)
        low = self._low + batch
        self._high.assign(self._high + ops.right_shift(low, BITS))
        self._low.assign(ops.bitwise_and(low, 2**BITS - 1))

    def confusion(self) -> np.ndarray:
        """The counts, exactly: int64 `(classes, classes)`, rows are true classes.

        Pixels that make the result NaN are not among them.
        """
        low, high = (ops.convert_to_numpy(v).astype("int64")[:-1] for v in (self._low, self._high))
        return ((high << BITS) + low).reshape(self.classes, self.classes)

    def scores(self) -> SegmentationScores:
        """All scores of what was counted, with those of each class."""
        return segmentation_scores(self.confusion())

    def result(self):
        # Sums of integers first: only ratios are rounded, to float32.
        shape = (self.classes, self.classes)
        low, high = (
            ops.reshape(ops.cast(v, "float32")[:-1], shape) for v in (self._low, self._high)
        )
        counts = high * float(2**BITS) + low
        value = self._value(ops.diagonal(counts), ops.sum(counts, 1), ops.sum(counts, 0))
        unknown = ops.logical_or(self._low[-1] > 0, self._high[-1] > 0)
        return ops.where(unknown, float("nan"), value)

    def _value(self, right, true, predicted):
        raise NotImplementedError

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "ignore_value": self.ignore_value,
        }


def _mean_ratio(part, whole):
    """The mean of `part / whole` over entries with a `whole`; NaN where there is none."""
    there = ops.cast(whole > 0, "float32")
    ratios = part / ops.maximum(whole, 1.0) * there
    number = ops.sum(there)
    return ops.where(number > 0, ops.sum(ratios) / ops.maximum(number, 1.0), float("nan"))


@keras.saving.register_keras_serializable("keras_internimage")
class MeanIoU(_PixelMetric):
    """Mean intersection over union (mIoU) of logits and masks, over all pixels that were counted.

    ```
    mIoU = mean over c of  tp_c / (true_c + predicted_c - tp_c)
    ```

    A class that is neither in the masks nor predicted is left out of the mean. Pixels of
    `ignore_value` count nowhere. Counts are integers and exact up to 2**61. The result is NaN after
    a label that is neither a class nor `ignore_value`, and after NaN among the logits of a pixel
    that counts.

    ```python
    model.compile(..., metrics=[training.MeanIoU(classes)])
    model.compile(..., metrics={"logits": [training.MeanIoU(classes)]})  # of several outputs
    ```

    Args:
        classes: number of classes.
        ignore_value: of pixels that count nowhere.
        name, dtype: as of every Keras metric.

    `confusion()` gives the counts, `scores()` the values of each class.
    """

    def __init__(self, classes, ignore_value=255, name="mean_iou", dtype=None):
        super().__init__(classes, ignore_value, name, dtype)

    def _value(self, right, true, predicted):
        return _mean_ratio(right, true + predicted - right)


@keras.saving.register_keras_serializable("keras_internimage")
class MeanClassAccuracy(_PixelMetric):
    """Mean accuracy of the classes (mAcc): the mean of `tp_c / true_c`; otherwise as `MeanIoU`."""

    def __init__(self, classes, ignore_value=255, name="mean_accuracy", dtype=None):
        super().__init__(classes, ignore_value, name, dtype)

    def _value(self, right, true, predicted):
        return _mean_ratio(right, true)


@keras.saving.register_keras_serializable("keras_internimage")
class PixelAccuracy(_PixelMetric):
    """The share of pixels that are right (aAcc); otherwise as `MeanIoU`."""

    def __init__(self, classes, ignore_value=255, name="pixel_accuracy", dtype=None):
        super().__init__(classes, ignore_value, name, dtype)

    def _value(self, right, true, predicted):
        return _mean_ratio(ops.sum(right)[None], ops.sum(true)[None])
