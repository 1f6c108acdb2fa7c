"""`internimage-evaluate`: its numbers, what it reads labels from, and what it refuses first."""

import dataclasses
import functools
import json

import keras
import masks
import numpy as np
import photographs
import pytest
from checkpoints.conftest import save_pth
from checkpoints.test_upernet import SIZES, TINY_VARIANT, values
from PIL import Image
from small_models import SMALL, upernet, with_offsets

import keras_internimage
from keras_internimage import predictor, preprocessing
from keras_internimage.checkpoints import published
from keras_internimage.checkpoints.names.upernet import TABLE
from keras_internimage.commands.evaluate import cli, segmentation
from keras_internimage.data import masks as scanning
from keras_internimage.data.imagenet_ids import classes_of_ids
from keras_internimage.models import VARIANTS
from keras_internimage.segmenter import Resizing, Segmenter, load_segmenter, loading

WORDNET = [f"n{number:08}" for number in range(1000)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The output folder of a training, with labels."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    model = keras_internimage.InternImage(**SMALL, input_shape=(32, 32, 3), classes=3)
    model.save(folder / "model.keras")
    (folder / "labels.json").write_text('["china", "flower", "zebra"]')
    return folder


@pytest.fixture
def thousand(monkeypatch):
    """The published model, as one that tells a picture's class, 0 to 999, by its red and green."""
    image = keras.Input((None, None, 3))
    scores = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(image)
    model = keras.Model(image, keras.layers.Dense(1000, activation="softmax")(scores))
    # Pixel (8 * (c // 32), 8 * (c % 32)) is nearest to its own class: -|x - x_c|^2.
    mean, std = (np.array(v, "float32") for v in (preprocessing.MEAN, preprocessing.STD))
    centres = (np.array([pixel(c) for c in range(1000)]) / 255 - mean) / std
    model.layers[-1].set_weights([200 * centres.T, -100 * (centres**2).sum(-1)])
    monkeypatch.setattr(predictor, "build_published", lambda row, resolution: model)
    monkeypatch.setattr(predictor, "_names", lambda classes, say: tuple(map(str, range(classes))))


def pixel(c):
    return (8 * (c // 32), 8 * (c % 32), 0)


def flat(root, classes):
    """ImageNet's flat validation folder, of one colour each."""
    root.mkdir()
    for number, c in enumerate(classes, start=1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        Image.new("RGB", (256, 250), pixel(c)).save(root / name, quality=100, subsampling=0)
    return root


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    printed, errors = capsys.readouterr()
    return code, printed, errors


def results(capsys, tmp_path, *arguments, code=0):
    got, printed, errors = run(capsys, *arguments, "--json", tmp_path / "out.json")
    assert got == code, errors
    return json.loads((tmp_path / "out.json").read_text("utf-8")), printed, errors


@pytest.mark.any_backend
class TestClassification:
    def test_by_folder(self, classifier, tmp_path, capsys):
        """The same as the predictor says; a class of the model may be missing."""
        data = photographs.folder(tmp_path / "data", images=5)
        Image.new("RGB", (5, 5)).save(data / "flower" / "more.png")
        (data / "china" / "bad.jpg").write_text("text")
        found, printed, errors = results(capsys, tmp_path, classifier, data, code=1)
        assert errors == f"internimage-evaluate: {data}/china/bad.jpg: is text, not an image\n"
        assert found["failed"] == [
            {"file": f"{data}/china/bad.jpg", "reason": "is text, not an image"}
        ]
        made = keras_internimage.load(classifier)
        right = {}
        for name in ("china", "flower"):
            files = sorted(x for x in (data / name).iterdir() if x.name != "bad.jpg")
            best = [top[0][0] for top in made.predict(files)]
            right[name] = [label == name for label in best]
        both = right["china"] + right["flower"]
        assert found["images"] == 11 and found["top1"] == pytest.approx(np.mean(both))
        assert "top5" not in found and "published" not in found  # of three classes
        assert found["per_class"] == [
            {"label": "china", "images": 5, "top1": np.mean(right["china"])},
            {"label": "flower", "images": 6, "top1": pytest.approx(np.mean(right["flower"]))},
            {"label": "zebra", "images": 0, "top1": None},
        ]
        assert f"top-1   {np.mean(both):.2%}" in printed

    def test_the_part_for_validation(self, classifier, tmp_path, capsys):
        photographs.folder(tmp_path / "data" / "train", images=3)
        photographs.folder(tmp_path / "data" / "val", images=2)
        found, _, _ = results(capsys, tmp_path, classifier, tmp_path / "data")
        assert found["images"] == 4 and found["labels"].endswith("the part for validation")

    # The first classes of ImageNet's validation images and their ILSVRC2012_IDs.
    CLASSES = (65, 970, 230, 809, 516, 57, 334, 415, 674, 332)
    IDS = (490, 361, 171, 822, 297, 482, 13, 704, 599, 164)

    @pytest.mark.parametrize("kind", ["val.txt", "ids", "wordnet"])
    def test_imagenet(self, kind, thousand, tmp_path, capsys, monkeypatch):
        # One image is of another class, and one is ranked second to fifth.
        data = flat(tmp_path / "val", [0, 969, *self.CLASSES[2:]])
        if kind == "val.txt":
            rows = [f"ILSVRC2012_val_{i:08}.JPEG {c}" for i, c in enumerate(self.CLASSES, 1)]
            (tmp_path / "val.txt").write_text("\n".join(reversed(rows)))
        elif kind == "ids":
            name = "ILSVRC2012_validation_ground_truth.txt"
            (data / name).write_text("\n".join(map(str, self.IDS)) + "\n")
        else:
            name = "imagenet_2012_validation_synset_labels.txt"
            (data / name).write_text("\n".join(WORDNET[c] for c in self.CLASSES))
            rows = [[(name, "", 1.0) for name in WORDNET]]
            monkeypatch.setattr(preprocessing, "decode_predictions", lambda *a, **b: rows)
        found, printed, _ = results(capsys, tmp_path, "internimage_t_1k_224", data)
        assert (found["images"], found["classes"], found["resolution"]) == (10, 1000, 224)
        assert found["top1"] == 0.8 and found["top5"] == 0.9
        assert found["published"] == {"top1": 0.835, "data": "ImageNet-1k validation"}
        assert "80.00%" in printed and "published: 83.5%" in printed

    def test_ids(self):
        classes = classes_of_ids()
        assert sorted(classes) == list(range(1000))
        assert tuple(classes[i - 1] for i in self.IDS) == self.CLASSES

    def test_pixels_as_stored_for_published_models(self, thousand, tmp_path, capsys, monkeypatch):
        """As the published accuracies were measured; a user's model sees upright images."""
        seen = []
        load = preprocessing.load_image

        def spy(path, size, *, exif_orientation=True):
            seen.append(exif_orientation)
            return load(path, size, exif_orientation=exif_orientation)

        monkeypatch.setattr(preprocessing, "load_image", spy)
        data = flat(tmp_path / "val", [3])
        (data / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3")
        assert run(capsys, "internimage_t_1k_224", data)[0] == 0
        assert seen == [False]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A model of two classes at half the size: bright where the mean of 2x2 pixels is."""
    folder = tmp_path_factory.mktemp("segmenter")
    image = keras.Input((None, None, 3))
    layers = keras.layers
    x = layers.AveragePooling2D(2, padding="same", data_format="channels_last")(image)
    x = layers.Conv2D(2, 1, name="logits", data_format="channels_last")(x)
    model = keras.Model(image, {"logits": x})
    kernel = np.zeros((1, 1, 3, 2), "float32")
    kernel[..., 1] = 1
    model.layers[-1].set_weights([kernel, np.zeros(2, "float32")])
    model.save(folder / "model.keras")
    return folder / "model.keras"


class TestSegmentation:
    def test_equals_counting_by_hand(self, segmenter, tmp_path, capsys):
        data = masks.folder(tmp_path / "data", 2, 3)
        found, printed, errors = results(capsys, tmp_path, segmenter, data)
        assert errors == ""
        model = load_segmenter(segmenter, labels=["dark", "bright"])
        counts = np.zeros((2, 2), int)
        for index in range(100, 103):
            image, mask = masks.pair(index)
            labels = model.label_map(image)
            assert labels.shape == mask.shape
            for true in (0, 1):
                for predicted in (0, 1):
                    counts[true, predicted] += ((mask == true) & (labels == predicted)).sum()
        iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
        assert 0.2 < iou.min() and iou.max() < 1
        assert found["miou"] == pytest.approx(iou.mean())
        assert found["macc"] == pytest.approx((np.diag(counts) / counts.sum(1)).mean())
        assert found["aacc"] == pytest.approx(np.trace(counts) / counts.sum())
        assert found["images"] == 3 and found["task"] == "segmentation"
        assert [row["label"] for row in found["per_class"]] == ["dark", "bright thing"]
        assert [row["iou"] for row in found["per_class"]] == pytest.approx(iou.tolist())
        assert [row["pixels"] for row in found["per_class"]] == counts.sum(1).tolist()
        assert f"mIoU          {iou.mean():.2%}" in printed
        other, _, _ = results(capsys, tmp_path, segmenter, data, "--multi-scale")
        assert other["multi_scale"] and not found["multi_scale"]
        assert other["miou"] != found["miou"]
        # Without parts, all images are measured, and that is said.
        flat = masks.folder(tmp_path / "flat", 2)
        found, _, errors = results(capsys, tmp_path, segmenter, flat)
        assert found["images"] == 2
        assert f"{flat} has no part for validation (val/): all of its images are" in errors

    @pytest.mark.any_backend
    def test_a_published_name(self, tmp_path, capsys, monkeypatch):
        """Its own size of images, its classes and its two published numbers."""
        image = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(150, 1, data_format="channels_last")(image)
        model = keras.Model(image, x)
        monkeypatch.setattr(keras_internimage.models, "UperNetT", lambda **options: model)
        shapes = []
        predict = model.predict_on_batch
        spy = lambda x: shapes.append(x.shape) or predict(x)  # noqa: E731
        monkeypatch.setattr(keras.Model, "predict_on_batch", lambda self, x: spy(x))
        data = masks.ade20k(tmp_path / "ADEChallengeData2016", 1, 1)
        name = "upernet_internimage_t_512_160k_ade20k"
        found, printed, errors = results(capsys, tmp_path, name, data)
        assert "other names" not in errors and shapes == [(1, 512, 704, 3)]
        assert found["published"] == {"miou": 0.479, "data": "ade20k"}
        assert found["reduce_zero_label"] and found["per_class"][2]["label"] == "sky"
        assert "published: 47.90% (ade20k)" in printed
        found, _, _ = results(capsys, tmp_path, name, data, "--multi-scale")
        assert found["published"]["miou"] == pytest.approx(0.481)
        assert len(shapes) == 13 and shapes[-1] == (1, 896, 1216, 3)

    @pytest.mark.any_backend
    @pytest.mark.parametrize("data", ["ade20k", "cityscapes"])
    def test_a_published_file(self, tmp_path, capsys, monkeypatch, data):
        """In the official container, of a tiny model: the published number beside its own."""
        model = with_offsets(upernet(SIZES, (None, None, 3), classes=150, auxiliary=True))
        state = {}
        for name, value in values(model).items():
            key = name if TABLE.is_head(name) else f"backbone.{name}"
            state[key] = np.asarray(value, "float16")
        for variable in model.weights:
            variable.assign(np.asarray(keras.ops.convert_to_numpy(variable), "float16"))
        (row,) = (x for x in published.PUBLISHED if (x.variant, x.data) == ("T", data))
        row = dataclasses.replace(row, bytes=None, resolution=64)
        (tmp_path / "home/models").mkdir(parents=True)
        file = tmp_path / "home/models" / row.file
        save_pth(file, state, "state_dict", "float16", meta={"epoch": 1})
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(published, "PUBLISHED", (row,))
        monkeypatch.setitem(VARIANTS, "T", TINY_VARIANT)
        small = functools.partial(keras_internimage.models.UperNetT, channels=8)
        monkeypatch.setattr(keras_internimage.models, "UperNetT", small)
        if data == "ade20k":
            folder = masks.ade20k(tmp_path / "ADEChallengeData2016", 0, 2)
        else:
            folder = masks.cityscapes(tmp_path / "cityscapes", 0, 2)
            monkeypatch.setattr(loading, "_CITYSCAPES", Resizing(64))
        found, printed, _ = results(capsys, tmp_path, row.name, folder)
        assert found["published"] == {"miou": row.miou / 100, "data": data}
        assert f"published: {row.miou:.2f}% ({data})" in printed
        # Its own, of the numbers that the file holds.
        classes = found["classes"]
        assert classes == (150 if data == "ade20k" else 19)
        assert [row["label"] for row in found["per_class"]][:1] == [
            "wall" if data == "ade20k" else "road"
        ]
        own = Segmenter(model, range(classes), resizing=Resizing(64, multiple=32))
        images = scanning.scan_segmentation(folder, part="validation")
        counts, _ = segmentation.confusion(own, images)
        assert len(np.flatnonzero(counts.sum(0))) > 1
        expected = segmentation.segmentation_scores(counts)
        assert found["miou"] == pytest.approx(expected.mean_iou, abs=1e-3)
        assert found["aacc"] == pytest.approx(expected.pixel_accuracy, abs=1e-3)

    @pytest.mark.any_backend
    def test_bad_files_and_zero_that_is_ignored(self, segmenter, tmp_path, capsys):
        data = masks.folder(tmp_path / "data", 4)
        plain, _, _ = results(capsys, tmp_path, segmenter, data)
        for path in (data / "masks").iterdir():
            mask = np.asarray(Image.open(path))
            Image.fromarray(np.where(mask == 255, 0, mask + 1).astype("uint8")).save(path)
        same, _, _ = results(capsys, tmp_path, segmenter, data, "--reduce-zero-label")
        assert same == {**plain, "reduce_zero_label": True}
        (data / "images" / "002.png").write_text("text")
        (data / "masks" / "003.png").unlink()
        found, _, errors = results(capsys, tmp_path, segmenter, data, "--reduce-zero-label", code=1)
        assert found["images"] == 2 and [row["reason"] for row in found["failed"]] == [
            "has no mask masks/003.png",
            "is text, not an image",
        ]
        assert f"{data}/images/002.png: is text, not an image" in errors

    @pytest.mark.any_backend
    def test_a_class_that_is_absent(self, segmenter, tmp_path, capsys):
        data = masks.folder(tmp_path / "data", 2)
        for path in (data / "masks").iterdir():
            Image.new("L", (64, 48), 255).save(path)
        found, printed, _ = results(capsys, tmp_path, segmenter, data)
        assert found["miou"] is None and found["per_class"][0]["iou"] is None
        assert "mIoU          -" in printed

    @pytest.mark.any_backend
    def test_what_is_told_of_masks_that_fit_nowhere(self, segmenter, tmp_path, capsys):
        data = masks.folder(tmp_path / "data", 2)
        for path in (data / "masks").iterdir():
            Image.new("L", (64, 48), 0).save(path)
        (data / "classes.txt").unlink(missing_ok=True)
        mask = Image.new("L", (64, 48), 0)
        mask.putpixel((1, 2), 255)
        mask.save(data / "masks" / "000.png")
        _, _, errors = results(capsys, tmp_path, segmenter, data)
        assert "All masks hold 0 and 255 alone; 255 stands for ignored pixels" in errors
        for path in (data / "masks").iterdir():
            Image.new("L", (64, 48), 77).save(path)
        assert cli.main([str(segmenter), str(data)]) == 2
        errors = capsys.readouterr().err
        assert "fit to be evaluated on" in errors and "001.png: has the value 77" in errors

    @pytest.mark.any_backend
    def test_a_file_that_goes_bad_meanwhile(self, tmp_path):
        """Files that can be read no more, and an image too large for the memory."""
        data = scanning.scan_segmentation(masks.folder(tmp_path, 4), part="validation")

        class Constant:
            classes = 2

            def label_map(self, image):
                if image.tobytes() == too_large:
                    raise MemoryError
                return np.ones(image.size[::-1], int)

        too_large = Image.open(tmp_path / "images" / "003.png").tobytes()
        (tmp_path / "images" / "000.png").write_text("text")
        (tmp_path / "masks" / "001.png").unlink()
        counts, failed = segmentation.confusion(Constant(), data)
        bright = (masks.pair(2)[1] == 1).sum()
        assert counts.tolist() == [[0, 64 * 47 - bright], [0, bright]]
        assert failed == [
            (tmp_path / "images" / "000.png", "is text, not an image"),
            (tmp_path / "masks" / "001.png", "is not there any more"),
            (tmp_path / "images" / "003.png", "does not fit into memory"),
        ]
