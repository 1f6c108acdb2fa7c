"""The loss of a recipe."""

import keras

from keras_internimage.training.recipes import Recipe, check_resolved


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
