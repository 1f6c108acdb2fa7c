"""The report of a training for segmentation, from made-up numbers."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from report import runs
from report.test_report import EVIL, FILES, Page

from keras_internimage.data.palette import default_palette
from keras_internimage.report import SegmentationResults, describe, write
from keras_internimage.report.mask_gallery import SHOWN, SIDE, Worst
from keras_internimage.training.metrics import pixel_confusion

pytestmark = pytest.mark.any_backend


def seen(worst, wrong, name="a/image.png", size=(40, 20), classes=3):
    """Adds an image of class 1, so many columns of which are taken for class 2."""
    truth = np.ones(size[::-1], int)
    truth[0] = 255
    found = np.ones_like(truth)
    found[:, :wrong] = 2
    counts = pixel_confusion(truth, found, classes)
    worst.add(name, Image.new("RGB", size, (200, 100, 0)), truth, found, counts)
    return counts


def history(epochs=3):
    made = runs.history(epochs)
    for key in ("", "val_"):
        made[f"{key}logits_mean_iou"] = made.pop(f"{key}accuracy")
    return made


def results(names=("ground", EVIL, "square"), images=3, **others):
    worst = Worst(default_palette(len(names)))
    counts = sum(seen(worst, i + 1, f"a/{i}.png", classes=len(names)) for i in range(images))
    return SegmentationResults(
        class_names=names,
        history=history(),
        worst=worst,
        **{
            "counts": counts,
            "train_pixels": np.arange(len(names)),
            "settings": {"seed": "1"},
            **others,
        },
    )


def test_the_worst_come_first():
    worst = Worst(default_palette(3))
    assert worst.heading() == "No validation images."
    seen(worst, 0)
    assert worst.heading() == "No wrong pixel in 1 validation image."
    for index in range(SHOWN + 2):
        seen(worst, index + 1, f"{index}.png")
    assert (worst.images, worst.wrong, len(worst.seen)) == (SHOWN + 3, SHOWN + 2, SHOWN)
    assert worst.heading() == f"The {SHOWN} worst of {SHOWN + 2} images with wrong pixels"
    assert [one.path for one in worst.seen] == [f"{i}.png" for i in range(SHOWN + 1, 1, -1)]
    first = worst.seen[0]
    # 14 of 40 columns wrong: the IoU of class 1 is 26 / 40, that of class 2 nothing.
    assert (first.accuracy, first.mean_iou) == pytest.approx((26 / 40, 26 / 80))
    assert first.classes == (1, 2)


def test_the_pictures_are_the_image_and_its_classes():
    worst = Worst([(0, 0, 0), (0, 0, 250), (0, 250, 0)])
    seen(worst, 10)
    image, truth, found = worst.seen[0].pictures
    assert image.shape == truth.shape == found.shape == (SIDE // 2, SIDE, 3)
    assert (image == (200, 100, 0)).all()
    assert (truth[0] == 100).all()  # ignored: the image in grey
    assert (truth[-1] == (60, 30, 175)).all()
    assert (found[-1, : SIDE // 4] == (60, 205, 0)).all() and (found[-1, -1] == truth[-1, -1]).all()


def test_the_page(tmp_path):
    assert write(tmp_path, results()) == tmp_path / "report.html"
    assert {path.name for path in tmp_path.iterdir()} == FILES
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "<script" not in text and EVIL in page.text
    # Of 120 columns 6 are wrong; class 0 is nowhere, class 2 never right.
    iou = 100 * (114 / 120) / 2
    assert f"mIoU {iou:.1f}\N{NO-BREAK SPACE}%" in page.text
    assert "Best epoch 3 of 3" in page.text and "validation mIoU" in page.text
    assert "2 classes have no validation pixels" in page.text
    table = page.rows[page.rows.index(["Class", "Accuracy", "IoU", "Pixels"]) :]
    names = [row[0] for row in table[1:4]]
    assert names == ["square", EVIL, "ground"]
    assert [row[2] for row in table[1:4]] == [
        "0.0\N{NO-BREAK SPACE}%",
        "95.0\N{NO-BREAK SPACE}%",
        "–",
    ]
    images = [element for tag, element in page.elements if tag == "img"]
    described = [one["alt"] for one in images if one["alt"].startswith("a/")]
    assert described[:3] == ["a/2.png, image", "a/2.png, truth", "a/2.png, prediction"]
    assert len(described) == 9
    assert "of 2,280 pixels on its diagonal" in text  # 3 images of 40 x 19 pixels that count
    assert "all pixels that count" in page.text and "are this share in percent" in page.text


def test_many_classes_and_none_wrong(tmp_path):
    names = [f"class {i}" for i in range(40)]
    perfect = results(names, images=0, counts=np.diag(np.arange(40)), train_pixels=None)
    write(tmp_path, perfect)
    page = Page((tmp_path / "report.html").read_text())
    assert "No validation images." in page.text and "Pixels by class" not in page.text
    assert "class 39, classified correctly: 39 pixels" in page.text
    assert "20 more classes" in page.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.zeros((2, 2), int)}, "`counts` must be integers of the shape"),
        ({"counts": np.zeros((3, 3))}, "`counts` must be integers of the shape"),
        ({"worst": Worst(default_palette(2))}, "a colour for each of 3 classes. Received: 2"),
        ({"train_pixels": [1, 2]}, "`train_pixels` must be of the shape"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        write(tmp_path, dataclasses.replace(results(), **change))
    assert not list(tmp_path.iterdir())


def test_the_curve_in_words():
    text = describe.curve({"val_logits_mean_iou": [0.1, 0.5]}, "mIoU")
    assert text == "mIoU over the epochs: validation mIoU rises from 0.1 to 0.5 in epoch 2."
