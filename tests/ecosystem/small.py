"""A small backbone and images, and what is compared of a model that was saved and reloaded."""

import keras
import numpy as np
import small_models
from models.reference import as_array, call
from small_models import TINY, with_offsets

BACKEND = keras.config.backend()
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
MASKS = (np.arange(2 * 64 * 64) % 3).reshape(2, 64, 64)
BOXES = np.array([[[8, 8, 40, 40]], [[4, 4, 30, 50]]], "float32")
CLASSES = np.array([[0], [2]])
# TensorFlow takes ten seconds for each training step it traces; eagerly, `fit` does the same.
EAGER = BACKEND == "tensorflow"


def backbone(**options):
    return with_offsets(small_models.backbone(TINY, **{"image_shape": (64, 64, 3), **options}))


def sgd():
    return keras.optimizers.SGD(0.01)


def outputs(model):
    """The numbers a model makes of the images, by name."""
    made = call(model, IMAGES)
    return (
        {name: as_array(made[name]) for name in made} if isinstance(made, dict) else as_array(made)
    )


def check_same(model, other):
    expected, found = outputs(model), outputs(other)
    if not isinstance(expected, dict):
        expected, found = {"": expected}, {"": found}
    assert expected.keys() == found.keys()
    for name in expected:
        assert np.std(expected[name]) > 0, name
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def check_fit(model, x, y):
    """One epoch of `fit` leaves finite numbers, and changes the InternImage's first weights."""
    ours = [w for w in model.trainable_weights if "stem/" in w.path or "stage1_block1/" in w.path]
    assert any("offset_mask" in w.path for w in ours)
    before = [as_array(w).copy() for w in ours]
    history = model.fit(x, y, batch_size=2, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    after = [as_array(w) for w in ours]
    assert all(np.isfinite(w).all() for w in after)
    still = [w.path for w, old, new in zip(ours, before, after, strict=True) if (old == new).all()]
    assert not still, still
