"""What Keras users do with any model, done with an InternImage."""

import keras
import numpy as np
import pytest
from ecosystem.small import EAGER, IMAGES, backbone, check_same, sgd
from models.reference import as_array
from small_models import TINY, with_offsets

from keras_internimage import InternImage, InternImageBackbone

LABELS = np.array([0, 2])


def classifier(**options):
    options = {"input_shape": (64, 64, 3), "classes": 3, **options}
    return with_offsets(InternImage(**TINY, **options))


def compiled(model, **options):
    model.compile(sgd(), "sparse_categorical_crossentropy", run_eagerly=EAGER, **options)
    return model


@pytest.mark.any_backend
def test_summary_is_one_line_for_a_block():
    model = classifier()
    lines = []
    model.summary(print_fn=lambda line: lines.extend(line.splitlines()))
    text = "\n".join(lines)
    assert len(lines) < 60
    for layer in model.layers:
        assert layer.name in text
        assert f"{layer.count_params():,}" in text
    assert f"Total params: {model.count_params():,}" in text


def test_single_stages_are_frozen():
    model = classifier()
    for layer in model.layers:
        if layer.name == "stem" or layer.name.startswith(("stage1", "stage2")):
            layer.trainable = False
    before = {w.path: as_array(w).copy() for w in model.weights}
    trained = {w.path for w in model.trainable_weights}
    assert not any(path.startswith(("stem", "stage1", "stage2")) for path in trained)
    assert any(path.startswith("stage3_block1/dcn") for path in trained)
    compiled(model).fit(IMAGES, LABELS, verbose=0)
    changed = {w.path for w in model.weights if (as_array(w) != before[w.path]).any()}
    statistics = {path for path in before if "moving_" in path}
    assert trained <= changed <= trained | statistics


@pytest.mark.any_backend
def test_clones_and_configurations():
    model = classifier(layer_scale=0.1, post_norm=True)
    for other in (keras.models.clone_model(model), type(model).from_config(model.get_config())):
        assert [w.path for w in other.weights] == [w.path for w in model.weights]
        other.set_weights(model.get_weights())
        check_same(model, other)
    assert model.compute_output_shape((5, 64, 64, 3)) == (5, 3)
    assert model.get_layer("stage3_block1").output.shape == (None, 4, 4, 32)
    encoder = backbone()
    other = keras.models.clone_model(encoder)
    other.set_weights(encoder.get_weights())
    check_same(encoder, other)


@pytest.mark.any_backend
def test_features_of_several_levels():
    encoder = backbone()
    features = keras.Model(encoder.inputs, encoder.pyramid_outputs).predict(IMAGES, verbose=0)
    assert list(features) == ["P2", "P3", "P4", "P5"]
    np.testing.assert_allclose(features["P5"], encoder.predict(IMAGES, verbose=0), atol=1e-5)


@pytest.mark.any_backend
def test_a_search_builds_models_again_and_again():
    """As KerasTuner does it: a function of hyperparameters, the session cleared between."""
    paths = []
    for rate in (0.0, 0.2, 0.2):
        keras.backend.clear_session()
        model = classifier(drop_path_rate=rate)
        assert np.isfinite(model.predict(IMAGES, verbose=0)).all()
        paths.append((model.name, [w.path for w in model.weights]))
    assert paths[0] == paths[1] == paths[2]
    two = [backbone(), backbone()]  # both in one model, without a clash of names
    image = keras.Input((64, 64, 3))
    joined = keras.Model(image, keras.layers.Add()([encoder(image) for encoder in two]))
    assert len({layer.name for layer in joined.layers}) == len(joined.layers)
    expected = sum(encoder.predict(IMAGES, verbose=0) for encoder in two)
    np.testing.assert_allclose(joined.predict(IMAGES, verbose=0), expected, atol=1e-4)


@pytest.mark.any_backend
def test_callbacks(tmp_path):
    model = compiled(classifier(), metrics=["accuracy"])
    calls = keras.callbacks
    callbacks = [
        calls.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=1e9, factor=0.5),
        calls.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss", save_best_only=True),
        calls.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False),
        calls.CSVLogger(tmp_path / "log.csv"),
        calls.EarlyStopping(monitor="loss", patience=2, min_delta=1e9),
    ]
    data = {"x": IMAGES, "y": LABELS, "validation_data": (IMAGES, LABELS), "verbose": 0}
    history = model.fit(**data, epochs=9, callbacks=callbacks)
    assert len(history.epoch) == 3  # a loss falls by 1e9 in no epoch after the first
    # Halved after the second epoch and after the third.
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0025)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    best = keras.saving.load_model(tmp_path / "best.keras")
    assert best.evaluate(IMAGES, LABELS, verbose=0)[0] == pytest.approx(
        min(history.history["val_loss"]), rel=1e-4
    )
    again = compiled(classifier(), metrics=["accuracy"])
    resumed = again.fit(**data, epochs=4, callbacks=[callbacks[2]])
    assert resumed.epoch == [3]


def test_averaged_weights_are_swapped_in():
    model = classifier()
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.25)
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=EAGER)
    # On every backend, JAX's included, the callback before the swap sees the trained weights.
    trained = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            trained.append(as_array(model.get_layer("stage1_block1").mlp_fc1.kernel).copy())

    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model.fit(IMAGES, LABELS, epochs=2, verbose=0, callbacks=[Record(), swap])
    averaged = as_array(model.get_layer("stage1_block1").mlp_fc1.kernel)
    # One step in an epoch; the average starts as the weights after the first.
    first, second = trained
    assert np.abs(second - first).max() > 1e-5
    np.testing.assert_allclose(averaged, 0.25 * first + 0.75 * second, atol=1e-7)


@pytest.mark.any_backend
def test_a_fine_tuned_file_gives_the_backbone_its_weights(tmp_path):
    model = classifier()
    model.save(tmp_path / "tuned.keras")
    encoder = InternImageBackbone(**TINY, weights=str(tmp_path / "tuned.keras"))
    features = keras.Model(model.input, model.get_layer("stage4_norm").output)
    np.testing.assert_allclose(
        encoder.predict(IMAGES, verbose=0), features.predict(IMAGES, verbose=0), atol=1e-5
    )
    other = InternImage(
        **TINY, input_shape=(64, 64, 3), classes=5, weights=str(tmp_path / "tuned.keras")
    )
    np.testing.assert_array_equal(
        as_array(other.get_layer("stem").conv1.kernel),
        as_array(model.get_layer("stem").conv1.kernel),
    )
