"""`benchmarks/scoreboard.py`: real runs of what is at hand, reasons for the rest, the page."""

import csv
import importlib.util
import json
import pathlib

import keras
import pytest
from commands.test_evaluate import flat

import keras_internimage
from keras_internimage.checkpoints import download, published
from keras_internimage.weights_convert.export import export

pytestmark = pytest.mark.any_backend

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAME, OTHER = "flash_intern_image_t_1k_224", "flash_intern_image_s_1k_224"  # of unknown hashes


@pytest.fixture(scope="module")
def scoreboard():
    path = ROOT / "benchmarks" / "scoreboard.py"
    spec = importlib.util.spec_from_file_location("scoreboard", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_published_figures(scoreboard, capsys):
    scoreboard.print_published()
    printed = capsys.readouterr().out.strip()
    assert printed in (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    for row in published.PUBLISHED:
        numbers = (row.top1, row.miou, row.box_ap)
        assert (f"| {row.name} |" in printed) == any(n is not None for n in numbers)


def test_measures_what_is_at_hand(scoreboard, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    keras.utils.set_random_seed(0)
    weights = tmp_path / "x.weights.h5"
    keras_internimage.FlashInternImageT(weights=None).save_weights(weights)
    path = download.cached_path(published.find(NAME))
    export(weights, path)
    weights.unlink()
    data = flat(tmp_path / "val", [0, 969, 3])
    (data / "val.txt").write_text("\n".join(f"{f.name} 3" for f in sorted(data.glob("*.JPEG"))))
    (data / "ILSVRC2012_val_00000002.JPEG").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = ["--imagenet", str(data), "--out", str(out), "--only", NAME, OTHER]
    assert scoreboard.main(arguments) == 0
    shown = capfd.readouterr()
    found = json.loads((out / f"{NAME}.json").read_text("utf-8"))
    assert found["images"] == 2 and len(found["failed"]) == 1
    with open(out / f"{NAME}-predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["rank"] == "1" for row in rows)
    assert len(rows) == 3 and found["top1"] == right / 2
    difference = f"{50 * right - 83.6:+.2f}"
    line = f"| {NAME} | top-1 | 83.6 | {50 * right:.2f} | {difference} | 2 | 1 files could not be"
    assert line in shown.out
    assert f"| {OTHER} |  |  | not measured |  |  | no file: internimage-convert down" in shown.out
    assert (out / "scoreboard.md").read_text("utf-8") == shown.out
    # Kept: the file of the model is not needed any more; with other data, or anew, it is.
    pathlib.Path(path).write_bytes(b"no checkpoint")
    assert scoreboard.main(arguments) == 0
    again = capfd.readouterr()
    assert again.out == shown.out and "kept from an earlier run" in again.err
    assert scoreboard.main([*arguments, "--again"]) == 1
    assert f"{NAME} must be measurable" in capfd.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [(["--coco", "no"], "--coco must be a folder")])
def test_refusals(scoreboard, arguments, message, capsys):
    with pytest.raises(SystemExit):
        scoreboard.main(arguments)
    assert message in capsys.readouterr().err
