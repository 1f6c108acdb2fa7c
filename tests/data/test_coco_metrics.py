"""COCO's average precision next to pycocotools as its own documentation calls it."""

import contextlib
import importlib.util
import io
import json

import numpy as np
import pytest

from keras_internimage.data import CocoMetrics, read_coco
from keras_internimage.data.coco_metrics import NUMBERS, RECALLS
from keras_internimage.data.run_lengths import encode

pytestmark = pytest.mark.any_backend
pytest.importorskip("pycocotools")

SIZE = (120, 160)
CATEGORIES = (3, 7, 20)


class Rows:
    """Detections of an image, as the file of results has them."""

    def __init__(self, rows):
        self.rows = rows

    def coco(self, image_id, category_ids):
        assert tuple(category_ids) == CATEGORIES
        return [{**row, "image_id": image_id} for row in self.rows]


def ellipse(box):
    left, top, right, bottom = box
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    across, down = (right - left) / 2, (bottom - top) / 2
    return ((x - left - across) / across) ** 2 + ((y - top - down) / down) ** 2 <= 1


def made(crowds=2):
    """Annotations of four images, small, medium and large; and detections near some of them."""
    rng = np.random.default_rng(0)
    annotations, rows = [], {}
    for image_id in (5, 6, 7, 8):
        rows[image_id] = []
        for _ in range(5):
            left, top = rng.uniform(0, 60, 2)
            width, height = rng.choice([12, 40, 100]) * rng.uniform(0.5, 0.6, 2)
            category = int(rng.choice(CATEGORIES[:2]))  # none of the third
            box = [left, top, width, height]
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            annotations.append(
                {
                    **{"id": 1 + len(annotations), "image_id": image_id, "bbox": box},
                    **{"category_id": category, "area": width * height, "iscrowd": 0},
                    "segmentation": [corners],
                }
            )
            if rng.random() < 0.8:
                moved = np.array([left, top, left + width, top + height])
                moved = moved + rng.normal(0, 0.05, 4) * [width, height, width, height]
                row = {"score": float(rng.random()), "category_id": category}
                row["bbox"] = [*moved[:2].tolist(), *(moved[2:] - moved[:2]).tolist()]
                rows[image_id].append({**row, "segmentation": encode(ellipse(moved))})
    for annotation in annotations[:crowds]:
        mask = ellipse([0, 0, 150, 110])
        counts = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=~mask[0, 0])), prepend=0)
        counts = [*counts.tolist(), int(mask.size - counts.sum())]
        annotation |= {"iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": counts}}
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in rows
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in CATEGORIES],
        "annotations": annotations,
    }
    return content, rows


def official(content, rows, kind, ids):
    """The numbers, and precision by class, of pycocotools by its own loader of results."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(content))
        truth.createIndex()
        flat = [{**row, "image_id": n} for n in rows for row in rows[n]]
        if kind == "segm":  # or it would take the area of the box
            flat = [{k: v for k, v in row.items() if k != "bbox"} for row in flat]
        evaluation = COCOeval(truth, truth.loadRes(flat), kind)
        evaluation.params.imgIds = list(ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return evaluation.stats, precision


@pytest.mark.parametrize("ids", [(5, 6, 7, 8), (8, 6)])
def test_the_numbers_are_those_of_pycocotools(tmp_path, ids):
    content, rows = made()
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    metrics = CocoMetrics(path, None if len(ids) == 4 else ids)
    assert [image.id for image in metrics.images] == list(ids)
    for number in ids:
        metrics.add(number, Rows(rows[number]))
    found = metrics.result()
    chosen = {n: rows[n] for n in ids}
    for precision, kind in ((found.box, "bbox"), (found.mask, "segm")):
        stats, curves = official(content, chosen, kind, ids)
        expected = np.where(stats < 0, np.nan, stats)
        assert list(precision.numbers) == list(NUMBERS)
        np.testing.assert_array_equal(list(precision.numbers.values()), expected)
        assert 0.1 < precision.numbers["AP"] < precision.numbers["AP50"]
        for label in (0, 1):
            assert precision.per_class[label] == pytest.approx(curves[:, :, label].mean())
            assert precision.per_class_50[label] == pytest.approx(curves[0, :, label].mean())
        assert np.isnan(precision.per_class[2])
        np.testing.assert_allclose(precision.curve, curves[0, :, :2].mean(1))
    assert found.box.curve.shape == RECALLS.shape and found.class_names[2] == "class 20"
    real = [x for x in content["annotations"] if not x["iscrowd"] and x["image_id"] in ids]
    expected = [sum(x["category_id"] == n for x in real) for n in CATEGORIES]
    np.testing.assert_array_equal(found.objects, expected)


def test_ids_that_count_from_nought(tmp_path):
    """pycocotools takes the object 0 for none, and what is found of it for a false alarm."""
    results = []
    for number in (2, 0):
        content, rows = made(crowds=0)
        content["annotations"][1]["id"] = number  # one that was detected
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content))
        metrics = CocoMetrics(path)
        for number, those in rows.items():
            metrics.add(number, Rows(those))
        results.append(metrics.result().box.numbers)
    np.testing.assert_equal(*results)
    assert results[1]["AP50"] > official(content, rows, "bbox", rows)[0][1]


def test_what_the_annotations_leave_out(tmp_path):
    """Area, crowd; no segmentation at all, or not of each object."""
    content, rows = made(crowds=0)
    whole = dict(enumerate(x.copy() for x in content["annotations"]))
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    path = tmp_path / "a.json"

    def scores():
        path.write_text(json.dumps(content))
        metrics = CocoMetrics(read_coco(path))
        for number, those in rows.items():
            metrics.add(number, Rows(those))
        return metrics.result()

    complete = scores()
    for index, annotation in enumerate(content["annotations"]):
        assert annotation.pop("segmentation") == whole[index]["segmentation"]
    without = scores()
    assert without.mask is None and without.box.numbers["AP"] == complete.box.numbers["AP"]
    for index in range(1, len(whole)):
        content["annotations"][index]["segmentation"] = whole[index]["segmentation"]
    some = scores()
    # The first object is neither missed nor found.
    np.testing.assert_equal(some.box.numbers, complete.box.numbers)
    assert some.mask.numbers["AR100"] != complete.mask.numbers["AR100"]


def test_no_detections_and_no_objects(tmp_path):
    content, _ = made()
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    nothing = CocoMetrics(path).result()
    assert nothing.box.numbers["AP"] == nothing.mask.numbers["AP"] == 0
    content["annotations"] = []
    path.write_text(json.dumps(content))
    empty = CocoMetrics(path)
    empty.add(5, Rows([]))
    assert np.isnan(empty.result().box.numbers["AP"]) and empty.result().mask is None


def test_refusals(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(made()[0]))
    with pytest.raises(ValueError, match="must be images of the annotations.*image 9, which is"):
        CocoMetrics(path, [5, 9])
    with pytest.raises(ValueError, match="one or more. Received: none in"):
        CocoMetrics(path, [])
    metrics = CocoMetrics(path)
    metrics.add(5, Rows([]))
    with pytest.raises(ValueError, match="must be new. Received: image_id=5, added before"):
        metrics.add(5, Rows([]))
    with pytest.raises(ValueError, match="image_id=9, not in the annotations"):
        metrics.add(9, Rows([]))
    metrics.reset()
    metrics.add(5, Rows([]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'keras-internimage\[coco\]'"):
        CocoMetrics(path)
