"""Metrics and loss of segmentation against NumPy, and inside `compile`."""

import keras
import numpy as np
import pytest

from keras_internimage import training
from keras_internimage.training.metrics import BITS

CLASSES = 5
METRICS = (training.MeanIoU, training.MeanClassAccuracy, training.PixelAccuracy)


def example(seed=0, shape=(2, 6, 7)):
    """Logits, and masks in which the class 3 is absent; it is never predicted, either."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal((*shape, CLASSES)).astype("float32")
    logits[..., 3] = -9
    masks = random.choice([0, 1, 2, 4, 255], shape).astype("int32")
    return logits, masks


def by_hand(logits, masks):
    """Counts, one pixel after another."""
    counts = np.zeros((CLASSES, CLASSES), int)
    for true, found in zip(masks.ravel(), logits.argmax(-1).ravel(), strict=True):
        if true != 255:
            counts[true, found] += 1
    return counts


def values_by_hand(counts):
    iou, accuracy = [], []
    for c in range(CLASSES):
        tp, true, found = counts[c, c], counts[c].sum(), counts[:, c].sum()
        if true + found - tp:
            iou.append(tp / (true + found - tp))
        if true:
            accuracy.append(tp / true)
    return np.mean(iou), np.mean(accuracy), np.trace(counts) / counts.sum()


def test_equal_a_confusion_matrix():
    metrics = [kind(CLASSES) for kind in METRICS]
    counts = np.zeros((CLASSES, CLASSES), int)
    for seed in range(3):
        logits, masks = example(seed)
        counts += by_hand(logits, masks)
        for metric in metrics:
            metric.update_state(masks[..., None] if seed == 1 else masks, logits)
    expected = values_by_hand(counts)
    for metric, value in zip(metrics, expected, strict=True):
        np.testing.assert_array_equal(metric.confusion(), counts)
        assert float(metric.result()) == pytest.approx(value, rel=1e-6)
    scores = metrics[0].scores()
    assert (scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy) == pytest.approx(expected)
    assert np.isnan(scores.iou[3]) and np.isnan(scores.accuracy[3]) and scores.pixels[3] == 0
    assert scores.iou[0] == counts[0, 0] / (counts[0].sum() + counts[:, 0].sum() - counts[0, 0])
    metrics[0].reset_state()
    assert not metrics[0].confusion().any() and np.isnan(float(metrics[0].result()))
    # Predicted though absent: 0 in the mean, not left out.
    metrics[0].update_state(np.zeros((1, 1, 2), int), np.eye(CLASSES)[None, None, [0, 3]])
    assert float(metrics[0].result()) == pytest.approx(0.25)


def test_counts_are_exact_where_float32_is_not():
    metric = training.MeanIoU(2)
    for large in (2**24, 2**31 + 5, 2**40 + 1):
        metric.reset_state()
        for variable, part in (
            (metric._low, large & (2**BITS - 1)),
            (metric._high, large >> BITS),
        ):
            values = np.zeros(5, "int32")
            values[0] = part
            variable.assign(values)
        for _ in range(3):  # a float32 would stay where it is
            metric.update_state(np.zeros((1, 1, 1), int), np.array([[[[1.0, 0.0]]]]))
        assert metric.confusion()[0, 0] == large + 3
        assert float(metric.result()) == 1
    # What a part of 30 bits cannot hold is carried to the other.
    values = np.zeros(5, "int32")
    values[0] = 2**BITS - 1
    metric._low.assign(values)
    metric._high.assign(np.zeros(5, "int32"))
    metric.update_state(np.zeros((1, 2, 1), int), np.array([[[[1.0, 0.0]], [[1.0, 0.0]]]]))
    assert metric.confusion()[0, 0] == 2**BITS + 1


def test_what_is_no_class_makes_the_result_nan():
    logits, masks = example()
    for value in (CLASSES, -1, 254):
        wrong = masks.copy()
        wrong[0, 0, 0] = value
        metric = training.MeanIoU(CLASSES)
        metric.update_state(wrong, logits)
        assert np.isnan(float(metric.result()))
        assert np.isnan(float(training.SegmentationLoss()(wrong, logits)))


@pytest.mark.parametrize("kind", METRICS)
def test_logits_of_nan_make_the_result_nan(kind):
    """On every backend, whichever class `argmax` names there; not where pixels are ignored."""
    logits, masks = example()
    for value, unknown in ((255, False), (2, True)):
        masks[0, 0, 0], logits[0, 0, 0, 4] = value, np.nan
        metric = kind(CLASSES)
        metric.update_state(masks, logits)
        assert np.isnan(float(metric.result())) == unknown
        assert metric.confusion().sum() == (masks != 255).sum() - unknown


@pytest.mark.parametrize("average", ["valid", "all"])
def test_loss(average):
    logits, masks = example()
    shifted = np.float64(logits) - np.float64(logits).max(-1, keepdims=True)
    chances = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    counted = masks != 255
    picked = np.take_along_axis(chances, np.where(counted, masks, 0)[..., None], -1)[..., 0]
    total = -np.log(picked)[counted].sum()
    expected = total / (counted.sum() if average == "valid" else masks.size)
    loss = training.SegmentationLoss(average=average)
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-5)
    # An ignored pixel counts nothing, also where its loss would be infinite.
    logits[~counted] = np.inf
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(np.full_like(masks, 255), example()[0])) == 0


@pytest.mark.parametrize("kind", [*METRICS, training.SegmentationLoss])
def test_shapes(kind):
    logits, masks = example()
    made = kind(CLASSES) if kind in METRICS else kind()
    call = made.update_state if kind in METRICS else made
    for wrong in (masks[:, :3], masks[0], np.stack([masks] * 2, -1)):
        with pytest.raises(ValueError, match=r"of one resolution. Received: logits \(2, 6, 7, 5\)"):
            call(wrong, logits)
    if kind in METRICS:
        with pytest.raises(ValueError, match=r"\(N, H, W, 5\).* Received: logits \(2, 6, 7, 4\)"):
            call(masks, logits[..., :4])
        with pytest.raises(ValueError, match="takes no weights"):
            call(masks, logits, np.ones(2))


@pytest.mark.any_backend
def test_arguments_and_numpy():
    with pytest.raises(ValueError, match="classes must be a positive integer"):
        training.MeanIoU(0)
    with pytest.raises(ValueError, match="average must be 'valid' or 'all'"):
        training.SegmentationLoss(average="mean")
    logits, masks = example()
    counts = training.pixel_confusion(masks, logits.argmax(-1), CLASSES)
    np.testing.assert_array_equal(counts, by_hand(logits, masks))
    with pytest.raises(ValueError, match="one shape. Received: truth.shape="):
        training.pixel_confusion(masks, logits.argmax(-1)[0], CLASSES)
    with pytest.raises(ValueError, match="`truth` must be in 0..3. Received: values from 0 to 4"):
        training.pixel_confusion(masks, np.zeros_like(masks), 4)
    empty = training.segmentation_scores(np.zeros((2, 2), int))
    assert np.isnan([empty.mean_iou, empty.mean_accuracy, empty.pixel_accuracy]).all()


def segmenter():
    """A model of two outputs, for images of any size."""
    image = keras.Input((None, None, 3))
    options = {"padding": "same", "data_format": "channels_last"}
    x = keras.layers.Conv2D(8, 3, activation="relu", **options)(image)
    outputs = {
        "logits": keras.layers.Conv2D(CLASSES, 1, name="logits", **options)(x),
        "auxiliary": keras.layers.Conv2D(CLASSES, 1, name="auxiliary", **options)(x),
    }
    return keras.Model(image, outputs)


def test_in_compile(tmp_path):
    """`fit` with two outputs and their weights, then the saved model with all that it had."""
    logits, masks = example(shape=(4, 8, 8))
    images = logits[..., :3]
    targets = {"logits": masks, "auxiliary": masks}
    model = segmenter()
    model.compile(
        keras.optimizers.SGD(0.0),
        loss={name: training.SegmentationLoss() for name in targets},
        loss_weights={"logits": 1.0, "auxiliary": training.AUXILIARY_WEIGHT},
        metrics={"logits": [training.MeanIoU(CLASSES), training.PixelAccuracy(CLASSES)]},
    )
    history = model.fit(
        images, targets, batch_size=2, epochs=2, validation_data=(images, targets), verbose=0
    ).history
    outputs = model.predict(images, verbose=0)
    iou, _, accuracy = values_by_hand(by_hand(outputs["logits"], masks))
    for prefix in ("", "val_"):
        assert history[f"{prefix}logits_mean_iou"] == pytest.approx([iou] * 2, rel=1e-5)
        assert history[f"{prefix}logits_pixel_accuracy"] == pytest.approx([accuracy] * 2, rel=1e-5)
    losses = {name: float(training.SegmentationLoss()(masks, outputs[name])) for name in targets}
    result = model.evaluate(images, targets, batch_size=4, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(losses["logits"] + 0.4 * losses["auxiliary"], rel=1e-5)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    assert again.evaluate(images, targets, batch_size=4, verbose=0, return_dict=True) == (
        pytest.approx(result, rel=1e-5)
    )


@pytest.mark.any_backend
@pytest.mark.parametrize("kind", [*METRICS, training.SegmentationLoss])
def test_is_serializable(kind):
    arguments = {"classes": 7} if kind in METRICS else {"average": "all"}
    made = kind(**arguments, ignore_value=0, name="of_mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert type(again) is kind and again.get_config() == made.get_config()
    assert again.ignore_value == 0 and again.name == "of_mine"
