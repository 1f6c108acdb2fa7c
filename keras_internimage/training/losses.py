"""The losses of the recipes."""

import keras
from keras import ops

from keras_internimage.training.recipe_types import Recipe
from keras_internimage.training.recipes import check_resolved

# What the auxiliary head of UperNet counts beside the main one, in all official configurations.
AUXILIARY_WEIGHT = 0.4


def loss(recipe: Recipe, from_logits: bool = False) -> keras.losses.Loss:
    """Categorical cross-entropy with the recipe's label smoothing s over K classes.

    ```
    L = -sum_k y'_k log p_k          y' = (1 - s) y + s / K
    ```

    It is for one class of each image. Where an image may have several (a model that ends with a
    sigmoid), the loss is `keras.losses.BinaryCrossentropy`; for a regression (no activation), for
    example `keras.losses.Huber`. The rest of a recipe fits these, too.

    Args:
        recipe: a `Recipe` for one variant.
        from_logits: whether the model ends without its softmax.

    Returns:
        A `keras.losses.CategoricalCrossentropy`, for one-hot or soft labels `(N, K)`.

    Raises:
        ValueError: `recipe` is not as said above.
    """
    check_resolved(recipe)
    return keras.losses.CategoricalCrossentropy(
        from_logits=from_logits, label_smoothing=recipe.label_smoothing
    )


@keras.saving.register_keras_serializable("keras_internimage")
class SegmentationLoss(keras.losses.Loss):
    """Cross-entropy of logits and masks, in which pixels of `ignore_value` count nothing.

    ```
    L = sum over pixels i that count of -log softmax(z_i)[y_i],   divided by their number
    ```

    With `average="all"`, the sum is divided by the number of all pixels, ignored ones included, as
    in the official trainings (mmsegmentation's default). A batch without a pixel that counts has
    the loss 0. A label that is neither a class nor `ignore_value` makes the loss NaN. Logits of
    half types are computed in float32.

    ```python
    model.compile(
        optimizer,
        loss={"logits": training.SegmentationLoss(), "auxiliary": training.SegmentationLoss()},
        loss_weights={"logits": 1.0, "auxiliary": training.AUXILIARY_WEIGHT},
    )
    ```

    Args:
        ignore_value: of pixels that count nothing.
        average: "valid" or "all", see above.
        reduction, name, dtype: as of every Keras loss.

    A call takes masks, integers `(N, H, W)` or `(N, H, W, 1)`, and logits `(N, H, W, classes)`, and
    raises ValueError for other shapes, also where logits have another resolution than the masks.
    """

    def __init__(
        self,
        ignore_value=255,
        average="valid",
        reduction="sum_over_batch_size",
        name="segmentation_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if average not in ("valid", "all"):
            raise ValueError(f"average must be 'valid' or 'all'. Received: average={average!r}")
        self.ignore_value, self.average = ignore_value, average

    def call(self, y_true, y_pred):
        """The loss of each pixel, float32 `(N, H, W)`, scaled so that the mean is the loss."""
        classes = y_pred.shape[-1]
        y_true = check_logits_and_masks(y_true, y_pred, classes)
        counted = ops.not_equal(y_true, self.ignore_value)
        known = ops.logical_and(y_true >= 0, y_true < classes)
        labels = ops.where(known, y_true, 0)
        losses = ops.sparse_categorical_crossentropy(
            labels, ops.cast(y_pred, "float32"), from_logits=True
        )
        # Not a product: that of an infinite loss and 0 would be NaN.
        losses = ops.where(counted, losses, 0.0)
        losses = ops.where(ops.logical_and(counted, ops.logical_not(known)), float("nan"), losses)
        if self.average == "all":
            return losses
        number = ops.sum(ops.cast(counted, "float32"))
        pixels = ops.cast(ops.size(y_true), "float32")
        return losses * (pixels / ops.maximum(number, 1.0))

    def get_config(self):
        return {
            **super().get_config(),
            "ignore_value": self.ignore_value,
            "average": self.average,
        }


def check_logits_and_masks(y_true, y_pred, classes):
    """The masks as int32 `(N, H, W)`; raises ValueError unless they fit the logits."""
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    true, logits = tuple(y_true.shape), tuple(y_pred.shape)
    if len(true) == 4 and true[-1] == 1:
        y_true, true = ops.squeeze(y_true, -1), true[:-1]
    fits = len(logits) == 4 and len(true) == 3 and logits[-1] == classes
    if not fits or any(
        a != b for a, b in zip(true, logits[:-1], strict=True) if None not in (a, b)
    ):
        raise ValueError(
            f"Logits must have the shape (N, H, W, {classes}) and masks (N, H, W), of one "
            f"resolution. Received: logits {logits}, masks {true}"
        )
    return ops.cast(y_true, "int32")
