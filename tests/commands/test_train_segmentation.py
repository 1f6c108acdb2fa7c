"""`internimage-train` on images and masks: from the folder to the report, resumed, and read."""

import dataclasses
import json
import pathlib
import re

import keras
import masks
import numpy as np
import pytest
import shapes
from commands.command import main, rows, train
from PIL import Image
from small_models import SMALL, TINY, as_options, classifier, upernet

from keras_internimage.commands import predict, segment
from keras_internimage.commands.evaluate import cli as evaluate
from keras_internimage.commands.train import callbacks, cli, device, output, segmentation, settings
from keras_internimage.commands.train.stopping import Stopped
from keras_internimage.data import mask_layout, palette, scan_segmentation
from keras_internimage.data import masks as mask_folders
from keras_internimage.segmenter import loading

pytestmark = pytest.mark.any_backend

NETWORK = [*as_options(TINY), *"--resolution 64 --decoder-channels 8".split()]
OPTIONS = [*NETWORK, *"--epochs 2 --batch-size 4 --accumulation 2 --ema 0.9 --freeze 1".split()]
WRITTEN = {
    *("model.keras", "labels.json", "classes.txt", "history.csv", "images.csv", "run.json"),
    *("logs", "best.keras", "last.keras", "curves.png", "confusion.png", "mistakes.png"),
    "report.html",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.folder(tmp_path_factory.mktemp("shapes") / "data", images=7, validation=3)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The output folder of two epochs, and what was printed."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    return folder, train(data, *OPTIONS, "--output", folder)


def variables(path):
    model = keras.saving.load_model(path)
    found = [v for v in model.weights if "seed_generator" not in v.path]
    return [keras.ops.convert_to_numpy(v) for v in found + list(model.optimizer.variables)]


def test_what_is_written(trained, data):
    folder, table = trained
    assert {path.name for path in folder.iterdir()} - {".lock"} == WRITTEN
    assert table["data"] == "3 classes, 7 images to train on, 3 to validate with"
    assert table["task"] == "segmentation" and table["recipe"] == "scratch-upernet"
    assert re.fullmatch(r"\w+ [\d.]+%, \w+ [\d.]+%, \w+ [\d.]+%", table["pixels by class"])
    listed = rows(folder / "images.csv")
    assert [row["part"] for row in listed] == ["train"] * 7 + ["validation"] * 3
    assert listed[7]["file"] == "images/val/1000.png" and listed[7]["mask"] == "masks/val/1000.png"
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == {"classes": list(shapes.CLASSES), "resolution": 64, "variant": "custom"}
    assert palette.read_classes(folder / "classes.txt") == (
        shapes.CLASSES,
        palette.default_palette(3),
        (),
    )
    model = keras.saving.load_model(folder / "model.keras")
    assert model.output_shape == (None, None, None, 3)
    assert not [layer for layer in model.layers if "auxiliary" in layer.name]
    history = rows(folder / "history.csv")
    assert len(history) == 2
    for name in ("loss", "logits_mean_iou", "val_loss", "val_logits_mean_iou", "learning_rate"):
        assert all(np.isfinite(float(row[name])) for row in history)


def test_the_other_commands_read_it(trained, data, tmp_path, capsys):
    """The report's mIoU is what `internimage-evaluate` measures; images are segmented by it."""
    folder, _ = trained
    assert evaluate.main([str(folder), str(data), "--json", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert [row["label"] for row in found["per_class"]] == list(shapes.CLASSES)
    page = (folder / "report.html").read_text()
    assert f"<dt>mIoU</dt><dd>{100 * found['miou']:.1f}\N{NO-BREAK SPACE}%</dd>" in page
    image = data / "images" / "val" / "1000.png"
    assert segment.main([str(folder), str(image), "--out", str(tmp_path / "seen")]) == 0
    assert "internimage-segment: " not in capsys.readouterr().err  # no remark on lacking labels
    (made,) = [p for p in (tmp_path / "seen").rglob("*.png") if Image.open(p).mode == "P"][:1]
    with Image.open(made) as picture:
        assert picture.size == (64, 64) and np.asarray(picture).max() < 3
    assert predict.main([str(folder), str(image)]) == 2
    assert "(internimage-segment takes models of segmentation)" in capsys.readouterr().err


def test_the_report(trained):
    folder, _ = trained
    page = (folder / "report.html").read_text()
    for word in (
        *("UperNet on InternImage on data", "Mean accuracy", "Pixel accuracy", "Worst images"),
        *("mIoU over the epochs: validation mIoU", "Loss over the epochs", "Pixels by class"),
        *shapes.CLASSES,
        "Confusion matrix of 3 classes",
    ):
        assert word in page
    for index in range(3):
        assert all(
            f"val/100{index}.png, {title}" in page for title in ("image", "truth", "prediction")
        )
    ious = [float(x) for x in re.findall(r'"bar" style="--part:[\d.]+">([\d.]+)\s%</span>', page)]
    assert len(ious) == 6 and ious[:3] == sorted(ious[:3])  # of the classes, the worst first
    assert "None" not in page and "nan" not in page.split("data:")[0]


def test_stopped_and_resumed_is_as_if_uninterrupted(trained, data, tmp_path, monkeypatch, capsys):
    folder, _ = trained
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:

        def stop(self, epoch, logs=None):
            raise Stopped(15)

        patch.setattr(callbacks.UnreadableFiles, "on_epoch_end", stop)
        assert main(data, *OPTIONS, "--output", stopped) == 143
    assert not (stopped / "model.keras").exists()
    capsys.readouterr()
    # What the training started with is checked, masks as well.
    mask = data / "masks" / "train" / "0001.png"
    content = mask.read_bytes()
    mask.write_bytes(content + b"\0")
    assert main(data, "--output", stopped, "--resume") == 2
    assert "masks/train/0001.png: has another size" in capsys.readouterr().err
    mask.write_bytes(content)
    assert main(data, "--output", stopped, "--resume", "--decoder-channels", 16) == 2
    assert "--decoder-channels 16 (started with 8)" in capsys.readouterr().err
    assert main(data, "--output", stopped, "--resume") == 0
    assert "after 1 of 2 epochs" in capsys.readouterr().out
    expected, received = (rows(x / "history.csv") for x in (folder, stopped))
    for row in (*expected, *received):
        row.pop("wall_seconds")
    assert received == expected
    pairs = zip(variables(folder / "last.keras"), variables(stopped / "last.keras"), strict=True)
    for before, after in pairs:
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--variant G",
            "--variant must be one of T, S, B, L, XL, H, FlashT, FlashS, FlashB, FlashL",
        ),
        ("--class-weights balanced", "--class-weights is for classification. Received: "),
        ("--sampling balanced", "--sampling is for classification. Received: "),
        ("--recipe finetune", "--recipe must be one of finetune-upernet, scratch-upernet, upernet"),
        (
            "--variant L --recipe upernet-512",
            "of T, S, B, FlashT, FlashS, FlashB for the recipe",
        ),
        ("--weights nowhere", "--weights must be imagenet, imagenet22k, ade20k, cityscapes, the"),
        ("--variant H --weights cityscapes", "`weights` must be published for the variant"),
        ("--variant B --weights upernet_internimage_t_512_160k_ade20k", "ade20k, of T, for B"),
        ("--resolution 16", "Input size must be at least 32x32"),
        ("--decoder-channels 0", "--decoder-channels must be at least 1"),
        ("--task classification --decoder-channels 8", "--decoder-channels is for segmentation"),
        ("--task classification --reduce-zero-label", "--reduce-zero-label is for segmentation"),
        (
            "--task classification --weights upernet_internimage_t_512_160k_ade20k",
            "--weights must be of a classifier, for classification. Received: --weights upernet_",
        ),
        ("--task classification --weights ade20k", "--weights must be imagenet, imagenet22k, the"),
    ],
)
def test_refused_options(data, tmp_path, capsys, monkeypatch, arguments, message):
    """Before any image is read."""
    for module, name in ((mask_folders, "scan_segmentation"), (cli, "_new")):
        monkeypatch.setattr(module, name, pytest.fail)
    assert main(data, *arguments.split(), "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("internimage-train: error: ") and message in errors
    assert "Traceback" not in errors and not (tmp_path / "out").exists()


def test_refused_pairs(tmp_path, capsys):
    """All of them in one message, each by its name."""
    data = shapes.folder(tmp_path / "data", images=6, validation=1, side=32)
    train = data / "masks" / "train"
    (train / "0000.png").unlink()
    Image.new("L", (32, 31)).save(train / "0001.png")
    Image.new("L", (32, 32), 3).save(train / "0002.png")
    Image.new("RGB", (32, 32)).save(train / "0003.png")
    (data / "images" / "train" / "0004.png").write_text("text")
    assert main(data, *NETWORK, "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    for line in (
        "images/train/0000.png: has no mask masks/train/0000.png",
        "masks/train/0001.png: is 32 x 31 pixels, its image 32 x 32",
        "masks/train/0002.png: has the value 3, where classes are 0 to 2, 255 is ignored",
        "masks/train/0003.png: is in colours, which needs a classes.txt with lines",
        "images/train/0004.png: is text, not an image",
        "--skip-bad leaves out these 5",
    ):
        assert line in errors
    assert not (tmp_path / "out").exists()


def test_validation_without_a_pixel_that_counts(tmp_path, capsys):
    """Its mIoU would be undefined in every epoch."""
    data = shapes.folder(tmp_path / "data", images=2, validation=1, side=32)
    Image.new("L", (32, 32), 255).save(data / "masks" / "val" / "1000.png")
    assert main(data, *NETWORK, "--output", tmp_path / "out") == 2
    assert "The masks for validation must have a pixel that counts" in capsys.readouterr().err


def test_folders_that_are_not_for_the_task(tmp_path, capsys):
    by_class = tmp_path / "classes"
    (by_class / "cat").mkdir(parents=True)
    assert main(by_class, "--task", "segmentation", "--output", tmp_path / "out") == 2
    assert "There must be images/ and masks/, or train/ and val/" in capsys.readouterr().err
    (tmp_path / "half" / "images").mkdir(parents=True)
    (tmp_path / "half" / "masks").mkdir()
    assert main(tmp_path / "half", "--output", tmp_path / "out") == 2
    assert "there is no image with a mask" in capsys.readouterr().err
    (tmp_path / "half" / "masks").rename(tmp_path / "half" / "truth")
    assert main(tmp_path / "half", "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "DATA_DIR must have masks/ beside images/" in errors and "images/ and truth/" in errors
    assert main(tmp_path / "no", "--reduce-zero-label", "--output", tmp_path / "out") == 2
    assert "There must be a folder of images. Received: " in capsys.readouterr().err


def test_files_of_other_weights(data, tmp_path, capsys, monkeypatch):
    """Before any image is read."""
    monkeypatch.setattr(cli, "_new", pytest.fail)
    by_class = tmp_path / "classes"
    (by_class / "cat").mkdir(parents=True)
    (tmp_path / "no.keras").write_text("text")
    (tmp_path / "no.pth").write_text("text")
    upernet(channels=16).save(tmp_path / "wide.keras")
    classifier(SMALL).save(tmp_path / "large.keras")
    for folder, name, message in (
        (data, "no.keras", "no.keras: The file must be a complete Keras weights file"),
        (data, "no.pth", "no.pth: The file must be a PyTorch or safetensors checkpoint"),
        (data, "wide.keras", "groups 1 2 4 8, operator DCNv3, decoder channels 16"),
        (
            data,
            "large.keras",
            "of channels 8, depths 1 1 1 1, groups 1 2 4 8, operator DCNv3. Received: --weights ",
        ),
        (by_class, "wide.keras", "must be of a classifier, for classification. Received: "),
    ):
        options = NETWORK if folder == data else NETWORK[:-2]
        path = tmp_path / name
        assert main(folder, *options, "--weights", path, "--output", tmp_path / "out") == 2
        errors = capsys.readouterr().err
        assert message in errors and str(path) in errors


def coloured(root):
    """A folder whose classes have colours, and ignored pixels one, too."""
    shapes.folder(root, images=2, validation=1, side=32)
    lines = [f"{name} {i} 200 0" for i, name in enumerate(shapes.CLASSES)]
    (root / "classes.txt").write_text("\n".join([*lines, "ignore 9 9 9"]))


@pytest.mark.parametrize("layout", ["ade20k", "voc", "cityscapes", "coloured"])
def test_archives_as_downloaded(tmp_path, layout):
    """They are taken for what they are; what a resumed training reads of them is the same."""
    name = {"ade20k": "ADEChallengeData2016", "voc": "VOC2012"}.get(layout, ".")
    make = coloured if layout == "coloured" else getattr(masks, layout)
    make(tmp_path / "archive" / name)
    assert mask_layout.holds_masks(tmp_path / "archive")
    options = cli.parser().parse_args([str(tmp_path / "archive")])
    images = segmentation.scan(options, 0.2, 0)
    assert (
        len(images.class_names)
        == {
            "ade20k": 150,
            "voc": 21,
            "cityscapes": 19,
            "coloured": 3,
        }[layout]
    )
    chosen, why = settings.choose(
        options, "torch", 2, device.Device("cpu", "CPU"), 150, images.reduce_zero_label
    )
    assert chosen.task == "segmentation" and chosen.reduce_zero_label == (layout == "ade20k")
    assert (chosen.recipe, chosen.resolution, chosen.batch_size) == ("finetune-upernet", 512, 2)
    assert why["task"] == "by the folders in it"
    output.write_images(tmp_path, segmentation.rows(images, chosen))
    kept = {"classes": list(images.class_names), **segmentation.record(images)}
    kept = json.loads(json.dumps(kept))
    found = output.read_images(tmp_path, chosen.data, False)
    restored = segmentation.restored(found, chosen, kept, ())
    assert restored == dataclasses.replace(images, notes=())
    # A finished model is loaded with what is written beside it.
    (tmp_path / "out").mkdir()
    segmentation.write_labels(tmp_path / "out", chosen, images)
    known = loading.known_classes(tmp_path / "out" / "model.keras")
    assert known.names == images.class_names
    assert known.palette == (None if layout == "ade20k" else images.palette)


def test_the_official_recipe_is_counted_in_iterations():
    options = cli.parser().parse_args(["x", "--task", "segmentation", "--recipe", "upernet-512"])
    chosen, _ = settings.choose(options, "jax", 1600, device.Device("cpu", "CPU"), 150)
    assert (chosen.batch_size, chosen.epochs) == (2, 200)  # 160,000 / 800
    row = chosen.recipe_row()
    assert (row.epochs, row.iterations, row.warmup_iterations) == (200, None, 1500)
    assert row.learning_rate == 6e-5 and chosen.learning_rate == pytest.approx(6e-5 / 8)
    for average, official in (("all", row), ("valid", dataclasses.replace(row, official=False))):
        assert segmentation.objective(official, 3)["loss"]["logits"].average == average
    assert segmentation.objective(row, 3)["loss_weights"] == {"logits": 1.0, "auxiliary": 0.4}


def test_weights_of_a_file_are_those_of_what_it_holds(tmp_path):
    """A classifier's are the backbone's; of a UperNet all but the last layers are taken."""
    options = cli.parser().parse_args(["x", "--task", "segmentation", *NETWORK])
    chosen, _ = settings.choose(options, "jax", 10, device.Device("cpu", "CPU"), 3)
    found = {
        classifier(TINY): ("stage1_block1",),
        upernet(classes=5): ("stage1_block1", "decoder"),
        upernet(auxiliary=True): ("stage1_block1", "decoder", "auxiliary"),
    }
    for source, layers in found.items():
        source.save(tmp_path / "file.keras")
        made = segmentation.build_model(chosen, 3, str(tmp_path / "file.keras"))
        assert [tuple(x.shape)[-1] for x in made.outputs] == [3, 3]
        for layer in layers:
            expected, received = (m.get_layer(layer).get_weights() for m in (source, made))
            assert len(expected) == len(received) > 0
            for before, after in zip(expected, received, strict=True):
                np.testing.assert_array_equal(after, before)


def test_the_better_epoch_has_the_higher_miou():
    history = {"val_logits_mean_iou": [0.4, 0.6, 0.6, float("nan")], "val_loss": [1, 3, 2, 0.5]}
    assert callbacks.best_epoch(history, "val_logits_mean_iou") == 2
    assert callbacks.stops_early(1, history, metric="val_logits_mean_iou")
    assert not callbacks.stops_early(2, history, metric="val_logits_mean_iou")


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Shapes that were never seen, by the command alone; the set is synthetic and easy."""
    data = shapes.folder(tmp_path / "data", images=40, validation=8)
    options = "--epochs 60 --batch-size 8 --learning-rate 5e-3 --drop-path 0".split()
    assert main(data, *NETWORK, *options, "--output", tmp_path / "out") == 0
    history = rows(tmp_path / "out" / "history.csv")
    assert max(float(row["val_logits_mean_iou"]) for row in history) > 0.8
    images = scan_segmentation(data)
    assert len(images.validation) == 8 and pathlib.Path(tmp_path / "out/report.html").exists()
