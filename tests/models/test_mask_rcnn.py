"""Mask R-CNN: the official numbers, any size of image, box formats, and what is refused."""

import keras
import numpy as np
import pytest
import small_models
from keras import ops
from models import detection_reference, reference

import keras_internimage
from keras_internimage.layers.detection.regions import region_levels
from keras_internimage.models.detection import MaskRCNN, paste_masks
from keras_internimage.models.detection.inputs import pad
from keras_internimage.models.detection.mask_rcnn import refined

PARAMETERS = {"T": 48_920_544, "S": 68_715_024, "B": 115_245_264}


class Stages(MaskRCNN):
    """A model that returns what is between its parts, too, so that all of it is compiled once."""

    def call(self, inputs, training=None):
        sizes, regions = inputs["image_sizes"], inputs["regions"]
        proposals, logits, deltas = inputs["proposals"], inputs["logits"], inputs["deltas"]
        features = self.features(pad(inputs["images"]))
        maps = self.pyramid(features)
        objectness, moves = self.rpn(maps)
        found, scores, valid = self.propose(maps, objectness, moves, sizes)
        pooled = self.box_align(maps, regions)
        fixed_logits, fixed_deltas = self.box_head(pooled)
        ones = ops.ones_like(sizes, dtype="float32")
        there = ops.ones_like(proposals[..., 0], dtype="bool")
        labels = inputs["labels"]
        own = self.mask_head(self.mask_align(maps, inputs["boxes"]), labels)
        keys = ("images", "image_sizes", "original_sizes")
        return {
            "backbone": [ops.mean(x, (1, 2)) for x in features],
            "maps": maps,
            "objectness": objectness,
            "moves": moves,
            "proposals": ops.concatenate([found, ops.sigmoid(scores)[..., None]], -1),
            "valid": valid,
            "levels": region_levels(regions, 4),
            "pooled": pooled,
            "fixed_logits": fixed_logits,
            "fixed_deltas": fixed_deltas,
            "fixed_masks": self.mask_head(self.mask_align(maps, regions[:, :4])),
            "own_masks": own,
            "detected": self.detect(refined(proposals, deltas), logits, there, sizes, ones),
            "all": super().call({key: inputs[key] for key in keys}),
        }


@pytest.fixture(scope="module")
def stored():
    return detection_reference.numbers()


@pytest.fixture(scope="module")
def found(stored):
    """What the model and its parts give for the reference's input, without the batch."""
    model = detection_reference.fill(Stages("T"))
    scale = np.array(detection_reference.RESIZED) / detection_reference.ORIGINAL
    inputs = {
        "images": detection_reference.images(),
        "image_sizes": np.array([detection_reference.RESIZED], "int32"),
        "original_sizes": np.array([detection_reference.ORIGINAL], "int32"),
        "regions": detection_reference.regions()[None],
        "proposals": stored["proposals"][None, :64, :4],
        "logits": stored["first64_cls"][None],
        "deltas": stored["first64_reg"].reshape(1, 64, 80, 4),
        "boxes": (stored["boxes"][:, :4] * np.tile(scale[::-1], 2).astype("float32"))[None],
        "labels": stored["labels"][None],
    }
    inputs = {key: ops.convert_to_tensor(value) for key, value in inputs.items()}
    return keras.tree.map_structure(lambda x: x[0], as_arrays(compiled(model)(inputs)))


def compiled(model):
    """The model as a function; in TensorFlow and JAX loops take long one operation at a time."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(model)
    return lambda inputs: reference.call(model, inputs)


def as_arrays(outputs):
    return keras.tree.map_structure(ops.convert_to_numpy, outputs)


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def nearest(boxes, others):
    """The largest distance of a box from the nearest of the others, both ways."""
    distance = abs(boxes[:, None] - others[None]).max(-1)
    return max(distance.min(0).max(), distance.min(1).max())


def test_backbone_and_pyramid(stored, found):
    for k, mean in enumerate(found["backbone"]):
        close(mean, stored[f"backbone{k}_mean"], 5e-5)
    assert len(found["maps"]) == 5
    for k, x in enumerate(found["maps"]):
        close(x[:2, :2], stored[f"fpn{k}_corner"], 5e-5)
        close(x.mean(-1), stored[f"fpn{k}_pixel_mean"], 5e-5)


def test_proposals(stored, found):
    for k, x in enumerate(found["maps"]):
        close(found["objectness"][k].reshape(*x.shape[:2], 3), stored[f"rpn_cls{k}"], 5e-5)
        moves = found["moves"][k].reshape(*x.shape[:2], 12)[::3, ::3]
        close(moves, stored[f"rpn_reg{k}"], 2e-5)
    assert found["valid"].all() and found["proposals"].shape == (1000, 5)
    # Neighbouring scores differ by as little as 1e-7: as sets.
    assert nearest(found["proposals"], stored["proposals"]) < 2e-3


def test_heads_on_given_regions(stored, found):
    np.testing.assert_array_equal(found["levels"], stored["fixed_levels"])
    close(found["pooled"].mean(-1), stored["fixed_pooled_mean"], 5e-5)
    close(found["pooled"][..., :8], stored["fixed_pooled_first8"], 5e-5)
    close(found["fixed_logits"], stored["fixed_cls"], 5e-5)
    close(found["fixed_deltas"].reshape(12, 320), stored["fixed_reg"], 5e-5)
    close(found["fixed_masks"][:, ::2, ::2, :3], stored["fixed_mask_first3"], 5e-5)


def test_the_last_step_alone(stored, found):
    """With 100 detections of which the worst are cut off."""
    boxes, scores, labels, valid = found["detected"]
    assert valid.all() and len(boxes) == 100
    np.testing.assert_array_equal(labels, stored["first64_labels"])
    close(np.c_[boxes, scores], stored["first64_boxes"], 2e-3)


def test_detections(stored, found):
    result = found["all"]
    count = result["num_detections"]
    assert count == len(stored["labels"]) == 60
    # Each by its label, which no two so near each other share.
    key = np.c_[result["boxes"], result["scores"], 1e3 * result["labels"]][:count]
    assert nearest(key, np.c_[stored["boxes"], 1e3 * stored["labels"]]) < 2e-3
    assert (result["boxes"][count:] == -1).all() and (result["labels"][count:] == -1).all()
    assert (result["scores"][count:] == -1).all() and not result["masks"][count:].any()
    close(found["own_masks"][:, ::3, ::3], stored["mask_logits_own"], 5e-4)
    # Rows of equal score may be exchanged.
    order = [
        int(abs(key - row).max(-1).argmin())
        for row in np.c_[stored["boxes"], 1e3 * stored["labels"]]
    ]
    expected = 1 / (1 + np.exp(-stored["mask_logits_own"]))
    close(result["masks"][order][:, ::3, ::3], expected, 5e-4)
    size = detection_reference.ORIGINAL
    pasted = paste_masks(result["masks"][order], result["boxes"][order], size)
    expected = np.unpackbits(stored["masks_packed"], axis=-1, count=size[1]).astype(bool)
    differing = (pasted != expected).sum((1, 2))
    assert (differing <= 1 + 1e-3 * expected.sum((1, 2))).all()
    assert expected.any((1, 2)).sum() > 30


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
