"""Mask R-CNN: the official numbers, any size of image, box formats, and what is refused."""

import keras
import numpy as np
import pytest
import small_models
from keras import ops
from models import reference

import keras_internimage
from keras_internimage.models.detection import MaskRCNN, paste_masks

PARAMETERS = {"T": 48_920_544, "S": 68_715_024, "B": 115_245_264}


def compiled(model):
    """The model as a function; in TensorFlow and JAX loops take long one operation at a time."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(model, autograph=False)
    return lambda inputs: reference.call(model, inputs)


def as_arrays(outputs):
    return keras.tree.map_structure(ops.convert_to_numpy, outputs)


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.any_backend
@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_size_has_the_official_parameters(variant):
    with reference.without_values():
        model = getattr(keras_internimage, f"MaskRCNN{variant}")()
        count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert count == PARAMETERS[variant]
    assert [v.name for v in model.non_trainable_variables] == ["seed_generator_state"]
    assert model.name == f"mask_rcnn_{variant.lower()}"


def some_images(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(*size, 3)).astype("float32") for size in sizes]


def test_any_size_of_image():
    """Two images of different sizes in a batch, and what each of them gives alone."""
    keras.utils.set_random_seed(4)
    model = small_models.mask_rcnn()
    small, large = some_images((40, 50), (61, 66))
    batch = np.zeros((2, 64, 96, 3), "float32")
    batch[0, :40, :50], batch[1, :61, :66] = small, large
    sizes, original = np.array([[40, 50], [61, 66]]), np.array([[80, 100], [61, 66]])
    call = compiled(model)
    keys = ("images", "image_sizes", "original_sizes")
    found, same = (
        as_arrays(call(dict(zip(keys, map(ops.convert_to_tensor, (batch, sizes, x)), strict=True))))
        for x in (original, sizes)
    )
    shapes = {key: value.shape for key, value in found.items()}
    assert shapes == {
        "boxes": (2, 6, 4),
        "labels": (2, 6),
        "scores": (2, 6),
        "masks": (2, 6, 28, 28),
        "num_detections": (2,),
    }
    there = np.arange(6) < found["num_detections"][:, None]
    assert (there.sum(1) > 2).all()
    boxes, labels = found["boxes"][there], found["labels"][there]
    assert len(np.unique(labels)) > 1 and 0 <= labels.min() and labels.max() < 5
    assert (boxes.max(0) <= [100, 80, 100, 80]).all() and boxes.min() >= 0
    assert all((found[key][~there] == -1).all() for key in ("boxes", "labels", "scores"))
    assert (np.diff(found["scores"])[there[:, 1:]] <= 0).all() and 0.1 < found["masks"].std()
    # Twice the original size is twice the box.
    count = same["num_detections"][0]
    assert count == found["num_detections"][0]
    close(found["boxes"][0, :count], 2 * same["boxes"][0, :count], 1e-3)
    # Alone, of a size that is no multiple of 32, and without any size told.
    alone = model.predict(large[None], verbose=0)
    for key, value in alone.items():
        close(found[key][1], value[0], 1e-3)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="others know sizes when traced")
def test_unknown_sizes():
    """A function that is traced before number and size of images are known."""
    import tensorflow as tf

    model = small_models.mask_rcnn()
    call = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    x = np.stack(some_images((61, 66)))
    found, expected = as_arrays(call(x)), as_arrays(model(x))
    assert 0 < expected["num_detections"][0] == found["num_detections"][0]
    for key, value in expected.items():
        close(found[key], value, 1e-3)


@pytest.mark.any_backend
def test_fewer_detections_than_places():
    model = small_models.mask_rcnn(score_threshold=1.0)
    found = model.predict(np.stack(some_images((32, 32))), verbose=0)
    assert found["num_detections"] == [0] and not found["masks"].any()
    assert all((found[key] == -1).all() for key in ("boxes", "labels", "scores"))


@pytest.mark.any_backend
def test_box_formats():
    model = small_models.mask_rcnn()
    x = np.stack(some_images((32, 64)))
    boxes = model(x)["boxes"]
    weights = model.get_weights()
    for name in ("yxyx", "center_xywh", "rel_xyxy"):
        other = small_models.mask_rcnn(bounding_box_format=name)
        other.set_weights(weights)
        result = other(x)
        expected = keras.utils.bounding_boxes.convert_format(
            boxes, source="xyxy", target=name, height=32, width=64
        )
        count = int(result["num_detections"][0])
        found, expected = (ops.convert_to_numpy(x)[0] for x in (result["boxes"], expected))
        np.testing.assert_allclose(found[:count], expected[:count], rtol=1e-5, atol=1e-5)
        assert count > 2 and (found[count:] == -1).all()


@pytest.mark.any_backend
def test_saved_and_loaded(tmp_path):
    """In mixed precision, from a file that knows no function of ours."""
    sizes = {**small_models.TINY, "layer_scale": 1.0, "dtype": "mixed_bfloat16"}
    model = small_models.mask_rcnn(sizes, dtype="mixed_bfloat16", name="detector")
    x = np.stack(some_images((32, 64)))
    expected = model.predict(x, verbose=0)
    for key in ("boxes", "scores", "masks"):
        assert expected[key].dtype == "float32"
    assert model.box_head.fc1.compute_dtype == "bfloat16"
    assert model.box_head.scores.compute_dtype == "float32"
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert again.name == "detector" and again.get_config() == model.get_config()
    found = again.predict(x, verbose=0)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.any_backend
def test_the_backbones_weights_are_shared():
    backbone = small_models.backbone(small_models.TINY, image_shape=(None, None, 3))
    model = small_models.mask_rcnn(on=backbone)
    assert model.backbone is backbone
    own = {id(v) for v in backbone.trainable_variables}
    assert own < {id(v) for v in model.trainable_variables}
    assert len(model.trainable_variables) == len({v.path for v in model.trainable_variables})


@pytest.mark.any_backend
def test_paste_masks():
    masks = np.ones((3, 4, 4), "float32")
    masks[1] = np.linspace(0, 1, 4)[:, None]
    boxes = np.array([[2, 1, 6, 4], [-3, 0, 3, 8], [5, 5, 5, 9]], "float32")
    found = paste_masks(masks, boxes, (8, 10))
    expected = np.zeros((3, 8, 10), bool)
    expected[0, 1:4, 2:6] = True
    expected[1, 4:8, :3] = True
    expected[1, 4, 2] = False  # the mask fades at the border of its box
    np.testing.assert_array_equal(found, expected)
    assert paste_masks(masks[:0], boxes[:0], (8, 10)).shape == (0, 8, 10)
    with pytest.raises(ValueError, match=r"Received: masks of \(3, 4, 4\), boxes of \(2, 4\)"):
        paste_masks(masks, boxes[:2], (8, 10))


@pytest.mark.any_backend
def test_refusals():
    backbone = small_models.backbone(small_models.TINY)

    def refused(message, backbone=backbone, **arguments):
        with pytest.raises(ValueError, match=message):
            MaskRCNN(backbone, **arguments)

    refused("`classes` must be a positive int. Received: classes=0", classes=0)
    refused("from 0 to 1. Received: nms_threshold=2", nms_threshold=2)
    refused("from 0 to 1. Received: score_threshold='a'", score_threshold="a")
    refused("one of xyxy, .*Received: bounding_box_format='xxyy'", bounding_box_format="xxyy")
    refused("'coco', the name of .*weights='imagenet'", weights="imagenet")
    refused("of no published size needs the name or path.*'coco'", weights="coco")
    refused("a Keras model or one of T, .*Received: backbone='R50'", "R50")
    refused("`backbone` must be a Keras model with `pyramid_outputs`", keras.Sequential())
    with pytest.raises(ValueError, match="must be None. Received: weights='coco'"):
        keras_internimage.MaskRCNNT(weights="coco", backbone_weights="imagenet")
    with pytest.raises(ValueError, match="a dict of images.*Received: \\['image', 'images'\\]"):
        small_models.mask_rcnn()(dict.fromkeys(("images", "image"), np.zeros((1, 32, 32, 3))))


@pytest.mark.any_backend
def test_other_numbers_of_sizes():
    model = small_models.mask_rcnn()
    model.compile()
    images = np.zeros((2, 32, 32, 3), "float32")
    targets = {"boxes": np.zeros((2, 1, 4)), "labels": np.zeros((2, 1), int)}
    for name in ("image_sizes", "original_sizes"):
        for sizes in ([[32, 32]], [[32, 32]] * 3, [32, 32], [[32, 32, 3]] * 2):
            inputs = {"images": images, name: np.array(sizes)}
            shape = str(inputs[name].shape).replace("(", ".").replace(")", ".")
            message = f"`{name}` must be .N, 2.*Received: {name} of {shape}, images of .2, 32"
            for call in (
                model,
                model.predict,
                lambda x: model.fit(x, targets),
                lambda x: model.evaluate(x, targets),
            ):
                with pytest.raises(ValueError, match=message):
                    call(inputs)
