"""The Python of the README and its pages runs as it stands; only downloads have a stand-in."""

import math
import pathlib
import re

import keras
import masks
import numpy as np
import pytest
import small_models
from models.reference import without_values
from PIL import Image
from small_models import SMALL

import keras_internimage
from keras_internimage.checkpoints import published
from keras_internimage.models import VARIANTS
from keras_internimage.variants import function_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# Pages whose Python blocks run here, each block alone. Other pages have tests of their own.
PAGES = ("README.md", "docs/classify.md", "docs/training.md", "docs/kernels.md")
BLOCKS = [
    pytest.param(block, f"{page}, Python block {number}", id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL), 1
    )
]
# What marks the blocks whose results are looked at below.
CHECKED = ("decode_predictions", "flowers-internimage", "model.save", "streets", "segmenter =")
CHECKED += ("output =",)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Small models without weights for InternImageT and UperNetT, a class index, files."""

    def small(weights, **options):
        assert weights == "imagenet"
        return keras_internimage.InternImage(**SMALL, input_shape=(None, None, 3), **options)

    def small_upernet(weights=None, backbone_weights=None, **options):
        if backbone_weights is None:
            assert weights == "ade20k" or weights in published.names("segmentation")
            options["classes"] = 150
        else:
            assert (weights, backbone_weights) == (None, "imagenet")
        return small_models.upernet(image_shape=(None, None, 3), **options)

    monkeypatch.setattr(keras_internimage, "InternImageT", small)
    for place in (keras_internimage, keras_internimage.models):
        monkeypatch.setattr(place, "UperNetT", small_upernet)
    decode = keras.applications.imagenet_utils.decode_predictions
    index = {str(i): [f"n{i:08d}", f"class_{i}"] for i in range(1000)}
    monkeypatch.setitem(decode.__globals__, "CLASS_INDEX", index)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype("uint8")
    Image.fromarray(pixels).save("photo.jpg")
    for name in ("daisy", "tulip"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(pixels).save(f"flowers/{name}/{number}.jpg")
    return tmp_path


def trained(folder):
    """What a training leaves for a prediction."""
    folder.mkdir()
    keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    ).save(folder / "model.keras")
    (folder / "labels.json").write_text('["daisy", "tulip"]')


@pytest.mark.any_backend
def test_first_block_is_short():
    first, _ = BLOCKS[0].values
    assert len([line for line in first.splitlines() if line]) <= 10


@pytest.mark.any_backend
def test_blocks_are_found_on_every_page():
    places = [place for _, place in (block.values for block in BLOCKS)]
    assert {place.partition(",")[0] for place in places} == set(PAGES)
    for mark in CHECKED:
        assert any(mark in block.values[0] for block in BLOCKS), mark


@pytest.mark.any_backend
@pytest.mark.parametrize("block, place", BLOCKS)
def test_block_runs(block, place, offline, capsys):
    names = {}
    if "flowers-internimage" in block:
        trained(offline / "flowers-internimage")
    if "streets" in block:
        masks.folder(offline / "streets", 2)
        layer = keras.layers.Conv2D(2, 1, data_format="channels_last")
        names["model"] = keras.Sequential([keras.Input((None, None, 3)), layer])
    exec(compile(block, place, "exec"), names)
    if "decode_predictions" in block:
        printed = capsys.readouterr().out
        assert len(re.findall(r"^ *\d+\.\d%  class_\d+$", printed, flags=re.MULTILINE)) == 3
    if "flowers-internimage" in block:
        assert sorted(label for label, _ in names["prediction"]) == ["daisy", "tulip"]
    if "model.save" in block:
        assert keras.saving.load_model("fine_tuned.keras").output_shape == (None, 2)
    if "streets" in block:
        assert 0 <= names["model"].get_metrics_result()["mean_iou"] <= 1
    if "segmenter" in names:
        assert names["labels"].shape == (300, 400) and names["segmenter"].classes == 150
    if "output" in names:
        assert tuple(names["output"].shape) == (1, 16, 16, 32)


@pytest.mark.any_backend
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_table_of_models(variant):
    line = re.search(rf"^\| {variant} \|(.*)\|$", README, flags=re.MULTILINE)[1]
    function, parameters, pixels, top1, weights = (cell.strip(" `") for cell in line.split("|"))
    (row,) = [r for r in published.PUBLISHED if (r.variant, r.classes) == (variant, 1000)]
    assert function == function_name(variant) and function in keras_internimage.__all__
    assert (float(top1), int(pixels), weights) == (row.top1, row.resolution, row.name)
    assert int(pixels) == VARIANTS[variant].resolution
    if row.bytes is None:
        with without_values():
            count = getattr(keras_internimage, function)(weights=None).trainable_weights
        assert float(parameters.removesuffix(" M")) == pytest.approx(
            sum(math.prod(w.shape) for w in count) / 1e6, abs=0.05001
        )
        return
    # float32 takes four bytes, float16 two; a file is a little larger than its weights.
    size = row.bytes / (2 if row.stored_dtype == "float16" else 4) / 1e6
    assert 0.98 * size < float(parameters.removesuffix(" M")) < size


@pytest.mark.any_backend
def test_tables_of_segmentation_and_detection():
    """The longer schedule of detectors, ADE20K of segmentation: what the keywords stand for."""
    rows = re.findall(
        r"^\| (\w+) \| `((?:UperNet|\w*MaskRCNN)\w+)` \|(.*)\|$", README, re.MULTILINE
    )
    functions = {function for _, function, _ in rows}
    assert functions == {
        name
        for name in keras_internimage.__all__
        if re.fullmatch(r"(UperNet|(Cascade)?MaskRCNN)(Flash)?(T|S|B|L|XL|H)", name)
    }
    for variant, function, cells in rows:
        millions, *found = (cell.strip() for cell in cells.split("|"))
        assert re.fullmatch(rf"(UperNet|\w*MaskRCNN){variant}", function)
        if function.startswith("UperNet"):
            row = published.for_variant(variant, "ade20k")
            assert [float(cell) for cell in found[:2]] == [row.miou, row.miou_multiscale]
        else:
            row = published.for_variant(variant, "coco")
            assert [float(cell) for cell in found] == [row.box_ap, row.mask_ap]
        if variant.startswith("Flash"):
            auxiliary = {"auxiliary": True} if function.startswith("UperNet") else {}
            with without_values():
                weights = getattr(keras_internimage, function)(**auxiliary).trainable_weights
            count = sum(math.prod(w.shape) for w in weights) / 1e6
            assert float(millions.removesuffix(" M")) == pytest.approx(count, abs=0.05001)
