"""What `internimage-evaluate` refuses."""

import shutil

import masks
import photographs
import pytest
from commands.test_evaluate import classifier as classifier  # a fixture
from commands.test_evaluate import run
from commands.test_evaluate import segmenter as segmenter  # a fixture

from keras_internimage import predictor
from keras_internimage.data import folders
from keras_internimage.data import masks as scanning

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/none", "{data}"], "none, no such file"),
        (["{model}", "{root}/none"], "must be a folder of images. Received: {root}/none"),
        (["{model}", "{data}", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["{model}", "{data}", "--json", "{root}/x/a.json"], "The folder of --json must exist"),
        (["{model}", "{data}", "--json", "{data}/china/000.jpg"], "ends in .json"),
        (["{model}", "{root}/empty"], "There must be images. Received: {root}/empty with none"),
        (["{model}", "{root}/flat"], "or a file of labels (--ground-truth). Received: {root}/flat"),
        (["{model}", "{data}", "--ground-truth", "{root}/no.txt"], "no.txt, no such file"),
        (["{model}", "{root}/other"], "classes of the model, which has 3 (china, flower, zebra). "),
        (["internimage_t_1k_224", "{data}"], "as many folders as the model has classes, 1000. "),
        (["{model}", "{root}/flat", "--ground-truth", "{root}/three.txt"], "numbers from 3 to 3"),
        (["{model}", "{root}/flat", "--ground-truth", "{root}/two.txt"], "2 lines for 1 images"),
        (["{model}", "{root}/flat", "--ground-truth", "{root}/name.txt"], "b.jpg, not there"),
        (["{model}", "{root}/flat", "--ground-truth", "{root}/word.txt"], "Received: cat"),
        (["{model}", "{root}/flat", "--ground-truth", "{root}/odd.txt"], "lines of 1, 3 words"),
        (["{model}", "{masks}"], "as many classes as the model has, 3. Received: {masks} with 2"),
        (["internimage_t_1k_224", "{masks}"], "--task segmentation needs a segmentation model"),
        (["{model}", "{masks}", "--ground-truth", "{root}/two.txt"], "is for classification"),
        (["{model}", "{data}", "--predictions", "{root}/x.json"], "end in .csv for classification"),
        (["{model}", "{data}", "--predictions", "{root}/no/x.csv"], "of --predictions must exist"),
        (["{model}", "{masks}", "--predictions", "{root}/x.csv"], "a folder for segmentation"),
        (["{model}", "{masks}", "--predictions", "{data}"], "new or empty folder"),
        (["{model}", "{data}", "--multi-scale"], "--multi-scale is for segmentation"),
        (["upernet_internimage_t_512_160k_ade20k", "{data}"], "MODEL must be a classifier"),
        (["upernet_internimage_t_512_160k_ade20k", "{masks}"], "model has, 150. Received: {masks}"),
        (["{model}", "{masks}", "--resolution", "64"], "--resolution is for classification"),
        (["{model}", "{data}", "--task", "segmentation"], "There must be images/ and masks/"),
    ],
)
def test_refuses_before_a_model_is_loaded(
    classifier, tmp_path, capsys, monkeypatch, arguments, message
):
    def begin(*_, **__):
        raise AssertionError("begun")

    data = photographs.folder(tmp_path / "data", images=1)
    (tmp_path / "empty").mkdir()
    shutil.copytree(data / "china", tmp_path / "flat")
    shutil.copytree(data / "china", tmp_path / "other" / "cat")
    for name, text in {
        "three": "3",
        "two": "0\n1\n",
        "name": "b.jpg 0",
        "word": "cat",
        "odd": "a b c\nd",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)
    places = {
        "root": tmp_path,
        "model": classifier,
        "data": data,
        "masks": masks.folder(tmp_path / "masks", 1),
    }
    monkeypatch.setattr(predictor, "load_model", begin)
    monkeypatch.setattr(predictor, "build_published", begin)
    monkeypatch.setattr(scanning, "scan_segmentation", begin)
    monkeypatch.setattr(folders, "scan", begin)
    code, printed, errors = run(capsys, *(a.format(**places) for a in arguments))
    assert code == 2 and printed == ""
    assert errors.startswith("internimage-evaluate: error: ")
    assert message.format(**places) in errors


def test_a_model_of_another_kind(classifier, segmenter, tmp_path, capsys):
    data = masks.folder(tmp_path / "data", 1)
    (data / "classes.txt").write_text("china\nflower\nzebra\n")
    code, _, errors = run(capsys, classifier, data)
    assert code == 2 and "give logits (N, H, W, classes). Received: " in errors
    photographs.folder(tmp_path / "classes", images=1)
    code, _, errors = run(capsys, segmenter, tmp_path / "classes")
    assert code == 2 and "give one score for each class (internimage-segment " in errors
    (data / "classes.txt").write_text("zebra\nflower\nchina\n")
    code, _, errors = run(capsys, classifier, data)
    assert code == 2 and "in the order of the model's. Received: zebra, flower, china" in errors
