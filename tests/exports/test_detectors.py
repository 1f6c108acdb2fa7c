"""Detectors as files: the same detections in each runtime, and what is refused."""

import contextlib
import functools
import io

import keras
import numpy as np
import pytest
import small_models
from keras import ops

from keras_internimage import CascadeMaskRCNN, MaskRCNN, export
from keras_internimage.exports import detections, detectors, formats
from keras_internimage.ops.boxes import nms
from keras_internimage.ops.roi_align import roi_align

BACKEND = keras.config.backend()
by_torch = pytest.mark.skipif(BACKEND != "torch", reason="written by PyTorch")
FORMATS = {
    "torch": ["model.xml", "model.pt2", "model.onnx"],
    "tensorflow": ["model", "model.tflite"],
    "jax": [],
}
SIZE = (64, 96, 3)
LABELS = [f"class {i}" for i in range(5)]


def plain(make=small_models.mask_rcnn):
    """A detector over four convolutions: exporters take long for more."""
    images = x = keras.Input((None, None, 3))
    maps = {}
    for level, stride in (("P2", 4), ("P3", 2), ("P4", 2), ("P5", 2)):
        layer = keras.layers.Conv2D(8, stride, strides=stride, data_format="channels_last")
        maps[level] = x = layer(x)
    backbone = keras.Model(images, x)
    backbone.pyramid_outputs = maps
    return make(on=backbone)


def cascade(on):
    options = {"channels": 8, "units": 16, "max_detections": 10, "proposals": 30}
    model = CascadeMaskRCNN(on, classes=5, score_threshold=0.01, proposals_per_level=40, **options)
    generator = np.random.default_rng(0)
    predicting = [*(x.scores for x in model.box_heads), *(x.predictions for x in model.mask_heads)]
    for part in (model.rpn.objectness, *predicting):
        part.kernel.assign(generator.normal(size=part.kernel.shape))
    return model


def photographs(count=1, size=SIZE):
    return np.random.default_rng(5).integers(0, 256, (count, *size), "uint8")


def as_the_file(model):
    """The detector as it is in a file that takes uint8 images."""
    return detectors.wrap(model).with_images(normalises=True)


def by_model(model, pixels):
    return detections.compiled(as_the_file(model))(pixels)


def check_same(model, path, pixels):
    """The file finds in uint8 images what the model does in normalised ones."""
    check_found(model, path, formats.runner(path)(pixels), by_model(model, pixels))


def check_found(model, path, found, expected):
    names = formats.output_names(as_the_file(model))
    if path.suffix == ".pt2":
        found = dict(zip(names, found.values(), strict=True))
    expected = dict(zip(names, expected, strict=True))
    count = len(expected["boxes"])
    compared = detections.Comparison(model.score_threshold)
    for k in range(count):
        compared.add(*({n: x[k] for n, x in side.items()} for side in (expected, found)))
    assert compared.total >= 8 * count and compared.others == 0
    assert compared.boxes < 1e-5 and compared.scores < 1e-4 and compared.masks < 1e-3


@pytest.fixture(scope="module")
def model():
    return plain()


@pytest.fixture(scope="module")
def expected(model):
    return by_model(model, photographs())


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """Writes the model under a name, once; the path, what was said, and what ran the file."""
    options = {"batch_size": 1, "include_preprocessing": True, "labels": LABELS}

    @functools.cache
    def write(name):
        path, said, runners = tmp_path_factory.mktemp("files") / name, io.StringIO(), []
        load = formats.runner

        def loaded(*arguments):
            runners.append(load(*arguments))
            return runners[-1]

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(formats, "runner", loaded)
            export(model, path, input_shape=SIZE, **options)
        return path, said.getvalue(), runners[0]

    return write


@pytest.mark.parametrize("name", FORMATS[BACKEND])
def test_the_same_detections(model, expected, written, name):
    path, said, runner = written(name)
    assert "detections are the same; largest difference of boxes" in said
    # To load a program takes nearly as long as to write it.
    runner = runner if path.suffix == ".pt2" else formats.runner(path)
    check_found(model, path, runner(photographs()), expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="written by TensorFlow")
def test_the_graph_is_in_the_saved_model_once(written):
    from tensorflow.core.protobuf import saved_model_pb2

    content = (written("model")[0] / "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    functions = graph.graph_def.library.function
    found = [node for function in functions for node in function.node_def if node.op == "TopKV2"]
    assert len(found) == 5  # one for each level


@by_torch
def test_operators_of_onnx(written):
    import onnx

    proto = onnx.load(written("model.onnx")[0])
    nodes = {}
    for node in proto.graph.node:
        assert node.domain in ("", "ai.onnx")
        nodes.setdefault(node.op_type, []).append(node)
    assert len(nodes["NonMaxSuppression"]) == 2
    assert len(nodes["RoiAlign"]) == 8  # four maps for each head
    for node in nodes["RoiAlign"]:
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert found["coordinate_transformation_mode"] == b"half_pixel"
        assert found["sampling_ratio"] == 0
    assert "Loop" not in nodes
    outputs = [output.name for output in proto.graph.output]
    assert outputs == ["boxes", "labels", "masks", "num_detections", "scores"]
    assert proto.metadata_props[0].value.split("\n") == LABELS


@by_torch
def test_other_detections_are_not_kept(model, written, tmp_path, monkeypatch):
    """A file whose suppression is another one."""
    import onnx

    from keras_internimage.exports import torch_files

    proto = onnx.load(written("model.onnx")[0])
    suppressions = [node for node in proto.graph.node if node.op_type == "NonMaxSuppression"]
    thresholds = {node.input[3] for node in suppressions}
    changed = [x for x in proto.graph.initializer if x.name in thresholds]
    for threshold in changed:
        right = onnx.numpy_helper.to_array(threshold)
        wrong = onnx.numpy_helper.from_array(np.full_like(right, 0.01), threshold.name)
        threshold.CopyFrom(wrong)
    assert len(changed) == len(suppressions) == 2
    monkeypatch.setattr(torch_files, "write", lambda model, path, options: onnx.save(proto, path))
    options = {"batch_size": 1, "include_preprocessing": True}
    with pytest.raises(RuntimeError, match="must be the model's.*nothing was written"):
        export(model, tmp_path / "model.onnx", input_shape=SIZE, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS[BACKEND])
def test_the_same_detections_of_a_cascade(tmp_path, name):
    model = plain(cascade)
    export(model, tmp_path / name, input_shape=SIZE, batch_size=1, include_preprocessing=True)
    check_same(model, tmp_path / name, photographs())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "model.onnx"])
def test_any_size_of_image_and_batch(tmp_path, name):
    """With DCNv3 in it, from every backend."""
    model = small_models.mask_rcnn()
    export(model, tmp_path / name, include_preprocessing=True)
    for count, size in ((1, (75, 49, 3)), (3, (150, 96, 3))):
        check_same(model, tmp_path / name, photographs(count, size))


@by_torch
@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_regions_and_suppression_at_their_edges(tmp_path, name):
    """Outside of the image, without extent, many samples; overlaps at the threshold, equal scores.

    The model gives what they give, so that the file is verified on it.
    """
    regions = [[3, 2, 30.5, 21], [5, 5, 5, 5], [0, 0, 0, 9], [-40, -9, 20, 50], [70, 80, 99, 90]]
    overlapping = [[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 1.1, 1], [5, 5, 5, 9], [0, 0, 2, 1]]

    class Regions(keras.layers.Layer):
        def call(self, x):
            ones = ops.ones_like(x[:, :1, 0, :1])
            boxes = ones * ops.convert_to_tensor(regions, "float32")
            others = ones * ops.convert_to_tensor(overlapping, "float32")
            maps = [x, x[:, ::2, ::2]]
            scores = ones[..., 0] * ops.convert_to_tensor([[5.0, 4.0, -3.0, 4.0, 5.0]])
            for_all = ops.cast(ops.zeros_like(scores), "int32")
            levels = for_all + ops.convert_to_tensor([[0, 1, 0, 1, 0]], "int32")
            classes = for_all + ops.convert_to_tensor([[0, 0, 0, 1, 0]], "int32")
            index, valid = nms(others, scores, classes, 0.5, 7)
            return {
                "pooled": roi_align(maps, boxes, (1, 2), levels, 3),
                "kept": ops.where(valid, index, -1),
            }

    images = keras.Input((40, 56, 3))
    maps = keras.layers.Conv2D(8, 3, padding="same", data_format="channels_last")(images)
    model = keras.Model(images, Regions()(maps))
    assert "kept" in model.output
    x = np.random.default_rng(1).normal(size=(2, 40, 56, 3)).astype("float32")
    expected = {key: ops.convert_to_numpy(y) for key, y in model(x).items()}
    # 1 overlaps with 0 by exactly a half, 2 by more; 4 is as 0 and comes after it.
    assert expected["kept"][0].tolist() == [0, 1, 3, -1, -1, -1, -1]
    export(model, tmp_path / name)
    found = formats.runner(tmp_path / name)(x)
    np.testing.assert_array_equal(found["kept"], expected["kept"])
    np.testing.assert_allclose(found["pooled"], expected["pooled"], rtol=0, atol=1e-5)


@pytest.mark.any_backend
class TestComparison:
    def detected(self, **changes):
        found = {
            "boxes": np.array([[0, 0, 50, 50], [10, 10, 90, 60], [0, 0, 0, 0]], "float32"),
            "labels": np.array([1, 2, -1]),
            "scores": np.array([0.9, 0.6, -1], "float32"),
            "masks": np.full((3, 28, 28), 0.5, "float32"),
            "num_detections": np.array(2),
        }
        return {**found, **changes}

    def compare(self, found):
        compared = detections.Comparison(0.05)
        compared.add(self.detected(), found)
        return compared

    def test_order_does_not_count(self):
        rows = {
            name: x if name == "num_detections" else x[[1, 0, 2]]
            for name, x in self.detected().items()
        }
        compared = self.compare(rows)
        assert (compared.total, compared.others, compared.boxes) == (4, 0, 0)

    def test_differences(self):
        found = self.detected()
        found["boxes"] = found["boxes"] + np.float32(0.09)
        found["scores"] = found["scores"] + np.float32(0.01)
        compared = self.compare(found)
        assert compared.others == 0
        assert compared.boxes == pytest.approx(1e-3, rel=1e-3)
        assert compared.scores == pytest.approx(0.01, rel=1e-3)

    def test_another_label_and_another_place(self):
        assert self.compare(self.detected(labels=np.array([1, 3, -1]))).others == 2
        boxes = self.detected()["boxes"] + np.float32([[0], [5], [0]])
        assert self.compare(self.detected(boxes=boxes)).others == 2
        assert self.compare(self.detected(num_detections=np.array(1))).others == 1

    def test_what_is_at_the_threshold_may_be_missing(self):
        compared = detections.Comparison(0.6)
        compared.add(self.detected(), self.detected(num_detections=np.array(1)))
        assert (compared.total, compared.others) == (3, 0)


@pytest.mark.any_backend
def test_refusals(tmp_path):
    model = plain()
    for options, message in (
        ({"include_argmax": True}, "`include_argmax` must be False for a detector"),
        ({"labels": ["a", "b"]}, "`labels` must be as many as the model's scores, 5"),
        ({"input_shape": (64, 64)}, "`input_shape` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "model.onnx", **options)
    with pytest.raises(ValueError, match="`precision` must be 'float32' for a detector"):
        export(model, tmp_path / "model.xml", precision="float16")
    with pytest.raises(ValueError, match="`batch_size` must be given.*--size and --batch-size of"):
        export(model, tmp_path / "model.pt2", input_shape=SIZE)
    with pytest.raises(ValueError, match="`input_shape` must give height and width for LiteRT"):
        export(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.any_backend
def test_in_float32():
    backbone = small_models.backbone(
        small_models.TINY, image_shape=(None, None, 3), dtype="mixed_bfloat16"
    )
    model = MaskRCNN(backbone, classes=5, channels=8, units=16, dtype="mixed_float16")
    full = detectors.in_float32(detectors.wrap(model)).detector
    policies = {layer.dtype_policy.name for layer in full._flatten_layers()}
    assert policies == {"float32"}
    for a, b in zip(full.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
