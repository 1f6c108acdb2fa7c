"""FlashInternImage's files for dense tasks: both heads, both ways, and which container counts."""

import numpy as np
import pytest
import small_models
from checkpoints.conftest import check_round_trip, fields, run, save_pth, to_torch
from checkpoints.test_upernet import holds, official, values
from deterministic import model_weights
from models.reference import without_values

from keras_internimage import UperNetFlashT, UperNetT
from keras_internimage.checkpoints import MismatchError, infer_config
from keras_internimage.checkpoints.names import cascade_mask_rcnn, classifier, mask_rcnn, upernet
from keras_internimage.models import VARIANTS
from keras_internimage.models.dense import build_backbone
from keras_internimage.variants import Variant

pytestmark = pytest.mark.any_backend

FLASH = {"core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}
SIZES = {**small_models.TINY, "layer_scale": 1.0, **FLASH}


def upernet_model(**arguments):
    return small_models.upernet(SIZES, auxiliary=True, **arguments)


def mask_rcnn_model(**arguments):
    return small_models.mask_rcnn(SIZES, pyramid_norm=True, **arguments)


def cascade_model(**arguments):
    return small_models.cascade_mask_rcnn(
        {**SIZES, "dcn_output_bias": True, "mlp_fc2_bias": True}, pyramid_norm=True, **arguments
    )


def stored(model, table):
    """As the official code stores it: what nothing reads keeps its initial zeros."""
    state = official(model, table)
    for name, value in state.items():
        if ".offset_mask." in name:
            value[len(value) // 27 * 27 :] = 0
    return state


@pytest.mark.parametrize(
    ("make", "table", "words"),
    [
        (upernet_model, upernet.TABLE, "UperNet on no published size (auxiliary=True, channels=8)"),
        (
            mask_rcnn_model,
            mask_rcnn.TABLE,
            "Mask R-CNN on no published size (channels=8, units=16, pyramid_norm=True)",
        ),
        (
            cascade_model,
            cascade_mask_rcnn.TABLE,
            "Cascade Mask R-CNN on no published size (channels=8, units=16, pyramid_norm=True)",
        ),
    ],
    ids=["upernet", "mask_rcnn", "cascade_mask_rcnn"],
)
def test_there_and_back(make, table, words, tmp_path, capsys):
    state = stored(make(), table)
    file = str(save_pth(tmp_path / "x.pth", state, "state_dict", "float16"))
    assert holds(make(weights=file), state, table=table)
    assert any(name.endswith(".offset_mask.weight") for name in state)
    _, out, _ = run(capsys, "inspect", file)
    found = fields(out)
    assert found["model"] == words and found["missing"] == found["others"] == "none"
    made, back = tmp_path / "x.keras", tmp_path / "back.pth"
    assert run(capsys, "convert", file, made)[0] == 0
    check_round_trip(capsys, file, made, back, len(make().weights), state)


def test_pyramids_of_the_two_families_do_not_fit_each_other(tmp_path):
    state = stored(mask_rcnn_model(), mask_rcnn.TABLE)
    assert state["neck.fpn_convs.3.ln.weight"].shape == (8,)
    assert "neck.fpn_convs.3.conv.bias" not in state
    file = save_pth(tmp_path / "x.pth", state, "state_dict")
    with pytest.raises(MismatchError, match=r"neck.lateral_convs.0.conv.bias.*\n.*neck.*ln"):
        small_models.mask_rcnn(SIZES, weights=file)


def test_detectors_of_a_variant_have_its_pyramid():
    from keras_internimage import MaskRCNN

    with without_values():
        assert MaskRCNN("FlashT").pyramid_norm and not MaskRCNN("T").pyramid_norm
        assert not MaskRCNN("FlashT", pyramid_norm=False).pyramid_norm


@pytest.mark.parametrize(
    ("variant", "name", "added"), [("FlashT", "tiny_flash_prenorm", 1), ("T", "tiny_prenorm", 0)]
)
def test_dense_models_start_from_the_average(variant, name, added, tmp_path, monkeypatch, capsys):
    """Those of FlashInternImage alone: as the official code of each family has it."""
    guess = infer_config({key: value.shape for key, value in model_weights(name).items()})
    flash = FLASH if variant == "FlashT" else {}
    row = Variant(16, 16, 1, 2, 64, dw_kernel_size=guess.config["dw_kernel_size"], **flash)
    monkeypatch.setitem(VARIANTS, variant, row)
    weights = model_weights(name)
    sizes = {key: guess.config[key] for key in ("depths", "groups", "dw_kernel_size")}
    average = {key: to_torch(value + 1) for key, value in weights.items()}
    path = str(save_pth(tmp_path / "x.pth", weights, model_ema=average))
    backbone = build_backbone(variant, None, path, **sizes)
    assert "layer scales keep their initial value" in capsys.readouterr().out
    for key, value in values(backbone, classifier.TABLE).items():
        if not key.endswith(("gamma1", "gamma2")):
            rows = len(value) // 27 * 27 if ".offset_mask." in key else len(value)
            np.testing.assert_array_equal(value[:rows], (weights[key] + added)[:rows])


def test_weights_of_another_family(tmp_path):
    """A file of InternImage for FlashInternImage, and the other way round."""
    sizes = {"depths": (1, 2, 2, 1), "groups": (1, 2, 4, 8)}
    for function, name in ((UperNetFlashT, "tiny_prenorm"), (UperNetT, "tiny_flash_prenorm")):
        path = save_pth(tmp_path / f"{name}.pth", model_weights(name))
        with without_values():
            with pytest.raises(MismatchError, match="By its shapes the file holds an? "):
                function(backbone_weights=path, **sizes)
