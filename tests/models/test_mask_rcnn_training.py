"""`fit` of Mask R-CNN: losses that fall, images without objects, what is refused."""

import dataclasses

import drawn_objects as objects
import keras
import numpy as np
import pytest
import small_models
from keras import ops
from models import reference
from models.detection_training import losses_and_gradients

from keras_internimage import MaskRCNN, training

NAMES = {"loss", "rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss"}


def detector(sizes=small_models.TINY, on=None, **arguments):
    """A small Mask R-CNN for the drawn objects, as it starts a training."""
    if on is None:
        sizes = {**sizes, "layer_scale": 1.0, "drop_path_rate": 0.1}
        on = small_models.backbone(sizes, image_shape=(None, None, 3))
    options = {
        "classes": len(objects.CLASSES),
        "channels": 16,
        "units": 32,
        "proposals": 20,
        "proposals_per_level": 20,
        "max_detections": 10,
        **arguments,
    }
    return MaskRCNN(on, **options)


def compiled(model, rate=3e-3, **arguments):
    model.compile(keras.optimizers.Adam(rate), **arguments)
    return model


def some_data(count=4, side=64):
    """Drawn objects; the last image has none."""
    x, y = objects.batch(count, side)
    y["labels"][-1] = -1
    return x, y


def numbers(history):
    return {name: np.array(values) for name, values in history.history.items()}


def test_losses_fall():
    """With validation. InternImage, which takes long to trace, is trained by the command's test."""
    x, y = some_data()
    model = compiled(detector(on=small_models.convolutional_backbone()))
    state = reference.as_array(model.seed_generator.state)
    found = numbers(model.fit(x, y, batch_size=4, epochs=6, validation_data=(x, y), verbose=0))
    assert set(found) == NAMES | {f"val_{name}" for name in NAMES}
    for prefix in ("", "val_"):
        parts = sum(found[f"{prefix}{name}"] for name in NAMES - {"loss"})
        np.testing.assert_allclose(parts, found[f"{prefix}loss"], rtol=1e-5)
        assert found[f"{prefix}loss"][-1] < 0.8 * found[f"{prefix}loss"][0]
    assert all(np.isfinite(values).all() for values in found.values())
    assert not np.array_equal(reference.as_array(model.seed_generator.state), state)
    # Without training nothing is drawn.
    again = model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    assert set(again) == NAMES
    np.testing.assert_allclose(again["loss"], found["val_loss"][-1], rtol=1e-5)


def test_the_optimizer_is_made_before_the_step_is_traced():
    """TensorFlow would trace it once more."""
    model = compiled(detector(on=small_models.convolutional_backbone()))
    assert not model.optimizer.built
    model.make_train_function()
    assert model.optimizer.built


@pytest.mark.slow
def test_twelve_images_by_heart():
    """InternImage and all heads, from their initial values."""
    keras.utils.set_random_seed(0)
    backbone = small_models.backbone(
        {**small_models.SMALL, "layer_scale": 1.0}, image_shape=(None, None, 3)
    )
    model = detector(on=backbone, units=64, proposals=40, proposals_per_level=40)
    # XLA computes the masks of as many samples as there may be, wanted or not.
    model.region_matching = dataclasses.replace(model.region_matching, samples=32, positives=8)
    steps, warmup = 120, 10
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=3e-3, warmup_steps=warmup
    )
    x, y = objects.batch(12, side=64)
    compiled(model, rate).fit(x, y, batch_size=12, epochs=steps, verbose=0)
    assert objects.average_precision(model.predict(x, verbose=0), y) > 0.9


@pytest.mark.any_backend
def test_batch_normalisation_of_a_backbone():
    """It moves in training, if it is not frozen, and not while it is measured."""
    x, y = some_data()
    for frozen in (False, True):
        model = detector(on=small_models.convolutional_backbone())
        norm = model.backbone.get_layer("norm3")
        norm.trainable = not frozen
        start = reference.as_array(norm.moving_mean)
        compiled(model).evaluate(x, y, verbose=0)
        np.testing.assert_array_equal(reference.as_array(norm.moving_mean), start)
        model.fit(x, y, verbose=0)
        assert np.array_equal(reference.as_array(norm.moving_mean), start) == frozen


@pytest.mark.any_backend
def test_batches_of_any_number_of_objects():
    x, y = some_data()
    model = compiled(detector())
    none = {key: value[:, :0] for key, value in y.items()}
    one = {key: value[:, :1] for key, value in y.items()}
    for targets in (y, one, none):
        logs = model.train_on_batch(x, targets, return_dict=True)
        assert np.isfinite(list(logs.values())).all()
    # The metrics are means over the batches so far.
    model.reset_metrics()
    logs = model.train_on_batch(x, none, return_dict=True)
    assert logs["rpn_class_loss"] > 0 and logs["class_loss"] > 0
    assert logs["rpn_box_loss"] == logs["box_loss"] == logs["mask_loss"] == 0


@pytest.mark.any_backend
def test_gradients_without_objects_are_finite():
    x, y = some_data(2)
    y["labels"][:] = -1
    y["boxes"][0, 0] = 5, 5, 5, 9
    y["boxes"][1] = np.nan
    model = small_models.with_offsets(detector())
    losses, _, gradients = losses_and_gradients(model, {"images": x}, y)
    assert all(np.isfinite(value) for value in losses.values())
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert not gradients["mask_head/predictions/kernel"].any()
    assert gradients["box_head/classes/kernel"].any()


@pytest.mark.any_backend
def test_box_formats():
    """The same objects are the same losses, whatever their boxes are written as."""
    x, y = some_data()
    # Powers of two: of anchors that overlap a box equally, as all do that hold the whole of it, a
    # rounded box would take some.
    sizes = np.array([[64, 64], [32, 64], [64, 32], [64, 64]], "int32")
    inputs = {"images": x, "image_sizes": sizes}
    model = compiled(detector())
    model.sampling = "first_n"
    expected = model.test_on_batch(inputs, y, return_dict=True)
    for name in ("yxyx", "center_xywh", "rel_xyxy", "rel_center_xywh"):
        other = compiled(detector(bounding_box_format=name))
        other.set_weights(model.get_weights())
        other.sampling = "first_n"
        boxes = keras.utils.bounding_boxes.convert_format(
            y["boxes"],
            source="xyxy",
            target=name,
            height=sizes[:, None, :1].astype("float32"),
            width=sizes[:, None, 1:].astype("float32"),
        )
        targets = {**y, "boxes": ops.convert_to_numpy(boxes)}
        found = other.test_on_batch(inputs, targets, return_dict=True)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6, err_msg=name)
    # Sizes matter: only what lies around the image's own pixels is sampled.
    assert model.test_on_batch(x, y, return_dict=True)["loss"] != expected["loss"]


@pytest.mark.any_backend
def test_a_seed_decides():
    x, y = some_data()

    def loss(seed):
        keras.utils.set_random_seed(seed)
        model = detector()
        keras.utils.set_random_seed(7)
        for variable in model.trainable_variables:
            if len(variable.shape) > 1:
                variable.assign(keras.random.normal(variable.shape, stddev=0.1))
        return compiled(model, 0.0).fit(x, y, epochs=2, verbose=0).history["loss"]

    first = loss(1)
    assert loss(1) == first and loss(2)[0] != first[0] and first[0] != first[1]


@pytest.mark.any_backend
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_types(dtype):
    x, y = some_data()
    model = compiled(detector({**small_models.TINY, "dtype": dtype}, dtype=dtype))
    found = numbers(model.fit(x, y, epochs=4, verbose=0))
    assert found["loss"][-1] < found["loss"][0] and np.isfinite(found["loss"]).all()


@pytest.mark.any_backend
def test_recipes_and_freezing(tmp_path):
    """A recipe's optimizer with rates by depth; a saved model goes on where it was."""
    x, y = some_data()
    model = detector()
    training.freeze(model, 1)
    frozen = {v.path: reference.as_array(v).copy() for v in model.features.non_trainable_weights}
    row = training.recipe("finetune", "T", epochs=2, layer_decay=0.8)
    model.compile(training.optimizer(model, row, 4, batch_size=4))
    factors = model.optimizer.multipliers
    assert factors["box_head/fc1/kernel"] == 1 and min(factors.values()) < 0.8
    model.fit(x, y, epochs=2, verbose=0)
    assert frozen
    for variable in model.features.non_trainable_weights:
        np.testing.assert_array_equal(reference.as_array(variable), frozen[variable.path])
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert int(again.optimizer.iterations) == 2
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    assert again.evaluate(x, y, verbose=0, return_dict=True) == before
    again.fit(x, y, verbose=0)


@pytest.mark.any_backend
def test_without_masks():
    x, y = some_data()
    del y["masks"]
    with pytest.raises(ValueError, match="`model.mask_head.trainable = False`.*'labels'"):
        compiled(detector()).fit(x, y, verbose=0)
    model = detector()
    model.mask_head.trainable = False
    before = reference.as_array(model.mask_head.predictions.kernel)
    history = compiled(model).fit(x, y, epochs=2, verbose=0).history
    assert history["mask_loss"] == [0, 0] and history["box_loss"][0] > 0
    np.testing.assert_array_equal(reference.as_array(model.mask_head.predictions.kernel), before)


@pytest.mark.any_backend
def test_types_of_masks():
    """As pictures have them, 0 and 255, or floats: the same losses as of 0 and 1."""
    x, y = some_data(2)
    model = compiled(detector())
    model.sampling = "first_n"
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    assert expected["mask_loss"] > 0
    for masks in (y["masks"] * np.uint8(255), y["masks"].astype(bool), y["masks"] * 255.0):
        found = model.evaluate(x, {**y, "masks": masks}, verbose=0, return_dict=True)
        assert found == expected


@pytest.mark.any_backend
def test_refusals():
    x, y = some_data()
    model = compiled(detector())

    def refused(message, x=x, targets=None, call=model.fit, **changes):
        targets = {**y, **changes} if targets is None else targets
        with pytest.raises(ValueError, match=message):
            call(x, targets, verbose=0)

    refused("a dict of 'boxes', 'labels', 'masks'. Received: y=ndarray", targets=y["boxes"])
    refused("Received: y=\\['boxes', 'masks'\\]", targets={k: y[k] for k in ("boxes", "masks")})
    refused("Received: y=.*'weights'", weights=x)
    refused("boxes of \\(4, 2, 4\\), labels of \\(4, 3\\)", boxes=y["boxes"][:, :2])
    refused(
        "images of \\(4, 64, 64, 3\\).*masks of \\(4, 3, 28, 28\\)", masks=y["masks"][..., :28, :28]
    )
    refused("from 0 to 2, or -1 for no object. Received: a label of 4", labels=y["labels"] + 3)
    refused("must be ints. Received: labels of float32", labels=y["labels"].astype("float32"))
    refused('`y\\["boxes"\\]` must be finite', boxes=np.full_like(y["boxes"], np.nan))
    refused("a label of 5", call=model.evaluate, labels=y["labels"] + 4)
    with pytest.raises(ValueError, match="a label of 4"):
        model.fit(x, y, validation_data=(x, {**y, "labels": y["labels"] + 3}), verbose=0)
    with pytest.raises(ValueError, match="`sample_weight` must be None"):
        model.fit(x, y, sample_weight=np.ones(4), verbose=0)
    for name in ("loss", "metrics"):
        with pytest.raises(ValueError, match=f"`{name}` must be None.*Received: {name}='mse'"):
            model.compile("adam", **{name: "mse"})
    with pytest.raises(
        ValueError, match="one of random, first_n, keep_all. Received: sampling='a'"
    ):
        model.sampling = "a"
