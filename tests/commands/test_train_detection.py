"""`internimage-train` on COCO's annotations: from the folder to the finished model, and resumed."""

import dataclasses
import functools
import io
import json
import zipfile

import annotated_shapes
import h5py
import keras
import numpy as np
import pytest
from commands.command import main, rows, train
from small_models import SMALL, TINY, as_options, classifier, mask_rcnn

from keras_internimage import models
from keras_internimage.commands import detect
from keras_internimage.commands.evaluate import cli as evaluate
from keras_internimage.commands.train import (
    callbacks,
    cli,
    detection,
    device,
    output,
    settings,
    tasks,
)
from keras_internimage.commands.train.stopping import Stopped
from keras_internimage.data import coco_images, scan_detection
from keras_internimage.detector import Detector, load_detector
from keras_internimage.detector.loading import resizing_at
from keras_internimage.training import RECIPES

pytestmark = pytest.mark.any_backend

NETWORK = [*as_options(TINY), *"--resolution 48 --decoder-channels 8".split()]
OPTIONS = [*NETWORK, *"--epochs 2 --batch-size 2 --accumulation 2 --ema 0.9 --freeze 1".split()]
WRITTEN = {
    *("model.keras", "labels.json", "history.csv", "images.csv", "run.json", "logs"),
    *("best.keras", "last.keras", "report.html"),
}


@pytest.fixture(scope="module", autouse=True)
def small_heads():
    """What takes the time of tiny networks is the number of regions and the box head."""
    with pytest.MonkeyPatch.context() as patch:
        few = {"units": 16, "proposals": 20, "proposals_per_level": 20, "max_detections": 5}
        patch.setattr(models, "MaskRCNN", functools.partial(models.MaskRCNN, **few))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return annotated_shapes.coco(tmp_path_factory.mktemp("objects") / "data", 5, 2)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The output folder of two epochs, and what was printed."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    return folder, train(data, *OPTIONS, "--output", folder)


def variables(path):
    """What a file holds of weights and of the optimizer's state, by name."""
    found = {}

    def visit(name, entry):
        if isinstance(entry, h5py.Dataset) and "seed_generator" not in name:
            found[name] = entry[()]

    with zipfile.ZipFile(path) as archive:
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))).visititems(visit)
    return found


def test_what_is_written(trained, data):
    folder, table = trained
    assert {path.name for path in folder.iterdir()} - {".lock"} >= WRITTEN
    assert table["data"] == "2 classes, 5 images to train on, 2 to validate with"
    assert table["task"] == "detection" and table["recipe"] == "scratch-detection"
    assert table["pyramid"] == "8 channels" and table["masks"] == "those of the annotations"
    counts = {"square": 0, "triangle": 0}
    for index in range(5):
        for label, _ in annotated_shapes.draw(index)[1]:
            counts[annotated_shapes.CLASSES[label]] += 1
    ordered = sorted(counts, key=lambda name: -counts[name])
    assert table["objects by class"] == ", ".join(f"{name} {counts[name]}" for name in ordered)
    listed = rows(folder / "images.csv")
    assert [row["part"] for row in listed] == ["train"] * 5 + ["validation"] * 2
    assert (listed[6]["file"], listed[6]["id"]) == ("val2017/101.png", "1010")
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == {
        "classes": list(annotated_shapes.CLASSES),
        "resolution": 48,
        "variant": "custom",
    }
    kept = json.loads((folder / "run.json").read_text())
    assert kept["objects"]["category_ids"] == list(annotated_shapes.IDS) and kept["finished"]
    history = rows(folder / "history.csv")
    assert len(history) == 2
    losses = ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss")
    for row in history:
        for name in ("loss", "val_loss", "val_box_ap", "val_mask_ap", "learning_rate"):
            assert np.isfinite(float(row[name]))
        for part in ("", "val_"):
            total = sum(float(row[part + name]) for name in losses)
            assert total == pytest.approx(float(row[f"{part}loss"]), rel=1e-4)


def test_a_detector_is_made_of_it(trained, data):
    """The AP of the best epoch is that of the finished model."""
    folder, _ = trained
    detector = load_detector(folder)
    assert detector.class_names == annotated_shapes.CLASSES
    assert detector.resizing == resizing_at(48)
    found = detector.predict(data / "val2017" / "100.png")[0]
    assert (found.height, found.width) == (48, 64)
    images = scan_detection(data)
    evaluation = detection._Evaluation(dataclasses.replace(chosen(data), masks="annotated"),
                                       images, None)  # fmt: skip
    scores = evaluation.evaluate(detector.model)
    history = {key: [float(row[key]) for row in rows(folder / "history.csv")]
               for key in ("val_box_ap", "val_loss")}  # fmt: skip
    best = history["val_box_ap"][callbacks.best_epoch(history, "val_box_ap")]
    assert scores.box.numbers["AP"] == pytest.approx(best, abs=1e-6)


def test_the_other_commands_read_it(trained, data, tmp_path):
    """The report's AP is what `internimage-evaluate` measures; objects are detected by it."""
    folder, _ = trained
    assert evaluate.main([str(folder), str(data), "--json", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert [row["label"] for row in found["per_class"]] == list(annotated_shapes.CLASSES)
    page = (folder / "report.html").read_text()
    assert f"{100 * found['box']['AP']:.1f}\N{NO-BREAK SPACE}%" in page
    image = data / "val2017" / "100.png"
    assert detect.main([str(folder), str(image), "--out", str(tmp_path / "seen")]) == 0
    assert (tmp_path / "seen").is_dir()


def chosen(data, *options):
    """The settings of the options."""
    parsed = cli.parser().parse_args([str(data), *map(str, NETWORK), *options])
    return settings.choose(parsed, "torch", 5, device.Device("cpu", "CPU"), 2)[0]


def test_stopped_and_resumed_is_as_if_uninterrupted(
    trained, data, tmp_path, monkeypatch, no_report, capsys
):
    folder, _ = trained
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:

        def stop(self, epoch, logs=None):
            raise Stopped(15)

        patch.setattr(callbacks.UnreadableFiles, "on_epoch_end", stop)
        assert main(data, *OPTIONS, "--output", stopped) == 143
    assert not (stopped / "model.keras").exists()
    capsys.readouterr()
    # What the training started with is checked, annotations as well.
    path = data / "annotations" / "instances_train2017.json"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    assert main(data, "--output", stopped, "--resume") == 2
    errors = capsys.readouterr().err
    assert "annotations must be those that the training started with" in errors
    assert "instances_train2017.json, another one" in errors
    path.write_bytes(content)
    assert main(data, "--output", stopped, "--resume", "--masks", "none") == 2
    assert "--masks none (started with annotated)" in capsys.readouterr().err
    assert main(data, "--output", stopped, "--resume") == 0
    assert "after 1 of 2 epochs" in capsys.readouterr().out
    expected, received = (rows(x / "history.csv") for x in (folder, stopped))
    for row in (*expected, *received):
        row.pop("wall_seconds")
    assert received == expected
    before, after = (variables(x / "last.keras") for x in (folder, stopped))
    assert any("optimizer" in name for name in before) and len(before) == len(after) > 100
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--variant H", "be one of T, S, B, L, XL, FlashT, FlashS, FlashB, FlashL for detection"),
        (
            "--recipe cascade-1x",
            "`variant` must be one of L, XL, FlashL for the recipe 'cascade-",
        ),
        ("--variant L --recipe mask-rcnn-3x", "FlashT, FlashS, FlashB for the recipe 'mask-rcnn-"),
        ("--class-weights balanced", "--class-weights is for classification. Received: "),
        ("--reduce-zero-label", "--reduce-zero-label is for segmentation. Received: "),
        ("--task segmentation --masks rectangles", "--masks is for detection. Received: "),
        ("--task classification --decoder-channels 8", "for segmentation and detection. Received"),
        ("--recipe finetune", "--recipe must be one of finetune-detection, scratch-detection, mas"),
        ("--weights nowhere", "--weights must be coco, imagenet, imagenet22k, the name of a"),
        ("--weights imagenet22k", "must be published for the variant (for 'T': internimage_t_1k"),
        ("--variant B --weights mask_rcnn_internimage_t_fpn_1x_coco", "1x_coco, of T, for B"),
        ("--resolution 16", "Input size must be at least 32x32"),
        ("--decoder-channels 0", "--decoder-channels must be at least 1"),
    ],
)
def test_refused_options(data, tmp_path, capsys, monkeypatch, arguments, message):
    """Before any image is read."""
    for module, name in ((coco_images, "scan_detection"), (cli, "_new")):
        monkeypatch.setattr(module, name, pytest.fail)
    assert main(data, *arguments.split(), "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("internimage-train: error: ") and message in errors
    assert "Traceback" not in errors and not (tmp_path / "out").exists()


def test_without_pycocotools(data, tmp_path, capsys, monkeypatch):
    """Said before any image is read."""
    from keras_internimage.data import coco_metrics

    monkeypatch.setattr(cli, "_new", pytest.fail)
    monkeypatch.setattr(coco_metrics.importlib.util, "find_spec", lambda name: (
        None if name == "pycocotools" else object()
    ))  # fmt: skip
    assert main(data, *NETWORK, "--output", tmp_path / "out") == 2
    assert "pycocotools must be installed" in capsys.readouterr().err


def test_refused_images(tmp_path, capsys):
    """All of them in one message, each by its name."""
    data = annotated_shapes.roboflow(tmp_path / "data", 4, 1)
    (data / "train" / "000.png").unlink()
    (data / "train" / "001.png").write_text("text")
    assert main(data, *NETWORK, "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    for line in (
        "train/000.png: is in the annotations, and not there",
        "train/001.png: is text, not an image",
        "--skip-bad leaves out these 2",
    ):
        assert line in errors
    assert not (tmp_path / "out").exists()


def test_folders_of_other_tasks(data, tmp_path):
    """COCO's folders are also called as those of masks."""
    options = cli.parser().parse_args([str(data)])
    assert tasks.of(options) is tasks.DETECTION
    single = annotated_shapes.write(
        tmp_path / "annotations/instances_default.json", tmp_path / "images", range(3)
    )
    assert tasks.of(cli.parser().parse_args([str(tmp_path)])) is tasks.DETECTION
    single.rename(tmp_path / "annotations/default.txt")
    assert tasks.of(cli.parser().parse_args([str(tmp_path)])) is tasks.SEGMENTATION


@pytest.mark.parametrize("layout", ["coco", "roboflow", "single"])
def test_what_a_resumed_training_reads(tmp_path, layout):
    folder = getattr(annotated_shapes, layout)(tmp_path / "data")
    options = cli.parser().parse_args([str(folder)])
    images = detection.scan(options, 0.2, 0)
    known, why = settings.choose(options, "torch", 4, device.Device("cpu", "CPU"), 2)
    assert (known.task, why["task"]) == ("detection", "by the folders in it")
    output.write_images(tmp_path, detection.rows(images, known))
    kept = {"classes": list(images.class_names), **detection.record(images)}
    kept = json.loads(json.dumps(kept))
    found = output.read_images(tmp_path, known.data, False)
    restored = detection.restored(found, known, kept, ())
    assert restored == dataclasses.replace(images, notes=())


def test_settings_by_default():
    """As published: COCO's weights for our recipe, ImageNet's for the official ones."""
    for arguments, expected in {
        "": ("T", "coco", "finetune-detection", 800, 256, 24),
        "--variant B --recipe mask-rcnn-3x": ("B", "imagenet", "mask-rcnn-3x", 800, 256, 36),
        "--variant FlashS": ("FlashS", "coco", "finetune-detection", 800, 256, 24),
        "--variant XL --recipe cascade-1x": ("XL", "imagenet22k", "cascade-1x", 800, 256, 12),
        "--weights none": ("T", "none", "scratch-detection", 800, 256, 150),
        "--variant FlashB": ("FlashB", "coco", "finetune-detection", 800, 256, 24),
    }.items():
        words = ["x", "--task", "detection", *arguments.split()]
        options = cli.parser().parse_args(words)
        found, _ = settings.choose(options, "jax", 100, device.Device("cpu", "CPU"), 80)
        names = ("variant", "weights", "recipe", "resolution", "decoder_channels", "epochs")
        assert tuple(getattr(found, name) for name in names) == expected
        assert found.batch_size == 1 and found.masks == "annotated"
        row = found.recipe_row()
        assert row.short_sides == RECIPES[found.recipe].short_sides and row.long_side == 1333
    gpu = device.Device("gpu", "GPU", 24 << 30, True)
    found, _ = settings.choose(options, "jax", 100, gpu, 80)
    assert 2 <= found.batch_size <= 8


def test_boxes_alone(tmp_path, no_report, capsys):
    """Where no object has a segmentation; the finished model's masks are empty."""
    data = annotated_shapes.coco(tmp_path / "data", 2, 1, change=lambda content: [
        x.update(segmentation=[]) for x in content["annotations"]
    ])  # fmt: skip
    options = "--epochs 1 --batch-size 2".split()
    assert main(data, *NETWORK, *options, "--output", tmp_path / "out") == 0
    assert "boxes are learnt alone" in capsys.readouterr().out
    (row,) = rows(tmp_path / "out" / "history.csv")
    assert float(row["mask_loss"]) == 0 and "val_mask_ap" not in row
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    detector = Detector(model, threshold=0.0)
    found = detector.predict(np.asarray(annotated_shapes.draw(0)[0]))[0]
    assert found.masks.size == 0 or found.masks.max() < 1e-6


def test_weights_of_a_file_are_those_of_what_it_holds(data, tmp_path):
    """A classifier's are the backbone's; of a detector all but the last layers are taken."""
    known = chosen(data)
    detector = mask_rcnn({**TINY, "layer_scale": None}, units=16)
    for source, same, others in (
        (classifier(TINY), (), ("rpn", "box_head")),
        (detector, ("fpn", "rpn"), ()),
    ):
        source.save(tmp_path / "file.keras")
        made = detection.build_model(known, 2, str(tmp_path / "file.keras"))
        assert made.classes == 2
        blocks = [
            (m.backbone if hasattr(m, "backbone") else m).get_layer("stage1_block1").get_weights()
            for m in (source, made)
        ]
        for before, after in zip(*blocks, strict=True):
            np.testing.assert_array_equal(after, before)
        for name in same:
            pair = [m.get_layer(name).get_weights() for m in (source, made)]
            assert pair[0] and all(map(np.array_equal, *pair))
        assert all(made.get_layer(name).get_weights() for name in others)


def test_files_of_other_weights(data, tmp_path, capsys, monkeypatch):
    """Before any image is read."""
    monkeypatch.setattr(cli, "_new", pytest.fail)
    mask_rcnn(channels=16, units=16).save(tmp_path / "wide.keras")
    classifier(SMALL).save(tmp_path / "large.keras")
    for name, message in (
        ("wide.keras", "pyramid channels 8. Received"),
        ("large.keras", "of channels 8, depths 1 1 1 1, groups 1 2 4 8, operator DCNv3. Received"),
    ):
        path = tmp_path / name
        assert main(data, *NETWORK, "--weights", path, "--output", tmp_path / "out") == 2
        errors = capsys.readouterr().err
        assert message in errors and str(path) in errors
