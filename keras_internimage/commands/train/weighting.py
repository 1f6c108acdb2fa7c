"""Images that count more or less in the loss, by their class."""

import numpy as np

from keras_internimage.data.loader import ImageFiles


class WeightedImageFiles(ImageFiles):
    """`ImageFiles` whose batches are `(images, labels, weights)`.

    The weight of an image is `labels @ class_weights`: that of its class, and for an image that is
    mixed of several, their weights in the same proportion. (Keras' own `class_weight` takes that
    of the largest share alone.)

    Args:
        *args, **options: as for `ImageFiles`.
        class_weights: array `(classes,)` of factors of the loss.
    """

    def __init__(self, *args, class_weights, **options):
        super().__init__(*args, **options)
        self.class_weights = np.asarray(class_weights, "float32")

    def __getitem__(self, index):
        images, labels = super().__getitem__(index)
        return images, labels, labels @ self.class_weights
