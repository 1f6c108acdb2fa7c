"""`internimage-detect`: what it writes, what it leaves alone, what it refuses first."""

import csv
import json

import numpy as np
import pytest
import small_models
from commands.command import refused_before_loading
from PIL import Image

from keras_internimage.commands import detect
from keras_internimage.detector import load_detector, loading

pytestmark = pytest.mark.any_backend
NAMES = list("vwxyz")
ANNOTATIONS = "{root}/images/none.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small_models.detecting().save(folder / "model.keras")
    (folder / "labels.json").write_text(json.dumps({"classes": NAMES, "resolution": 64}))
    return folder


@pytest.fixture
def images(tmp_path):
    """Of noise, in which a model with random weights finds something; one is to be turned."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (("a.png", (60, 80, 3)), ("b.png", (50, 90, 3)), ("more/A.jpg", (64, 64, 3))):
        image = Image.fromarray(rng.integers(0, 256, size, dtype="uint8"))
        image.save(root / name, **({"exif": exif} if name == "b.png" else {}))
    empty = {"images": [], "categories": [{"id": 1, "name": "v"}], "annotations": []}
    (root / "none.json").write_text(json.dumps(empty))
    return root


def run(capsys, *arguments):
    code = detect.main([str(argument) for argument in arguments])
    printed, errors = capsys.readouterr()
    return code, printed, errors


def test_what_is_written(folder, images, tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.mask")
    out = images / "out"  # below the images: no pictures of results are looked at
    (images / "bad.jpg").write_text("text")
    arguments = folder, images, tmp_path / "none.png", "--out", out, "--threshold", "0.1"
    for _ in range(2):  # its own results are replaced
        code, printed, errors = run(capsys, *arguments)
        assert code == 1 and printed == ""
        assert errors.splitlines() == [
            f"internimage-detect: {tmp_path / 'none.png'}: no such file",
            f"internimage-detect: {images / 'bad.jpg'}: is text, not an image",
        ]
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {
        *(f"pictures/{name}.jpg" for name in ("a", "b", "A-2")),
        *("detections.json", "detections.csv", ".keras_internimage.json"),
    }
    assert Image.open(out / "pictures/b.jpg").size == (50, 90)  # upright
    rows = json.loads((out / "detections.json").read_text())
    with open(out / "detections.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(rows) == len(table) > 4
    assert {row["image_id"] for row in rows} == {"a.png", "b.png", "A.jpg"}
    (found,) = load_detector(folder, threshold=0.1).predict(images / "b.png")
    of_b = [row for row in rows if row["image_id"] == "b.png"]
    assert len(of_b) == len(found)
    for index, row in enumerate(of_b):
        np.testing.assert_array_equal(coco.decode(row["segmentation"]), found.mask(index))
        assert row["score"] > 0.1 and row["category_id"] == found.labels[index] + 1
    first = table[rows.index(of_b[0])]
    assert first["image"] == str(images / "b.png") and first["label"] == NAMES[found.labels[0]]
    assert float(first["right"]) == pytest.approx(found.boxes[0][2], abs=0.06)
    assert int(first["area"]) == found.mask(0).sum()
    # Boxes are over the image.
    drawn, plain = (
        np.asarray(Image.open(p), int) for p in (out / "pictures/b.jpg", images / "b.png")
    )
    assert np.abs(drawn - np.rot90(plain, -1)).mean() > 20


def test_numbers_of_annotations(folder, images, tmp_path, capsys):
    content = {
        "images": [
            {"id": 17, "file_name": "sub/a.png", "width": 80, "height": 60},
            {"id": 4, "file_name": "b.png", "width": 50, "height": 90},
        ],
        "categories": [{"id": n, "name": x} for n, x in zip((3, 5, 8, 9, 20), NAMES, strict=True)],
        "annotations": [],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    out = tmp_path / "out"
    options = "--out", out, "--threshold", "0", "--annotations", path, "--no-pictures"
    code, _, errors = run(capsys, folder, images, *options, "--batch-size", "2")
    assert code == 1 and f"A.jpg: is not in {path}" in errors
    rows = json.loads((out / "detections.json").read_text())
    assert {row["image_id"] for row in rows} == {4, 17}
    assert {row["category_id"] for row in rows} <= {3, 5, 8, 9, 20} and len(rows) > 4
    assert not (out / "pictures").exists()
    content["categories"].reverse()
    for number, row in enumerate(content["categories"]):
        row["id"] = number
    path.write_text(json.dumps(content))
    code, _, errors = run(capsys, folder, images / "a.png", *options)
    assert code == 2 and "in the order of the model's. Received: z, y, x, w, v instead" in errors
    del content["categories"][0]
    path.write_text(json.dumps(content))
    code, _, errors = run(capsys, folder, images / "a.png", *options)
    assert code == 2 and "as many classes as the model has, 5. Received: " in errors


def test_options(folder, images, tmp_path, capsys, monkeypatch):
    seen = {}

    def spy(place, labels, resizing, say, **options):
        seen.update(labels=labels, resizing=resizing, **options)
        raise ValueError("enough")

    monkeypatch.setattr(loading, "assemble", spy)
    labels = tmp_path / "names.txt"
    labels.write_text("\n".join(NAMES))
    options = "--out", tmp_path / "out", "--shorter-side", "480", "--labels", labels
    code, _, errors = run(capsys, folder, images / "a.png", *options)
    assert code == 2 and errors == "internimage-detect: error: enough\n"
    assert seen["labels"].classes == tuple(NAMES) and seen["threshold"] == 0.3
    assert (seen["resizing"].shortest, seen["resizing"].longest) == (480, 800)


def test_an_image_that_does_not_fit_into_memory(folder, images, tmp_path, capsys, monkeypatch):
    from keras_internimage.detector import Detector

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Detector, "predict", fail)
    out = tmp_path / "out"
    code, _, errors = run(capsys, folder, images / "a.png", "--out", out)
    assert code == 1 and "a.png: does not fit into memory" in errors
    assert json.loads((out / "detections.json").read_text()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/none", "{image}"], "none, no such file"),
        (["internimage_t_1k_224", "{image}"], "must be one for detection"),
        (["T", "{image}"], "A variant needs weights (--weights): "),
        (
            ["T", "{image}"],
            "mask_rcnn_internimage_t_fpn_3x_coco, mask_rcnn_internimage_t_fpn_1x_coco",
        ),
        (["{model}", "{root}/x.png", "{root}/y.png"], "{root}/x.png: no such file; {root}/y."),
        (["{model}", "{root}/empty"], "There must be images. Received: {root}/empty with none"),
        (["{model}", "{image}", "--threshold", "1"], "--threshold must be at least 0 and less tha"),
        (["{model}", "{image}", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["{model}", "{image}", "--out", "{root}"], "nothing else is replaced. Received: "),
        (["{model}", "{image}", "--out", "{root}/x/y"], "The folder of --out must exist"),
        (["{model}", "{image}", "--weights", "coco"], "With weights, model must be one of T, S"),
        (["{model}", "{image}", "--annotations", "{root}/x.json"], "x.json"),
        (["{model}", "{image}", "--annotations", ANNOTATIONS], "a.png: is not in "),
    ],
)
def test_refuses_before_a_model_is_loaded(folder, images, tmp_path, capsys, arguments, message):
    given = arguments, folder, images / "a.png", tmp_path, capsys
    errors = refused_before_loading(detect, loading, *given)
    assert message.format(root=tmp_path) in errors
