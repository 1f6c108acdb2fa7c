import pytest
from checkpoints.conftest import TINY
from deterministic import model_config, model_shapes

from keras_internimage.checkpoints import CheckpointError, infer, infer_config
from keras_internimage.checkpoints.names import BATCH_COUNTER
from keras_internimage.checkpoints.names.classifier import TABLE
from keras_internimage.checkpoints.read import official_name
from keras_internimage.models import VARIANTS
from keras_internimage.variants import model_name

pytestmark = pytest.mark.any_backend

SIZES = {key: model_name(key) for key in VARIANTS}


def shapes_of(name):
    return {k: s for k, s in model_shapes(name).items() if not k.endswith(BATCH_COUNTER)}


@pytest.mark.parametrize("name", [*TINY, *SIZES.values()])
def test_the_official_arguments_are_found(name):
    guess = infer_config(shapes_of(name), offset_scale=model_config(name).get("offset_scale"))
    expected = model_config(name)
    assert guess.classes == expected.pop("num_classes")
    assert guess.unseen == ()
    # The value a trained layer scale once started from is not in the file.
    assert bool(guess.config["layer_scale"]) == bool(expected.pop("layer_scale", None))
    for key, value in expected.items():
        found = guess.config[key]
        assert (list(found) if isinstance(found, tuple) else found) == value, key
    for key in set(guess.config) - set(expected) - {"layer_scale"}:
        defaults = {
            "mlp_ratio": 4.0,
            "dw_kernel_size": 3,
            "offset_scale": 1.0,
            "core_op": "DCNv3",
            "dcn_output_bias": True,
            "mlp_fc2_bias": True,
        }
        assert guess.config[key] == defaults.get(key, False) or guess.config[key] is None, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes_are_recognised(variant):
    guess = infer_config(shapes_of(SIZES[variant]))
    assert guess.variant == variant
    assert guess.config["offset_scale"] == VARIANTS[variant].offset_scale
    assert guess.unseen == ()


# Parameters of the ImageNet-1k classifiers, from the official model zoo's files.
PARAMETERS = {
    "T": 29_918_424,
    "S": 50_079_880,
    "B": 97_461_832,
    "L": 223_334_810,
    "XL": 334_819_780,
    "H": 1_089_636_760,
    "G": 3_076_373_352,
    # With rows of offsets and masks that nothing reads.
    "FlashT": 29_815_528,
    "FlashS": 50_067_496,
    "FlashB": 97_448_960,
    "FlashL": 223_297_080,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted(variant):
    assert infer.parameters(shapes_of(SIZES[variant]), TABLE) == PARAMETERS[variant]


@pytest.mark.parametrize("name", [*TINY, *SIZES.values()])
def test_expected_names_are_all_names(name):
    expected = infer.expected_names(infer_config(shapes_of(name)))
    assert sorted(expected) == sorted(shapes_of(name))


def test_upernet():
    shapes = {official_name(k): s for k, s in shapes_of("upernet_internimage_t").items()}
    guess = infer_config(shapes)
    assert (guess.variant, guess.classes, guess.family) == ("T", 150, "upernet")
    assert guess.head == {"auxiliary": True, "channels": 512}
    assert infer.describe(guess).startswith("UperNet on InternImage-T (channels=64, ")
    assert sorted(infer.expected_names(guess)) == sorted(shapes)
    assert infer.parameters(shapes, guess.table) == 59_077_148
    decoder = {k: s for k, s in shapes.items() if not k.startswith("auxiliary_head.")}
    guess = infer_config(decoder)
    assert guess.head == {"auxiliary": False, "channels": 512}
    assert sorted(infer.expected_names(guess)) == sorted(decoder)


def test_a_backbone_of_a_dense_task():
    """T has layer scales there, and there is no classifier."""
    shapes = {k: s for k, s in shapes_of(SIZES["T"]).items() if not TABLE.is_head(k)}
    for key in [k for k in shapes if k.endswith("norm1.0.weight") and "blocks" in k]:
        for scale in ("gamma1", "gamma2"):
            shapes[key.replace("norm1.0.weight", scale)] = shapes[key]
    guess = infer_config(shapes)
    assert guess.variant == "T"
    assert guess.config["layer_scale"] == 1.0
    assert guess.classes is None
    assert sorted(infer.expected_names(guess)) == sorted(shapes)
    # 28,769,520 parameters: 28,754,672 and two scales per block.
    assert infer.parameters(shapes, TABLE) == 28_769_520


def test_what_shapes_do_not_tell_is_named():
    assert infer_config(shapes_of("tiny_prenorm")).unseen == ("offset_scale",)


@pytest.mark.parametrize("shapes", [{}, {"conv1.weight": (64, 3, 7, 7)}])
def test_another_model(shapes):
    with pytest.raises(CheckpointError, match="must hold the tensors of an InternImage"):
        infer_config(shapes)


def test_offsets_of_no_number_of_groups():
    shapes = shapes_of("tiny_flash_prenorm")
    shapes["levels.1.blocks.0.dcn.offset_mask.weight"] = (64, 32)
    with pytest.raises(CheckpointError, match="a number of groups for offsets and masks of"):
        infer_config(shapes)


def test_masks_of_no_group_size():
    shapes = shapes_of("tiny_prenorm")
    shapes["levels.1.blocks.0.dcn.mask.weight"] = (19, 32)
    with pytest.raises(CheckpointError, match="a number of groups for masks of"):
        infer_config(shapes)


def test_nine_points_are_preferred():
    """72 mask channels on 144 are 8 groups of 9 points or 9 groups of 8."""
    masks, widths = [72, 144, 288, 576], [144, 288, 576, 1152]
    assert infer._points(masks, widths) == 9
    assert infer._points([8, 16, 32, 64], [16, 32, 64, 128]) == 8
