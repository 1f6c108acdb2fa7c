"""Average precision of a detector: of files, of batches, and after each epoch of `fit`."""

import json

import keras
import numpy as np
import pytest
import small_models
from PIL import Image

from keras_internimage.data import CocoMetrics, Resizing, read_coco
from keras_internimage.detector import (
    CocoEvaluation,
    Detector,
    evaluate_batches,
    evaluate_files,
)
from keras_internimage.detector.evaluation import collect, log_values
from keras_internimage.report.object_gallery import WorstObjects

pytest.importorskip("pycocotools")
SIZES = ((64, 96), (96, 64))
RESIZING = Resizing(64, 96)
NAMES = list("abcde")


@pytest.fixture(scope="module")
def model():
    backbone = small_models.convolutional_backbone(normalized=False)
    # With this seed no detection is so near a better one of its class as to be taken for it.
    return small_models.detecting(seed=2, on=backbone)


@pytest.fixture
def folder(model, tmp_path):
    """Images, at the size at which the model sees them, whose truth is what the model detects."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, size in enumerate(SIZES):
        pixels = rng.integers(0, 256, (*size, 3), dtype="uint8")
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (found,) = Detector(model, resizing=RESIZING).predict(pixels)
        assert len(found) > 2
        for row in found.coco(number, (1, 2, 4, 8, 16)):
            annotations.append({**row, "id": len(annotations), "iscrowd": 0})
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n, "name": f"class {n}"} for n in (1, 2, 4, 8, 16)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


def batches(folder):
    """The same as the loader gives them: boxes in the model's format, masks, filled up."""
    dataset = read_coco(folder / "a.json")
    from keras_internimage import preprocess_input
    from keras_internimage.data import draw_mask

    made = []
    for image in dataset.images:
        objects = dataset.by_image()[image.id]
        pixels = np.asarray(Image.open(folder / image.file_name), "float32")
        size = (image.height, image.width)
        masks = [draw_mask(x.segmentation, *size) for x in objects]
        x = {"images": preprocess_input(pixels)[None], "image_sizes": np.array([size], "int32")}
        y = {
            "boxes": np.array([[*(x.box for x in objects), (0, 0, 0, 0)]], "float32"),
            "labels": np.array([[*(x.label for x in objects), -1]]),
            "masks": np.array([[*masks, np.zeros(size, "uint8")]]),
        }
        made.append((x, y))
    return made


def test_what_is_right_and_what_is_not(model, folder):
    detector = Detector(model, resizing=RESIZING)
    metrics = CocoMetrics(folder / "a.json")
    seen = []
    failed = evaluate_files(
        detector,
        metrics,
        lambda image: folder / image.file_name,
        seen=lambda *row: seen.append(row),
    )
    scores = metrics.result()
    assert not failed and [row[1].name for row in seen] == ["0.png", "1.png"]
    assert scores.box.numbers["AP"] == pytest.approx(1) == scores.mask.numbers["AP"]
    assert log_values(scores)["val_mask_ap50"] == pytest.approx(1)
    worst = WorstObjects(NAMES)
    metrics.reset()
    evaluate_files(
        detector,
        metrics,
        lambda image: folder / image.file_name,
        seen=collect(worst, metrics.dataset),
    )
    # What is less probable than 0.5 is missed here.
    assert worst.images == 2 and worst.missed + worst.right == len(metrics.dataset.annotations)
    metrics.reset()
    (folder / "0.png").write_text("text")
    Image.new("RGB", (64, 90)).save(folder / "1.png")
    failed = evaluate_files(detector, metrics, lambda image: folder / image.file_name)
    assert [path.name for path, _ in failed] == ["0.png", "1.png"]
    assert "is 64 x 90 pixels, 64 x 96 by the annotations" in str(failed[1][1])
    assert metrics.result().box.numbers["AP"] == 0


def test_batches_as_fit_takes_them(model, folder):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(SIZES)

        def __getitem__(self, index):
            return made[index]

    made = batches(folder)
    for given in (made, Batches(), iter(made)):
        _, scores = evaluate_batches(model, given)
        assert scores.box.numbers["AP"] == pytest.approx(1)
        assert scores.mask.numbers["AP"] == pytest.approx(1)
    without = [(x, {k: v for k, v in y.items() if k != "masks"}) for x, y in made]
    assert evaluate_batches(model, without)[1].mask is None
    wrong = [(x, {**y, "labels": (y["labels"] + 1) % 5}) for x, y in made]
    assert evaluate_batches(model, wrong)[1].box.numbers["AP"] < 0.2
    with pytest.raises(ValueError, match="must be a dict of boxes and labels. Received: ndarray"):
        evaluate_batches(model, [(made[0][0], np.zeros(3))])


def test_after_each_epoch(model, folder):
    """At a learning rate of 0 the model still finds what it found; of files and of batches."""
    made = batches(folder)
    x, y = made[0]
    of_files = CocoEvaluation(read_coco(folder / "a.json"), folder, resizing=RESIZING, every=2)
    assert of_files.scores is None
    model.compile(keras.optimizers.SGD(0.0))
    seen = []
    last = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    history = model.fit(
        x,
        y,
        batch_size=1,
        epochs=2,
        verbose=0,
        callbacks=[CocoEvaluation(made[:1]), of_files, last],
    ).history
    names = ("val_box_ap", "val_box_ap50", "val_mask_ap", "val_mask_ap50")
    for name in names:
        np.testing.assert_allclose(history[name], [1, 1], atol=1e-6)
        assert seen[0][name] == pytest.approx(1)  # callbacks behind it see the numbers
    assert of_files.scores.box.numbers["AP"] == pytest.approx(1)
    assert len(of_files.scores.class_names) == 5 and np.isfinite(history["loss"]).all()


@pytest.mark.any_backend
def test_refusals(model, folder):
    dataset = read_coco(folder / "a.json")
    with pytest.raises(ValueError, match="`folder` must be given for a CocoDataset, and for noth"):
        CocoEvaluation(dataset)
    with pytest.raises(ValueError, match="`folder` must be given for a CocoDataset, and for noth"):
        CocoEvaluation(batches(folder), folder)
    with pytest.raises(ValueError, match="gone through again.*Received: an iterator"):
        CocoEvaluation(iter(batches(folder)))
    with pytest.raises(ValueError, match="Received: resizing for batches"):
        CocoEvaluation(batches(folder), resizing=RESIZING)
    with pytest.raises(ValueError, match="every must be a positive int. Received: every=0"):
        CocoEvaluation(dataset, folder, every=0)
    other = small_models.mask_rcnn(classes=4)
    with pytest.raises(ValueError, match="as many classes as the model has, 4. Received: .* 5"):
        evaluate_files(Detector(other), CocoMetrics(dataset), lambda image: folder)
    (folder / "0.png").write_text("text")
    evaluation = CocoEvaluation(dataset, folder, resizing=RESIZING)
    with pytest.raises(ValueError, match="All images must be readable. Received: .*0.png"):
        evaluation.evaluate(model)
