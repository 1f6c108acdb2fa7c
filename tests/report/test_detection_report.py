"""The report of a training for detection, from made-up numbers."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from report import runs
from report.test_report import EVIL, Page

from keras_internimage.data import CocoObject, CocoScores
from keras_internimage.data.coco_metrics import NUMBERS, Precision
from keras_internimage.detector import Detections
from keras_internimage.report import DetectionResults, describe, write
from keras_internimage.report.object_errors import errors, overlaps
from keras_internimage.report.object_gallery import SHOWN, SIDE, WorstObjects, told

pytestmark = pytest.mark.any_backend
NAMES = ("ground", EVIL, "Bär")
FILES = {"curves.png", "precision.png", "mistakes.png", "report.html"}


def detections(boxes, labels, scores):
    count = len(boxes)
    boxes = np.array(boxes, "float32").reshape(-1, 4)
    masks = np.ones((count, 28, 28), "float32")
    return Detections(20, 40, boxes, np.array(labels, int), np.array(scores, "float32"), masks)


def seen(worst, wrong, name="a/image.png"):
    """Adds an image with one object found, so many missed, and one false alarm if any."""
    objects = [CocoObject(1, 1, 1, (0, 0, 10, 10))]
    objects += [CocoObject(2 + i, 1, 2, (20 + i, 0, 25 + i, 8)) for i in range(wrong)]
    found = detections([[0, 0, 10, 9], [5, 12, 9, 18], [3, 3, 4, 4]], [1, 0, 0], [0.9, 0.8, 0.4])
    image = Image.new("RGB", (40, 20), (200, 100, 0))
    worst.add(name, image, objects, found if wrong else found.above(0.85))


def precision(value, classes=3):
    of_class = np.array([np.nan, *np.linspace(0.2, value, classes - 1)])
    numbers = dict.fromkeys(NUMBERS, value) | {"APl": float("nan")}
    return Precision(numbers, of_class, of_class, np.linspace(1, value, 101))


def results(names=NAMES, masks=True, images=3, **others):
    worst = WorstObjects(names)
    for i in range(images):
        seen(worst, i + 1, f"a/{i}.png")
    mask = precision(0.4, len(names)) if masks else None
    history = runs.history(3)
    del history["accuracy"], history["val_accuracy"]
    history |= {"val_box_ap": [0.1, 0.5, 0.45], "val_mask_ap": [0.1, 0.3, 0.4]}
    return DetectionResults(
        **{
            "class_names": names,
            "history": history,
            "scores": CocoScores(names, np.arange(len(names)), precision(0.5, len(names)), mask),
            "worst": worst,
            "train_objects": np.arange(len(names)),
            "settings": {"seed": "1"},
            **others,
        }
    )


def test_overlaps():
    found = overlaps([[0, 0, 10, 10], [0, 0, 0, 0]], [[5, 0, 15, 10], [0, 0, 5, 10]])
    np.testing.assert_allclose(found, [[1 / 3, 0.5], [0, 0]])
    found = overlaps([[0, 0, 10, 10]], [[5, 0, 100, 10]], of_first=True)
    np.testing.assert_allclose(found, [[0.5]])


def test_errors():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 40, 40]]
    crowds = [False, False, True]
    found = [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 4], [2, 20, 9, 30]]
    missed, false = errors(boxes, [1, 1, 2], crowds, found, [1, 1, 2, 1, 2])
    # The first takes the object from the second; the third and the last are on the crowd.
    np.testing.assert_array_equal(missed, [False, True, False])
    np.testing.assert_array_equal(false, [False, True, False, True, False])
    missed, false = errors(np.zeros((0, 4)), [], [], np.zeros((0, 4)), [])
    assert missed.shape == false.shape == (0,)
    assert errors(boxes[:1], [1], [False], np.zeros((0, 4)), [])[0].all()


def test_the_worst_come_first():
    worst = WorstObjects(NAMES)
    assert worst.heading() == "No validation images."
    seen(worst, 0)
    assert worst.heading() == "No error in 1 validation image."
    for index in range(SHOWN + 2):
        seen(worst, index + 1, f"{index}.png")
    assert (worst.images, worst.wrong, len(worst.seen)) == (SHOWN + 3, SHOWN + 2, SHOWN)
    assert worst.heading() == f"The {SHOWN} worst of {SHOWN + 2} images with errors"
    assert [one.path for one in worst.seen] == [f"{i}.png" for i in range(SHOWN + 1, 1, -1)]
    first = worst.seen[0]
    assert (first.missed, first.false, first.right) == (SHOWN + 2, 1, 1)
    assert first.names == ("Bär", "ground")  # not what was found, nor what is below 0.5
    assert told(first) == f"{SHOWN + 2} objects missed, 1 false alarm, 1 right"
    assert (worst.false, worst.right) == (SHOWN + 2, SHOWN + 3)


def test_the_pictures():
    worst = WorstObjects(NAMES)
    read = []

    def image():
        read.append(1)
        return Image.new("RGB", (40, 20), (10, 100, 0))

    right = CocoObject(1, 1, 1, (0, 0, 10, 10))
    lost = CocoObject(2, 1, 1, (20, 8, 30, 18))
    worst.add("a", image, [right], detections([right.box], [1], [0.9]))
    assert not read  # nothing to show
    worst.add("b", image, [right, lost], detections([right.box], [1], [0.9]))
    truth, found = worst.seen[0].pictures
    assert truth.shape == found.shape == (SIDE // 2, SIDE, 3) and len(read) == 1
    scale = SIDE // 40
    row, column = int(13 * SIDE / 40), int(20 * SIDE / 40)
    assert (truth[row, column] == (255, 40, 40)).all() and (
        found[row, column] == (10, 100, 0)
    ).all()
    assert (truth[5 * scale, 10 * SIDE // 40 - 1] == 235).all()


def test_the_page(tmp_path):
    assert write(tmp_path, results()) == tmp_path / "report.html"
    assert {path.name for path in tmp_path.iterdir()} == FILES
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    space = "\N{NO-BREAK SPACE}"
    assert "<script" not in text and EVIL in page.text
    assert f"Box AP 50.0{space}%" in page.text and f"Mask AP 40.0{space}%" in page.text
    assert "Best epoch 2 of 3" in page.text and f"validation box AP 50.0{space}%" in page.text
    assert "Confusion" not in page.text and "1 class has no objects to validate" in page.text
    assert "3 objects found, 6 missed, 3 false alarms" in page.text
    rows = page.rows
    table = rows[rows.index(["Class", "Objects", "Box AP50", "Box AP", "Mask AP"]) :]
    assert [row[0] for row in table[1:4]] == [EVIL, "Bär", "ground"]
    assert table[1][1:] == ["1", f"20.0{space}%", f"20.0{space}%", f"20.0{space}%"]
    assert table[3][1:] == ["0", "–", "–", "–"]
    numbers = rows[rows.index(["Number", "Boxes", "Masks"]) :]
    assert [row[0].split()[0] for row in numbers[1:13]] == list(NUMBERS)
    assert numbers[6][1:] == ["–", "–"]
    described = [one["alt"] for one in page.all("img")]
    assert [x for x in described if x.startswith("a/")][:2] == [
        "a/2.png, truth",
        "a/2.png, prediction",
    ]
    assert any(x.startswith("Box AP over the epochs: validation box AP rises") for x in described)
    assert any(
        x.startswith("Precision over recall at an overlap of 0.5. boxes: ") for x in described
    )


def test_boxes_alone_many_classes_and_no_images(tmp_path):
    names = tuple(f"class {i}" for i in range(40))
    write(tmp_path, results(names, masks=False, images=0, train_objects=None))
    page = Page((tmp_path / "report.html").read_text())
    assert "No validation images." in page.text and "Objects by class" not in page.text
    assert "Mask AP 4" not in page.text and ["Class", "Objects", "Box AP50", "Box AP"] in page.rows
    assert ["Number", "Boxes"] in page.rows and "20 more classes" in page.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a"]}, "`scores` must be of the classes, one or more. Received: 1 class"),
        ({"worst": WorstObjects(["a"])}, "a name for each of 3 classes. Received: 1 names"),
        ({"train_objects": [1, 2]}, "`train_objects` must be of the shape"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, dataclasses.replace(results(), **change))
    assert not list(tmp_path.iterdir())


def test_the_curve_in_words():
    text = describe.curve({"val_box_ap": [0.1, 0.5]}, "Box AP")
    assert text == "Box AP over the epochs: validation box AP rises from 0.1 to 0.5 in epoch 2."
