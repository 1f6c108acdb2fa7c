"""UperNet learns: a synthetic set of 20 images by heart, in the Keras way."""

import numpy as np
import shapes
from small_models import upernet

from keras_internimage import training
from keras_internimage.preprocessing import preprocess_input

STEPS = 24


def start_alike(model):
    """Gives the kernels values that do not depend on the backend, as its random numbers do."""
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1 and "offset_mask" not in variable.path:
            deviation = np.prod(variable.shape[:-1]) ** -0.5
            variable.assign(random.normal(scale=deviation, size=variable.shape))


def test_twenty_images_by_heart():
    images, masks = (np.stack(x) for x in zip(*map(shapes.pair, range(20)), strict=True))
    images = preprocess_input(images.astype("float32"))
    model = upernet(classes=len(shapes.CLASSES), channels=16, auxiliary=True, drop_rate=0.0)
    start_alike(model)
    row = training.recipe("scratch-upernet", "T", epochs=STEPS, learning_rate=0.02)
    heads = ("logits", "auxiliary")
    model.compile(
        training.optimizer(model, row, STEPS, batch_size=16),
        loss={head: training.SegmentationLoss() for head in heads},
        loss_weights={"logits": 1.0, "auxiliary": training.AUXILIARY_WEIGHT},
        metrics={"logits": [training.MeanIoU(len(shapes.CLASSES))]},
    )
    truth = dict.fromkeys(heads, masks.astype("int32"))
    history = model.fit(
        images, truth, batch_size=20, epochs=STEPS, shuffle=False, verbose=0
    ).history
    assert history["logits_mean_iou"][0] < 0.6 < 0.9 < history["logits_mean_iou"][-1]
    assert history["loss"][-1] < history["loss"][0] / 3
