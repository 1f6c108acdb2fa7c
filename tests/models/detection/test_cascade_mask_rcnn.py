"""Cascade Mask R-CNN against a program in NumPy; its sizes, files, and what is refused.

The program (`cascade_numpy`) was written from a description of the official models in words alone:
there are no numbers of theirs to test against.
"""

import keras
import numpy as np
import pytest
import small_models
from keras import ops
from models import reference
from models.detection import cascade_numpy
from models.test_mask_rcnn import as_arrays, close, compiled, some_images

import keras_internimage
from keras_internimage.checkpoints.names.cascade_mask_rcnn import TABLE
from keras_internimage.checkpoints.read import official_name
from keras_internimage.models.detection import CascadeMaskRCNN
from keras_internimage.models.detection.inputs import pad

PARAMETERS = {"L": 277_307_236, "XL": 387_448_974}
SIZES, ORIGINAL = np.array([[61, 66], [50, 90]]), np.array([[61, 66], [75, 138]])


class WithMaps(CascadeMaskRCNN):
    """A model that returns the pyramid's maps, too."""

    def call(self, inputs, training=None):
        maps = self.pyramid(self.features(pad(inputs["images"])))
        return {"maps": maps, **super().call(inputs)}


def on_convolutions(**arguments):
    """A small model on a backbone that is quickly traced."""
    return small_models.cascade_mask_rcnn(on=small_models.convolutional_backbone(), **arguments)


def official_state(model):
    """The weights behind the backbone under their official names, in PyTorch's layout."""
    state = {}
    for variable in (v for v in model.weights if TABLE.entry(v.path) is not None):
        state.update(TABLE.to_official(variable.path, ops.convert_to_numpy(variable)))
    return state


def batch(sizes):
    images = np.zeros((len(sizes), 64, 96, 3), "float32")
    for image, content in zip(images, some_images(*sizes), strict=True):
        image[: content.shape[0], : content.shape[1]] = content
    return images


def test_as_the_program():
    """Two images of different sizes, one of them resized, in one batch."""
    model = on_convolutions(kind=WithMaps, max_detections=20)
    inputs = {"images": batch(SIZES), "image_sizes": SIZES, "original_sizes": ORIGINAL}
    found = as_arrays(compiled(model)(keras.tree.map_structure(ops.convert_to_tensor, inputs)))
    state = official_state(model)
    for n in range(2):
        maps = [x[n] for x in found["maps"]]
        expected = cascade_numpy.detect(
            maps, state, tuple(SIZES[n]), tuple(ORIGINAL[n]), 40, 30, 0.01, 20
        )
        count = found["num_detections"][n]
        assert count == len(expected[0])
        assert len(set(expected[2])) > 1 and np.ptp(expected[1]) > 0.2
        for name, values in zip(("boxes", "scores", "labels", "masks"), expected, strict=True):
            close(found[name][n][:count], values, 1e-3 if name == "boxes" else 2e-5)


@pytest.mark.any_backend
@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_size_holds_the_official_tensors(variant):
    with reference.without_values():
        model = getattr(keras_internimage, f"CascadeMaskRCNN{variant}")()
        stored = reference.official_shapes(f"cascade_internimage_{variant.lower()}")
        reference.check_places(model, {official_name(key): s for key, s in stored.items()}, TABLE)
        count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        assert len(model.non_trainable_weights) == 3 * 4 * 2
    assert count == PARAMETERS[variant]
    assert model.name == f"cascade_mask_rcnn_{variant.lower()}"


@pytest.mark.any_backend
def test_saved_and_loaded(tmp_path):
    """In mixed precision, from a file that knows no function of ours."""
    sizes = {**small_models.TINY, "dtype": "mixed_bfloat16"}
    model = small_models.cascade_mask_rcnn(sizes, dtype="mixed_bfloat16", name="detector")
    x = batch([(64, 96)])
    expected = model.predict(x, verbose=0)
    assert expected["num_detections"] == [6] and expected["masks"].dtype == "float32"
    assert model.box_heads[1].fc.compute_dtype == "bfloat16"
    assert model.box_heads[1].scores.compute_dtype == "float32"
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert type(again) is CascadeMaskRCNN and again.get_config() == model.get_config()
    found = again.predict(x, verbose=0)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.any_backend
def test_refusals():
    with pytest.raises(ValueError, match="`units` must be a positive int. Received: units=0"):
        small_models.cascade_mask_rcnn(units=0)
    with pytest.raises(ValueError, match="`pyramid_norm` must be .* pyramid_norm='LN'"):
        small_models.cascade_mask_rcnn(pyramid_norm="LN")
    with pytest.raises(ValueError, match="must be None. Received: weights='coco'"):
        keras_internimage.CascadeMaskRCNNL(weights="coco", backbone_weights="imagenet")
