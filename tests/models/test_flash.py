"""FlashInternImage's models beside InternImage's: heads, batches, initial state, training."""

import keras
import numpy as np
import pytest
import small_models
from gradients import relative_error
from keras import ops
from models import reference

import keras_internimage
from keras_internimage import FlashInternImageBackbone, InternImageBackbone
from keras_internimage.layers.detection import FeaturePyramid
from keras_internimage.variants import FLASH, VARIANTS, base

FLASH_VARIANTS = [variant for variant in VARIANTS if variant.startswith(FLASH)]
TINY = {**small_models.SMALL, "core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}


def head_parameters(kind, variant, **arguments):
    """Parameters of a published model but for its backbone."""
    model = getattr(keras_internimage, f"{kind}{variant}")(**arguments)
    of_backbone = {w.path.partition("/")[2] for w in model.weights if "stage" in w.path}
    assert of_backbone
    return sum(
        int(np.prod(w.shape))
        for w in model.weights
        if not any(part.startswith(("stage", "stem")) for part in w.path.split("/"))
    )


HEADS = {"UperNet": "upernet", "MaskRCNN": "mask_rcnn", "CascadeMaskRCNN": "cascade_mask_rcnn"}


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        *(("UperNet", variant) for variant in FLASH_VARIANTS),
        *(("MaskRCNN", variant) for variant in FLASH_VARIANTS[:-1]),
        ("CascadeMaskRCNN", "FlashL"),
    ],
)
def test_heads_are_those_of_internimage(kind, variant):
    with reference.without_values():
        own, other = (head_parameters(kind, name) for name in (variant, base(variant)))
        model = getattr(keras_internimage, f"{kind}{variant}")()
    # In the pyramid eight norms take the place of eight biases.
    assert own - other == (0 if kind == "UperNet" else 8 * 256)
    assert model.name == f"{HEADS[kind]}_flash_{base(variant).lower()}"
    scales = [w for w in model.weights if w.path.endswith("gamma1")]
    assert len(scales) == sum(VARIANTS[variant].config()["depths"])


def test_the_pyramids_norms():
    """On maps of one pixel, of which the convolution's centre is all that counts."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 1, 1, width)).astype("float32") for width in (4, 6, 8, 10)]
    pyramid = FeaturePyramid(16, norm=True)
    pyramid.build([x.shape for x in maps])
    assert not any(w.path.endswith("/bias") for w in pyramid.weights)
    for weight in pyramid.weights:
        weight.assign(rng.normal(size=weight.shape))

    def values(layer):
        return [ops.convert_to_numpy(w) for w in layer.weights]

    def normalized(x, norm):
        gamma, beta = values(norm)
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta

    laterals = [
        normalized(x[:, 0, 0] @ values(conv)[0][0, 0], norm)
        for x, conv, norm in zip(maps, pyramid.laterals, pyramid.lateral_norms, strict=True)
    ]
    found = pyramid([ops.convert_to_tensor(x) for x in maps])
    for level in range(4):
        total = sum(laterals[level:])
        (kernel,) = values(pyramid.outputs_of_levels[level])
        expected = normalized(total @ kernel[1, 1], pyramid.output_norms[level])
        assert relative_error(ops.convert_to_numpy(found[level])[:, 0, 0], expected) < 1e-5


def test_images_of_a_batch_do_not_depend_on_each_other():
    """Bit for bit, whatever else is in the batch: the fault of the official kernel is not ours.

    A batch of one differs by rounding: libraries sum matmuls of few rows in another order. The
    operator itself gives the same bits there, too (`tests/ops/test_dcnv4.py`).
    """
    model = reference.classifier("tiny_flash_prenorm", input_shape=(48, 48, 3))
    x = np.random.default_rng(0).normal(size=(8, 48, 48, 3)).astype("float32")
    together = reference.as_array(reference.call(model, x))
    for n in (1, 5):
        others = np.where(np.arange(8)[:, None, None, None] == n, x, -3 * x)
        found = reference.as_array(reference.call(model, others))
        np.testing.assert_array_equal(found[n], together[n])
        alone = reference.as_array(reference.call(model, x[n : n + 1]))
        np.testing.assert_allclose(alone[0], together[n], rtol=0, atol=5e-6)


def test_backbones():
    backbone = FlashInternImageBackbone(**small_models.SMALL, image_shape=(64, 64, 3))
    assert backbone.get_layer("stage1_block1").core_op == "DCNv4"
    config = keras.saving.serialize_keras_object(backbone)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is FlashInternImageBackbone and again.get_config() == backbone.get_config()
    plain = InternImageBackbone(**TINY, image_shape=(64, 64, 3))
    assert [w.shape for w in plain.weights] == [w.shape for w in backbone.weights]
    with reference.without_values():
        for name in ("L", "FlashL"):
            block = FlashInternImageBackbone.from_variant(name, weights=None).layers[2]
            assert block.dcn.output_bias and block.mlp_fc2_bias and block.dcn.offset_scale == 2


# JAX compiles it for longer than it trains.
SLOW_IN_JAX = [pytest.mark.slow] if keras.config.backend() == "jax" else []


@pytest.mark.parametrize("samples", [pytest.param(800, marks=SLOW_IN_JAX)])
def test_a_new_model_learns_digits(samples):
    """From masks of zero, where a new branch gives nothing."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = np.kron(digits.images / 8 - 1, np.ones((1, 4, 4)))[..., None].repeat(3, -1)
    x, y = x.astype("float32"), digits.target
    keras.utils.set_random_seed(0)
    model = small_models.classifier(TINY, classes=10)
    model.compile(
        keras.optimizers.AdamW(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(x[:samples], y[:samples], batch_size=40, epochs=4, verbose=0)
    _, accuracy = model.evaluate(x[1398:], y[1398:], batch_size=40, verbose=0)
    assert accuracy > 0.6  # of ten classes
    points = [w for w in model.weights if "offset_mask_proj/kernel" in w.path]
    for weight, groups in zip(points, TINY["groups"], strict=True):
        offsets, masks = np.split(np.abs(reference.as_array(weight)), [18 * groups], axis=1)
        assert offsets.max() > 1e-4 and masks.max() > 1e-3
