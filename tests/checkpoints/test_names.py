import numpy as np
import pytest
from checkpoints.conftest import TINY, build
from deterministic import MODELS, model_shapes

from keras_internimage.checkpoints import infer_config
from keras_internimage.checkpoints.names import (
    BATCH_COUNTER,
    RenameTable,
    Row,
    backbone,
    families,
)
from keras_internimage.checkpoints.names.classifier import HEAD, TABLE
from keras_internimage.checkpoints.names.layouts import CONV
from keras_internimage.checkpoints.names.table import once, twice
from keras_internimage.checkpoints.read import official_name

pytestmark = pytest.mark.any_backend

HEAD_LAYERS = {row.layer.split("/")[0] for row in HEAD}
REFERENCE = sorted(
    path.name.removesuffix(".params.tsv.gz") for path in MODELS.glob("*.params.tsv.gz")
)


@pytest.mark.parametrize("name", TINY)
def test_variables_and_official_tensors_match_one_to_one(name):
    """Every official tensor has a place in the model, and its shape follows."""
    made = {}
    for variable in build(name).weights:
        entry = TABLE.entry(variable.path)
        shapes = entry.layout.official_shapes(tuple(variable.shape))
        for official, shape in zip(entry.official, shapes, strict=True):
            assert official not in made
            made[official] = shape
    expected = {k: s for k, s in model_shapes(name).items() if not k.endswith(BATCH_COUNTER)}
    assert made == expected


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("head", [True, False])
def test_the_table_expands_to_the_models_variables(name, head):
    guess = infer_config(model_shapes(name))
    entries = list(TABLE.expand(guess.config, head=head))
    model = build(name) if head else build(name, include_top=False, use_clip_projector=False)
    assert sorted(entry.path for entry in entries) == sorted(v.path for v in model.weights)
    assert all(TABLE.entry(entry.path) == entry for entry in entries)
    for entry in entries:
        assert all(TABLE.is_official(official) for official in entry.official)
        assert TABLE.is_head(entry.official[0]) == (entry.path.split("/")[0] in HEAD_LAYERS)


def test_another_family_is_another_list_of_rows():
    rows = (
        Row("lateral_conv{k}", "neck.lateral_convs.{k-1}.conv", CONV, twice(once)),
        Row("classes", "decode_head.conv_seg", CONV),
    )
    table = RenameTable(backbone.ROWS, rows, classifiers=("classes",), without_classifier="")
    assert table.entry("x/lateral_conv2/kernel").official == ("neck.lateral_convs.1.conv.weight",)
    assert table.entry("predictions/kernel") is None
    assert table.entry("stem/conv1/kernel") == TABLE.entry("stem/conv1/kernel")
    assert table.is_head("neck.lateral_convs.0.conv.bias") and not table.is_head("head.weight")
    assert table.classifier_names == ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
    config = infer_config(model_shapes("tiny_h")).config
    added = [entry.path for entry in table.expand(config)][-6:]
    assert added[:2] == ["lateral_conv1/kernel", "lateral_conv1/bias"]


@pytest.mark.parametrize("name", REFERENCE)
def test_every_name_of_the_official_models_is_known(name):
    start = name.partition("_internimage")[0]
    family = next((key for key in families.TABLES if key.startswith(start)), "classifier")
    table = families.TABLES[family]
    unknown = [key for key in map(official_name, model_shapes(name)) if not table.is_official(key)]
    assert all(key.endswith(BATCH_COUNTER) for key in unknown)


@pytest.mark.parametrize(
    "name",
    ["decode_head.conv_seg.weight", "levels.0.blocks.0.gamma3", "head2.weight", "x.head.weight"],
)
def test_other_names_are_not(name):
    assert not TABLE.is_official(name)


def test_a_path_may_begin_with_the_models_name():
    plain = TABLE.entry("stage3_block12/dcn/offset_mask/bias")
    assert TABLE.entry("a/b/stage3_block12/dcn/offset_mask/bias") == plain
    assert plain.official == (
        "levels.2.blocks.11.dcn.offset.bias",
        "levels.2.blocks.11.dcn.mask.bias",
    )
    assert TABLE.entry("stage3_block12/dcn/offset_mask/gamma") is None
    assert TABLE.entry("seed_generator/seed_generator_state") is None


LAYOUTS = {
    "stem/conv1/kernel": (3, 3, 3, 8),
    "stage1_block1/dcn/dw_conv/kernel": (5, 5, 16, 1),
    "stage1_block1/dcn/offset_mask/kernel": (16, 54),
    "stage1_block1/dcn/offset_mask/bias": (54,),
    "stage1_block1/dcn/center_feature_scale/kernel": (16, 2),
    "stage1_block1/mlp_fc1/kernel": (16, 64),
    "stage1_block1/gamma1": (16,),
    "head_x4/kernel": (1, 1, 8, 16),
    "head_x4/bias": (16,),
    "attention_pool/query/bias": (16,),
    "head_norm/moving_variance": (24,),
}


def test_pooled_features_become_channels_last():
    """Official input c 49 + 7 y + x of the first matrix must be ours (7 y + x) C + c."""
    table, path = families.TABLES["mask_rcnn"], "box_head/fc1/kernel"
    official = np.arange(2 * 3 * 49, dtype=np.float32).reshape(2, 3 * 49)
    (name,) = table.entry(path).official
    kernel = table.to_keras(path, {name: official})
    assert kernel.shape == (147, 2)
    for c, y, x in np.ndindex(3, 7, 7):
        np.testing.assert_array_equal(kernel[(7 * y + x) * 3 + c], official[:, c * 49 + 7 * y + x])
    np.testing.assert_array_equal(table.to_official(path, kernel)[name], official)


@pytest.mark.parametrize("path", LAYOUTS)
def test_layouts_are_undone_exactly(path):
    value = np.random.default_rng(1).standard_normal(LAYOUTS[path], dtype=np.float32)
    official = TABLE.to_official(path, value)
    assert tuple(official) == TABLE.entry(path).official
    shapes = tuple(part.shape for part in official.values())
    assert TABLE.entry(path).layout.official_shapes(value.shape) == shapes
    assert all(part.flags.c_contiguous for part in official.values())
    np.testing.assert_array_equal(TABLE.to_keras(path, official), value)


def test_offsets_come_before_masks():
    """16 channels, 2 groups of 9 points: 36 offset rows and 18 mask rows."""
    offset, mask = np.ones((36, 16), np.float32), np.zeros((18, 16), np.float32)
    path = "stage1_block1/dcn/offset_mask/kernel"
    both = dict(zip(TABLE.entry(path).official, (offset, mask), strict=True))
    np.testing.assert_array_equal(TABLE.to_keras(path, both)[:, :36], offset.T)
    np.testing.assert_array_equal(TABLE.to_keras(path, both)[:, 36:], mask.T)


def test_pixel_shuffle_becomes_depth_to_space():
    """Official channel 4c + 2dy + dx must reach channel c of pixel (dy, dx)."""
    channels = 3
    official = np.arange(4 * channels, dtype=np.float32)
    (name,) = TABLE.entry("head_x4/bias").official
    permuted = TABLE.to_keras("head_x4/bias", {name: official})
    shuffled = permuted.reshape(2, 2, channels)
    for c in range(channels):
        for dy in range(2):
            for dx in range(2):
                assert shuffled[dy, dx, c] == 4 * c + 2 * dy + dx


def test_an_unknown_path_raises():
    with pytest.raises(ValueError, match="Received: path='dense/kernel'"):
        TABLE.to_official("dense/kernel", np.zeros((1, 1)))


@pytest.mark.parametrize("name", ["tiny_h", "tiny_prenorm"])
def test_stored_order_gives_the_variables_names(name):
    """`weight_path` relies on the order in which Keras stores a layer's weights."""
    seen = {}
    for variable in build(name, layer_scale=0.1 if name == "tiny_prenorm" else None).weights:
        layer, _, _ = variable.path.rpartition("/")
        index = seen.get(layer, 0)
        seen[layer] = index + 1
        assert TABLE.weight_path(layer, index) == variable.path
    assert TABLE.weight_path("stem/conv1", 2) is None
