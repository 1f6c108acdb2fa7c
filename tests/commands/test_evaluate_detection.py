"""`internimage-evaluate` of detectors: its numbers, what it writes, and what it refuses first."""

import importlib.util
import json

import annotated_shapes as objects
import numpy as np
import pytest
import small_models

from keras_internimage import predictor
from keras_internimage.checkpoints import published
from keras_internimage.commands.evaluate import cli
from keras_internimage.data import CocoMetrics
from keras_internimage.data.coco_metrics import NUMBERS
from keras_internimage.detector import load_detector, loading

pytestmark = pytest.mark.any_backend
pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def model():
    return small_models.detecting(classes=2)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    model.save(folder / "model.keras")
    labels = {"classes": objects.CLASSES, "resolution": 64}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    printed, errors = capsys.readouterr()
    return code, printed, errors


def test_the_numbers(folder, tmp_path, capsys):
    """Those of `CocoMetrics`, on COCO's layout, what Roboflow exports, and a file of its own."""
    root = objects.coco(tmp_path / "coco")
    (annotations,) = root.rglob("instances_val*.json")
    detector = load_detector(folder)
    paths = {path.name: path for path in root.rglob("*.png")}
    content = json.loads(annotations.read_text())
    truth = []
    for image in content["images"]:  # the better half of what is found, moved
        (found,) = detector.predict(paths[image["file_name"]])
        for row in found.coco(image["id"], objects.IDS)[: len(found) // 2 + 1]:
            row["bbox"][0] += 1
            truth.append({**row, "id": len(truth)})
    annotations.write_text(json.dumps({**content, "annotations": truth}))
    metrics = CocoMetrics(annotations)
    for image in metrics.images:
        metrics.add(image.id, detector.predict(paths[image.file_name])[0])
    expected = metrics.result()
    out, predictions = tmp_path / "out.json", tmp_path / "found.json"
    written = "--json", out, "--predictions", predictions
    code, printed, errors = run(capsys, folder, root, *written)
    assert code == 0, errors
    found = json.loads(out.read_text())
    assert found["task"] == "detection" and found["images"] == 2 and found["shorter_side"] == 64
    assert list(found["box"]) == list(NUMBERS) and 0 < found["box"]["AP"] < 1
    for kind in ("box", "mask"):
        known = getattr(expected, kind).numbers
        np.testing.assert_equal(
            [np.nan if x is None else x for x in found[kind].values()], list(known.values())
        )
    assert [row["label"] for row in found["per_class"]] == list(objects.CLASSES)
    assert sum(row["objects"] for row in found["per_class"]) == expected.objects.sum()
    rows = json.loads(predictions.read_text())
    assert rows == json.loads(json.dumps(metrics.rows)) and len(rows) > 2
    table = [line.split() for line in printed.splitlines()]
    assert ["AP50", f"{found['box']['AP50']:.1%}", f"{found['mask']['AP50']:.1%}"] in table
    assert "published" not in printed
    (images,) = {path.parent for path in paths.values() if "val" in path.parent.name}
    code, _, errors = run(capsys, folder, images, "--annotations", annotations, *written)
    assert code == 0 and json.loads(out.read_text())["box"] == found["box"], errors
    code, _, errors = run(capsys, folder, objects.roboflow(tmp_path / "robo"), *written)
    assert code == 0 and json.loads(out.read_text())["images"] == 2, errors


def test_published_numbers_and_images_that_are_gone(model, tmp_path, capsys, monkeypatch):
    rows = [{"name": n} for n in objects.CLASSES]
    monkeypatch.setattr(loading, "_build", lambda place: model)
    known = loading.Labels(tuple(row["name"] for row in rows))
    monkeypatch.setattr(loading, "known_classes", lambda place: known)
    root = objects.coco(tmp_path / "coco")
    name = next(n for n in published.names("detection") if "_t_fpn_3x" in n)
    gone = sorted(root.rglob("val*/*.png"))[0]
    gone.unlink()
    out = tmp_path / "out.json"
    code, printed, errors = run(capsys, name, root, "--resolution", "64", "--json", out)
    assert code == 1 and f"{gone}: no such file" in errors
    found = json.loads(out.read_text())
    assert found["images"] == 1 and found["failed"][0]["reason"] == "no such file"
    shown = found["published"]
    assert shown.pop("data") == "COCO val2017"
    assert shown == pytest.approx({"box": 0.491, "mask": 0.437})
    assert "published: 49.1% and 43.7% (COCO val2017)" in printed
    for path in root.rglob("val*/*.png"):
        path.unlink()
    code, _, errors = run(capsys, name, root)
    assert code == 2 and "no such file" in errors or "must be in the folder" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["internimage_t_1k_224", "{coco}"], "must be one for detection"),
        (["{model}", "{coco}", "--multi-scale"], "--multi-scale is for segmentation. Received: "),
        (["{model}", "{coco}", "--ground-truth", "x"], "with COCO's annotations"),
        (["{model}", "{coco}", "--predictions", "{root}/x.csv"], "end in .json for detection"),
        (
            ["{model}", "{coco}", "--predictions", "{root}/no/x.json"],
            "The folder of --predictions must",
        ),
        (["{model}", "{coco}", "--predictions", "{root}/a.json"], "path={root}/a.json, a folder"),
        (["{model}", "{coco}", "--labels", "{root}/a.txt"], "as many classes as the model has, 1"),
        (["{model}", "{root}/no", "--annotations", "{root}/a.txt"], "FOLDER must be that of"),
        (["{model}", "{coco}", "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_refuses_before_a_model_is_loaded(
    folder, tmp_path, capsys, monkeypatch, arguments, message
):
    def begin(*_, **__):
        raise AssertionError("begun")

    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.json").mkdir()
    root = objects.coco(tmp_path / "coco")
    monkeypatch.setattr(predictor, "load_model", begin)
    monkeypatch.setattr(loading, "_build", begin)
    places = {"root": tmp_path, "model": folder, "coco": root}
    code, printed, errors = run(capsys, *(a.format(**places) for a in arguments))
    assert code == 2 and printed == "" and message.format(**places) in errors, errors


def test_pycocotools_is_missing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, errors = run(capsys, folder, objects.coco(tmp_path / "coco"))
    assert code == 2 and "pip install 'keras-internimage[coco]'" in errors
