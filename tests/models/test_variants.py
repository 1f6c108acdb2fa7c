"""The table of variants, the paper's rules, and every published size built and counted."""

import math

import numpy as np
import pytest
from models import reference

import keras_internimage
from keras_internimage.models import VARIANTS, scale, stack
from keras_internimage.variants import base, function_name, model_name, title

# Parameters of the official classifiers with 1000 classes and of their backbones.
PARAMETERS = {
    "T": (29_918_424, 28_754_672),
    "S": (50_079_880, 48_502_560),
    "B": (97_461_832, 94_909_920),
    "L": (223_334_810, 218_952_370),
    "XL": (334_819_780, 328_971_228),
    "H": (1_089_636_760, 1_073_122_480),
    "G": (3_076_373_352, 3_052_781_184),
    "FlashT": (29_815_528, 28_651_776),
    "FlashS": (50_067_496, 48_490_176),
    "FlashB": (97_448_960, None),
    "FlashL": (223_297_080, None),
}
# The paper's table 1; InternImage-G came later and keeps fewer blocks in stages 1 and 2.
PAPER = {
    "T": (64, 16, (4, 4, 18, 4), (4, 8, 16, 32)),
    "S": (80, 16, (4, 4, 21, 4), (5, 10, 20, 40)),
    "B": (112, 16, (4, 4, 21, 4), (7, 14, 28, 56)),
    "L": (160, 16, (5, 5, 22, 5), (10, 20, 40, 80)),
    "XL": (192, 16, (5, 5, 24, 5), (12, 24, 48, 96)),
    "H": (320, 32, (6, 6, 32, 6), (10, 20, 40, 80)),
    "G": (512, 32, (2, 2, 48, 4), (16, 32, 64, 128)),
    "FlashT": (64, 16, (4, 4, 18, 4), (4, 8, 16, 32)),
    "FlashS": (80, 16, (4, 4, 21, 4), (5, 10, 20, 40)),
    "FlashB": (112, 16, (4, 4, 21, 4), (7, 14, 28, 56)),
    "FlashL": (160, 16, (5, 5, 22, 5), (10, 20, 40, 80)),
}
# Too large to give every variable a value in a test: their shapes are counted instead.
SMALL = ("T", "S", "FlashT", "FlashS")


def function(variant):
    return getattr(keras_internimage, function_name(variant))


def unread(variant):
    """Numbers of the official model that nothing reads: at the end of DCNv4's offsets and masks."""
    shapes = reference.official_shapes(model_name(variant))
    packed = [shape for name, shape in shapes.items() if ".offset_mask." in name]
    return sum(shape[0] % 27 * math.prod(shape[1:]) for shape in packed)


def test_titles():
    assert (title("XL"), model_name("XL"), base("XL")) == ("InternImage-XL", "internimage_xl", "XL")
    flash = (title("FlashT"), model_name("FlashT"), base("FlashT"))
    assert flash == ("FlashInternImage-T", "flash_internimage_t", "T")


@pytest.mark.parametrize("variant", VARIANTS)
def test_stacking_rules_give_the_published_variants(variant):
    row = VARIANTS[variant]
    made = stack(row.c1, row.group_channels, row.depth1, row.depth3, row.depth4)
    channels, group_channels, depths, groups = PAPER[variant]
    assert made["widths"] == tuple(channels * 2**i for i in range(4))
    assert (made["depths"], made["groups"]) == (depths, groups)
    assert row.group_channels == group_channels
    assert (row.depth4 is None) == (variant != "G")


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_the_official_configuration(variant):
    official = reference.config(model_name(variant))
    official.pop("classes")
    config = VARIANTS[variant].config()
    for key, value in official.items():
        ours = config.pop(key)
        assert (list(ours) if isinstance(value, list) else ours) == value, key
    # What the official file leaves out is at its default.
    defaults = {
        "dw_kernel_size": None if variant == "FlashT" else 3,
        "layer_scale": None,
        "level2_post_norm_block_ids": None,
        "core_op": "DCNv3",
        "dcn_output_bias": True,
        "mlp_fc2_bias": True,
    }
    assert all(value == defaults.get(key, False) for key, value in config.items()), config


def test_scaling_rule():
    rows = {name: VARIANTS[name] for name in "TSBL"}
    for phi, (name, row) in enumerate(rows.items()):
        scaled = scale(phi)
        assert scaled["channels"] == row.c1, name
        if name in "TS":
            assert (scaled["depth1"], scaled["depth3"]) == (row.depth1, row.depth3)
    # alpha beta^1.99 = 2: each step about doubles depth times squared width.
    sizes = [s["channels"] ** 2 * (3 * s["depth1"] + s["depth3"]) for s in map(scale, range(6))]
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        assert 1.6 < larger / smaller < 2.5
    model = keras_internimage.InternImage(
        **{k: v for k, v in stack(**scale(0.5)).items() if k != "widths"}, weights=None
    )
    assert PARAMETERS["T"][0] < model.count_params() < PARAMETERS["S"][0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack(64, 48, 4, 18), "group_channels=48, channels=64"),
        (lambda: stack(64, 16, 4, 3), "depth1=4, depth3=3"),
        (lambda: stack(64, 16, 0, 3), "depth1=0"),
        (lambda: stack(64.0, 16, 4, 18), "channels=64.0"),
        (lambda: scale(-1), "phi=-1"),
        (lambda: scale(1, alpha=0.5), "alpha=0.5"),
    ],
)
def test_rules_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("variant", SMALL)
def test_parameters_of_small_variants(variant):
    with reference.without_values():
        model = function(variant)(weights=None)
        backbone = keras_internimage.InternImageBackbone.from_variant(variant, weights=None)
    trainable = sum(np.prod(w.shape) for w in model.trainable_weights)
    assert trainable == PARAMETERS[variant][0] - unread(variant)
    side = VARIANTS[variant].resolution
    assert model.input_shape == (None, side, side, 3)
    assert model.output_shape == (None, 1000)
    assert model.name == model_name(variant)
    assert backbone.count_params() == PARAMETERS[variant][1] - unread(variant)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in SMALL])
def test_shapes_of_large_variants(variant):
    """Built without values: every official tensor has its place, and nothing else."""
    with reference.without_values():
        model = function(variant)(weights=None)
    trainable = sum(np.prod(w.shape) for w in model.trainable_weights)
    assert trainable == PARAMETERS[variant][0] - unread(variant)
    side = VARIANTS[variant].resolution
    assert model.input_shape == (None, side, side, 3)
    shapes = reference.official_shapes(model_name(variant))
    reference.check_places(model, shapes)
