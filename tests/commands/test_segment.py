"""`internimage-segment`: what it writes, what it leaves alone, what it refuses first."""

import json

import keras
import masks
import numpy as np
import photographs
import pytest
from commands.command import refused_before_loading
from PIL import Image

from keras_internimage.commands import segment
from keras_internimage.data.mask_files import read_mask
from keras_internimage.data.masks import scan_segmentation
from keras_internimage.segmenter import SCALES, drawing, load_segmenter, loading

pytestmark = pytest.mark.any_backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of three classes, of which the third is nowhere: bright where the image is."""
    folder = tmp_path_factory.mktemp("trained")
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(3, 1, data_format="channels_last")(image)
    model = keras.Model(image, x)
    kernel = np.zeros((1, 1, 3, 3), "float32")
    kernel[..., 1] = 1
    model.layers[-1].set_weights([kernel, np.array([0, 0, -99], "float32")])
    model.save(folder / "model.keras")
    (folder / "labels.json").write_text('["dark", "bright", "none"]')
    return folder


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    photographs.piece("china", 1, 64).crop((0, 0, 64, 40)).save(root / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photographs.piece("china", 5, 64).crop((0, 0, 64, 40)).save(root / "b.png", exif=exif)
    photographs.piece("china", 3, 64).save(root / "more" / "A.jpg")
    return root


def run(capsys, *arguments):
    code = segment.main([str(argument) for argument in arguments])
    printed, errors = capsys.readouterr()
    return code, printed, errors


def test_what_is_written(folder, images, tmp_path, capsys):
    out = images / "out"  # below the images: no results are segmented
    (images / "bad.jpg").write_text("text")
    arguments = folder, images, tmp_path / "none.png", images / "a.png", "--out", out
    for _ in range(2):  # its own results are replaced
        code, printed, errors = run(capsys, *arguments)
        assert code == 1 and printed == ""
        assert errors == (
            f"internimage-segment: {tmp_path}/none.png: no such file\n"
            f"internimage-segment: {images}/bad.jpg: is text, not an image\n"
        )
    content = json.loads((out / "areas.json").read_text("utf-8"))
    assert content["model"] == str(folder / "model.keras")
    assert [row["file"] for row in content["failed"]] == [
        f"{tmp_path}/none.png",
        f"{images}/bad.jpg",
    ]
    assert [(row["file"], row["mask"]) for row in content["images"]] == [
        (f"{images}/a.png", "masks/a.png"),
        (f"{images}/b.png", "masks/b.png"),
        (f"{images}/more/A.jpg", "masks/A-2.png"),
    ]
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.*")} == {
        *(
            f"{kind}/{name}"
            for name in ("a.png", "b.png", "A-2.png")
            for kind in ("masks", "legends")
        ),
        *(f"overlays/{name}" for name in ("a.jpg", "b.jpg", "A-2.jpg")),
        *("areas.json", "classes.txt", ".keras_internimage.json"),
    }
    segmenter = load_segmenter(folder)
    upright = Image.open(images / "b.png").transpose(Image.Transpose.ROTATE_270)
    labels = segmenter.label_map(upright)
    row = content["images"][1]
    assert (row["width"], row["height"]) == (40, 64)
    mask = Image.open(out / row["mask"])
    assert mask.mode == "P" and mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    np.testing.assert_array_equal(np.asarray(mask), labels)
    np.testing.assert_array_equal(read_mask(out / row["mask"]), labels)
    counts = np.bincount(labels.ravel())
    assert len(counts) == 2 and counts.min() > 100
    best = int(counts.argmax())
    assert len(row["classes"]) == 2 and row["classes"][0] == {
        "class": best,
        "label": ("dark", "bright")[best],
        "color": [[0, 0, 0], [128, 0, 0]][best],
        "pixels": int(counts[best]),
        "share": pytest.approx(counts[best] / labels.size, abs=1e-6),
    }
    overlay = np.asarray(Image.open(out / row["overlay"]), "float32")
    colours = np.array(segmenter.palette)[labels]
    assert abs(overlay - (np.asarray(upright.convert("RGB")) + colours) / 2).mean() < 6  # JPEG
    assert (out / "classes.txt").read_text() == "dark 0 0 0\nbright 128 0 0\nnone 0 128 0\n"


def test_the_results_are_a_folder_to_train_on(folder, tmp_path, capsys):
    """`classes.txt` and masks are read as what they are."""
    data = masks.folder(tmp_path / "data", 3)
    out = tmp_path / "out"
    assert run(capsys, folder, data / "images", "--out", out) == (0, "", "")
    (out / "images").symlink_to(data / "images")
    found = scan_segmentation(out)
    assert found.class_names == ("dark", "bright", "none") and found.palette[1] == (128, 0, 0)
    assert not found.bad and len(found.train) + len(found.validation) == 3


def test_masks_of_other_classes_are_not_mixed(folder, images, tmp_path, capsys):
    """`ignore`, with a colour, would be no class in `classes.txt`."""
    out = tmp_path / "out"
    (tmp_path / "l.txt").write_text("ignore\nz\n")
    arguments = "--labels", tmp_path / "l.txt", "--out", out
    assert run(capsys, folder, images / "a.png", *arguments)[0] == 0
    assert (out / "classes.txt").read_text() == "ignore\nz\n"
    assert run(capsys, folder, images / "b.png", *arguments)[0] == 0
    before = (out / "areas.json").read_bytes()
    code, _, errors = run(capsys, folder, images / "b.png", "--out", out)
    assert code == 2 and "where masks/a.png is of other classes (classes.txt)" in errors
    assert (out / "areas.json").read_bytes() == before
    assert run(capsys, folder, images / "a.png", images / "b.png", "--out", out)[0] == 0


def test_options(folder, images, tmp_path, capsys, monkeypatch):
    made = []
    assemble = loading.assemble

    def spy(*arguments, **options):
        made.append(assemble(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(loading, "assemble", spy)
    options = "--crop 32 --stride 16 --batch-size 2 --shorter-side 48 --flip".split()
    arguments = images / "a.png", "--out", tmp_path / "out"
    assert run(capsys, folder, *arguments, *options) == (0, "", "")
    (segmenter,) = made
    assert (segmenter.crop, segmenter.stride, segmenter.batch_size) == ((32, 32), (16, 16), 2)
    assert segmenter.flip and segmenter.scales == (1.0,)
    assert segmenter.resizing.sizes(40, 64) == [(48, 77), (64, 96)]
    code, _, errors = run(
        capsys, folder, *arguments, "--multi-scale", "--labels", tmp_path / "l.txt"
    )
    assert code == 2 and "l.txt, no such file" in errors
    (tmp_path / "l.txt").write_text("x y 9 9 9\nz 8 8 8\n")
    code, _, errors = run(
        capsys, folder, *arguments, "--multi-scale", "--labels", tmp_path / "l.txt"
    )
    assert code == 0 and "of the model's 3 outputs the first 2 count" in errors
    assert made[1].flip and made[1].scales == SCALES
    content = json.loads((tmp_path / "out" / "areas.json").read_text("utf-8"))
    assert content["images"][0]["classes"][0]["label"] in ("x y", "z")


def test_an_interrupted_run(folder, images, tmp_path, capsys, monkeypatch):
    """Its results can be replaced; what a user puts beside them is refused."""
    out = tmp_path / "out"

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "legend", stop)
        assert run(capsys, folder, images, "--out", out)[0] == 130
    assert not list(out.rglob(".unfinished*"))
    assert run(capsys, folder, images, "--out", out) == (0, "", "")
    (out / "notes.txt").write_text("mine")
    code, _, errors = run(capsys, folder, images, "--out", out)
    assert code == 2 and "which holds notes.txt" in errors
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/none", "{image}"], "none, no such file"),
        (["internimage_t_1k_224", "{image}"], "must be one for segmentation"),
        (["T", "{image}"], "A variant needs weights (--weights): "),
        (["T", "{image}"], "upernet_internimage_t_512_160k_ade20k"),
        (["{model}", "{root}/x.png", "{root}/y.png"], "{root}/x.png: no such file; {root}/y."),
        (["{model}", "{root}/empty"], "There must be images. Received: {root}/empty with none"),
        (["{model}", "{image}", "--crop", "0"], "--crop must be at least 1"),
        (["{model}", "{image}", "--stride", "3"], "--stride needs --crop"),
        (["{model}", "{image}", "--stride", "9", "--crop", "8"], "Received: --stride 9 --crop 8"),
        (["{model}", "{image}", "--out", "{root}"], "nothing else is replaced. Received: "),
        (["{model}", "{image}", "--out", "{root}/x/y"], "The folder of --out must exist"),
        (["{model}", "{image}", "--weights", "ade20k"], "With weights, model must be one of T, S"),
    ],
)
def test_refuses_before_a_model_is_loaded(folder, images, tmp_path, capsys, arguments, message):
    given = arguments, folder, images / "a.png", tmp_path, capsys
    errors = refused_before_loading(segment, loading, *given)
    assert message.format(root=tmp_path) in errors


def test_too_many_classes_for_a_palette():
    with pytest.raises(ValueError, match="at most 255 colours. Received: 256"):
        drawing.with_palette(np.zeros((2, 2)), [(0, 0, 0)] * 256)


def test_legend():
    """A row for each class, with its colour; a picture also where there is none."""
    picture = drawing.legend([("sky", (6, 230, 230), 0.25), ("a longer name", (9, 9, 9), 0.75)])
    assert picture.getpixel((10, 14)) == (6, 230, 230)
    assert picture.getpixel((10, 42)) == (9, 9, 9) and picture.height == 56
    text = np.asarray(picture)[28:, 40:]
    assert (text < 128).any()
    assert drawing.legend([]).height == 28
