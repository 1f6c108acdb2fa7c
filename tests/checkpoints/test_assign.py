"""Loading into models; the numbers they then produce are compared in tests/models."""

import keras
import numpy as np
import pytest
import small_models
from checkpoints.conftest import (
    NAME,
    ON_EVERY_BACKEND,
    build,
    hub_names,
    official_values,
    same,
    save_pth,
    save_safetensors,
    save_sharded,
    to_torch,
)

from keras_internimage.checkpoints import CheckpointError, MismatchError, load_weights
from keras_internimage.checkpoints.names.classifier import TABLE


def before(model):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.weights]


def unchanged(model, values):
    now = before(model)
    return all(np.array_equal(a, b) for a, b in zip(now, values, strict=True))


@pytest.mark.parametrize("name", ON_EVERY_BACKEND)
def test_every_tensor_arrives(tmp_path, weights, name):
    path = save_safetensors(tmp_path / "x.safetensors", weights(name))
    loaded = build(name)
    report = load_weights(loaded, path)
    assert same(loaded, weights(name))
    assert report.assigned == len(loaded.weights)
    assert report.newly_initialized == () and report.allowed_unexpected == {}


def test_models_take_paths(tmp_path, weights):
    path = save_pth(tmp_path / "x.pth", weights(NAME))
    assert same(build(NAME, weights=path), weights(NAME))
    assert same(build(NAME, weights=str(path)), weights(NAME))


@pytest.mark.any_backend
def test_half_precision_files(tmp_path, weights, model):
    load_weights(model, save_pth(tmp_path / "x.pth", weights(NAME), dtype="float16"))
    halves = {name: np.float32(np.float16(value)) for name, value in weights(NAME).items()}
    assert same(model, halves)


@pytest.mark.any_backend
def test_shards_with_the_hubs_names(tmp_path, weights):
    loaded = build("tiny_postnorm")
    index = save_sharded(tmp_path / "hub", hub_names(weights("tiny_postnorm")))
    load_weights(loaded, tmp_path / "hub")
    assert same(loaded, weights("tiny_postnorm"))
    assert load_weights(loaded, index).assigned == len(loaded.weights)


@pytest.mark.any_backend
def test_the_average_can_be_loaded(tmp_path, weights, model):
    average = {k: to_torch(v + 1) for k, v in weights(NAME).items()}
    path = save_pth(tmp_path / "x.pth", weights(NAME), model_ema=average)
    load_weights(model, path, container="model_ema")
    assert same(model, {k: v + 1 for k, v in weights(NAME).items()})


# Another number of classes


@pytest.mark.parametrize("name", [NAME, "tiny_h"])
def test_another_number_of_classes(tmp_path, weights, name, capsys):
    loaded = build(name, classes=7)
    initial = {n: v for n, v in official_values(loaded).items() if n.startswith("head.")}
    report = load_weights(loaded, save_safetensors(tmp_path / "x.safetensors", weights(name)))
    assert same(loaded, {**weights(name), **initial})
    assert set(report.newly_initialized) == {"predictions/kernel", "predictions/bias"}
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "internimage: the classifier is newly initialised with 7 classes; x.safetensors has 10 "
        "(classes=10 keeps them)."
    ]


@pytest.mark.any_backend
def test_a_backbone_within_another_model(tmp_path, weights):
    path = str(tmp_path / "x.weights.h5")
    source = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    backbone = build(NAME, weights=source, include_top=False, pooling="avg")
    inputs = keras.Input((64, 64, 3))
    keras.Model(inputs, keras.layers.Dense(2)(backbone(inputs))).save_weights(path)
    loaded = build(NAME, include_top=False)
    report = load_weights(loaded, path)
    assert same(loaded, {n: v for n, v in weights(NAME).items() if not TABLE.is_head(n)})
    assert list(report.allowed_unexpected) == ["other layers around the backbone in a Keras file"]
    with pytest.raises(MismatchError, match="build the model with include_top=False"):
        load_weights(build(NAME), path)


# Allowed unexpected tensors


def test_a_model_without_head(tmp_path, weights):
    loaded = build(NAME, include_top=False)
    path = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    report = load_weights(loaded, path)
    body = {n: v for n, v in weights(NAME).items() if not TABLE.is_head(n)}
    assert same(loaded, body)
    assert set(report.allowed_unexpected["the model has no classification head"]) == {
        n for n in weights(NAME) if TABLE.is_head(n) and "num_batches" not in n
    }


def dense(weights, gammas=False):
    """As a segmentation framework saves it: a backbone without head, and other parts."""
    body = {f"backbone.{n}": v for n, v in weights.items() if not TABLE.is_head(n)}
    if gammas:
        for name in [n for n in body if n.endswith("blocks.0.norm1.0.weight")]:
            for scale in ("gamma1", "gamma2"):
                body[name.replace("norm1.0.weight", scale)] = body[name] + 1
    others = ("decode_head.conv_seg.weight", "neck.lateral_convs.0.conv.bias", "ema_backbone_x")
    return {**body, **{name: np.ones(3, np.float32) for name in others}}


def backbone(**changes):
    return small_models.backbone(image_shape=(None, None, 3), remove_center=True, **changes)


def test_the_backbone_of_a_dense_task(tmp_path, weights):
    path = save_pth(tmp_path / "x.pth", dense(weights(NAME)), "state_dict", meta={"epoch": 3})
    loaded = backbone(weights=path)
    assert same(loaded, {n: v for n, v in weights(NAME).items() if not TABLE.is_head(n)})
    report = load_weights(loaded, path)
    (unexpected,) = report.allowed_unexpected.values()
    assert sorted(unexpected) == ["decode_head.conv_seg.weight", "neck.lateral_convs.0.conv.bias"]


@pytest.mark.any_backend
def test_layer_scales_of_a_dense_task(tmp_path, weights):
    path = save_pth(tmp_path / "x.pth", dense(weights(NAME), gammas=True), "state_dict")
    with pytest.raises(MismatchError, match="build the model with layer_scale=1.0") as caught:
        backbone(weights=path)
    assert len(caught.value.unused) == 8
    loaded = backbone(weights=path, layer_scale=1.0)
    gamma = official_values(loaded)["levels.2.blocks.0.gamma2"]
    np.testing.assert_array_equal(gamma, weights(NAME)["levels.2.blocks.0.norm1.0.weight"] + 1)
    plain = save_pth(tmp_path / "y.pth", dense(weights(NAME)), "state_dict")
    with pytest.raises(MismatchError, match="build the model with layer_scale=None"):
        backbone(weights=plain, layer_scale=1.0)


@pytest.mark.any_backend
def test_a_dense_checkpoint_has_no_classifier(tmp_path, weights, model):
    path = save_pth(tmp_path / "x.pth", dense(weights(NAME)), "state_dict")
    with pytest.raises(MismatchError, match="build the model with include_top=False") as caught:
        load_weights(model, path)
    assert "head.weight" in caught.value.missing
    assert "decode_head.conv_seg.weight" in caught.value.unused


@pytest.mark.any_backend
def test_a_second_classifier_is_left_out(tmp_path, weights, model):
    features = weights(NAME)["head.weight"].shape[1]
    more = {
        "text.weight": np.ones((25, features), np.float32),
        "text.bias": np.ones(25, np.float32),
        "logits": np.ones((features, 5), np.float32),
    }
    report = load_weights(model, save_pth(tmp_path / "x.pth", {**weights(NAME), **more}))
    assert same(model, weights(NAME))
    assert list(report.allowed_unexpected.values()) == [tuple(more)]


# Refusals


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("levels.0.blocks.0.mlp.fc3.weight", np.ones((4, 4), np.float32)),
        ("levels.0.blocks.0.gamma1", np.ones(16, np.float32)),
        ("meta_head.weight", np.ones((10, 7), np.float32)),
        ("head2.bias", np.ones(10, np.float32)),
    ],
)
@pytest.mark.any_backend
def test_an_unused_tensor(tmp_path, weights, model, name, value):
    values = before(model)
    path = save_pth(tmp_path / "x.pth", {**weights(NAME), name: value})
    with pytest.raises(MismatchError, match=rf"Not used by the model \(1\): {name}") as caught:
        load_weights(model, path)
    assert caught.value.unused == (name,) and caught.value.missing == ()
    assert unchanged(model, values)


@pytest.mark.parametrize("name", ["head.bias", "levels.3.blocks.0.dcn.mask.bias"])
def test_a_missing_tensor(tmp_path, weights, model, name):
    values = before(model)
    held = weights(NAME)
    del held[name]
    path = save_safetensors(tmp_path / "x.safetensors", held)
    with pytest.raises(MismatchError, match=rf"Missing in the file \(1\): {name}") as caught:
        load_weights(model, path)
    assert caught.value.missing == (name,) and caught.value.unused == ()
    assert unchanged(model, values)


@pytest.mark.parametrize("name", ["stem", "head"])
@pytest.mark.any_backend
def test_a_wrong_shape(tmp_path, weights, model, name):
    name = {"stem": "patch_embed.conv2.weight", "head": "head.weight"}[name]
    values = before(model)
    shape = weights(NAME)[name].shape
    wrong = (*shape[:1], shape[1] + 1, *shape[2:])
    path = save_pth(tmp_path / "x.pth", {**weights(NAME), name: np.ones(wrong, np.float32)})
    with pytest.raises(MismatchError, match=r"Of another shape \(1\): ") as caught:
        load_weights(model, path)
    assert caught.value.wrong_shapes == (f"{name} {wrong} instead of {shape}",)
    assert unchanged(model, values)


@pytest.mark.any_backend
def test_the_same_size_in_another_layout_is_noticed(tmp_path, weights, model):
    """Offsets and masks swapped have the right total, a square matrix's shape never errs."""
    held = weights(NAME)
    block = "levels.0.blocks.0.dcn."
    held[f"{block}offset.bias"], held[f"{block}mask.bias"] = (
        held[f"{block}mask.bias"],
        held[f"{block}offset.bias"],
    )
    with pytest.raises(MismatchError, match=r"Of another shape \(2\)"):
        load_weights(model, save_pth(tmp_path / "x.pth", held))


@pytest.mark.any_backend
def test_another_model_is_named(tmp_path, weights, model):
    path = save_pth(tmp_path / "x.pth", weights("tiny_h"))
    with pytest.raises(MismatchError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert "depths=(1, 1, 4, 1), groups=(1, 2, 4, 8)" in message
    assert len(caught.value.unused) > 20 and f"({len(caught.value.unused)} in all)" in message
    other = save_pth(tmp_path / "y.pth", {"fc.weight": np.ones((3, 3), np.float32)})
    with pytest.raises(MismatchError, match="must hold the tensors of an InternImage"):
        load_weights(model, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path, weights, model, bad):
    held = weights(NAME)
    for name in ("head.bias", "levels.3.blocks.0.mlp.fc1.weight"):
        held[name] = held[name].copy()
        held[name].flat[3] = bad
    message = "finite.*levels.3.blocks.0.mlp.fc1.weight is not finite, head.bias is not finite"
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, save_safetensors(tmp_path / "x.safetensors", held))
    assert all(np.isfinite(value).all() for value in before(model))


@pytest.mark.any_backend
def test_numbers_too_large_for_the_model(tmp_path, weights):
    held = {**weights(NAME), "head.bias": np.full(10, 7e4, np.float32)}
    path = save_safetensors(tmp_path / "x.safetensors", held)
    load_weights(build(NAME, dtype="bfloat16"), path)
    with pytest.raises(CheckpointError, match="head.bias does not fit in float16"):
        build(NAME, dtype="float16", weights=path)


@pytest.mark.any_backend
def test_another_kind_of_model(tmp_path, weights):
    path = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="mine")])
    with pytest.raises(CheckpointError, match="model='sequential.*mine/kernel"):
        load_weights(other, path)


@pytest.mark.any_backend
def test_keywords_need_a_variant(model):
    assert load_weights(model, None) is None
    with pytest.raises(ValueError, match="name or path.*variant=None"):
        load_weights(model, "imagenet")
    with pytest.raises(ValueError, match="internimage_s_1k_224.*Received: weights='imagenet22k'"):
        load_weights(model, "imagenet22k", variant="S")


@pytest.mark.any_backend
def test_the_progress_bar(tmp_path, weights, model, capsys):
    path = save_safetensors(tmp_path / "x.safetensors", weights(NAME))
    load_weights(model, path)
    assert capsys.readouterr().out == ""
    load_weights(model, path, progress=True)
    assert "/1" in capsys.readouterr().out
