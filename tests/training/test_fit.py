"""The optimizer within `fit`: compiled, in mixed precision, averaged, saved, and ten lines."""

import keras
import numpy as np
import pytest
from gradients import to_numpy
from training import trained_models

import keras_internimage
from keras_internimage import training

TORCH = keras.backend.backend() == "torch"


def dense(dtype=None, seed=0):
    """Two layers without an activation: the first step of Adam is the rate, whatever the slope."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, name="first", dtype=dtype),
            keras.layers.Dense(3, name="second", dtype=dtype),
        ]
    )


def factors(model, first=0.25):
    keys = [variable.path for variable in model.trainable_variables]
    return {key: first if "first" in key else 1.0 for key in keys}


def data(count=8):
    random = np.random.default_rng(0)
    return (
        random.standard_normal((count, 6)).astype("float32"),
        random.standard_normal((count, 3)).astype("float32"),
    )


def fit(model, optimizer, epochs=1, **arguments):
    model.compile(optimizer, "mse", **arguments)
    model.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return [to_numpy(v) for v in model.trainable_variables]


# PyTorch compiles for half a minute what the others do in seconds: one test there.
@pytest.mark.parametrize(
    "policy, jit_compile",
    [("float32", False), ("mixed_float16", not TORCH), ("mixed_bfloat16", not TORCH)],
)
def test_the_first_step_is_the_multiplied_rate(policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    model = dense()
    before = [to_numpy(v) for v in model.trainable_variables]
    optimizer = training.LayerwiseAdamW(0.01, 0.5, factors(model), ["first/bias", "second/bias"])
    after = fit(model, optimizer, jit_compile=jit_compile)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    assert (model.optimizer.inner_optimizer if scaled else model.optimizer) is optimizer
    for variable, old, new in zip(model.trainable_variables, before, after, strict=True):
        rate = 0.01 * factors(model)[variable.path]
        decay = 0.0 if variable.name == "bias" else 0.5
        moved = np.abs(new - old * (1 - rate * decay))
        np.testing.assert_allclose(moved, rate, rtol=2e-3, err_msg=variable.path)


def test_compiled_and_not_give_the_same_weights():
    results = []
    for jit_compile in (False, True):
        model = dense()
        optimizer = training.LayerwiseAdamW(0.01, 0.5, factors(model), global_clipnorm=0.1)
        results.append(fit(model, optimizer, epochs=2, jit_compile=jit_compile))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_factor_of_zero_keeps_the_weights():
    model = dense()
    before = [to_numpy(v) for v in model.trainable_variables]
    optimizer = training.LayerwiseAdamW(0.01, 0.5, factors(model, first=0.0))
    after = fit(model, optimizer, epochs=2)
    assert all(np.array_equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(before[2:], after[2:], strict=True))


class Weights(keras.callbacks.Callback):
    """Keeps the trainable variables after each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append([to_numpy(v) for v in self.model.trainable_variables])


def test_the_average_takes_the_weights_place():
    model, watch = dense(), Weights()
    optimizer = training.LayerwiseAdamW(0.05, 0.1, factors(model), use_ema=True, ema_momentum=0.6)
    model.compile(optimizer, "mse")
    model.fit(*data(), batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=[watch])
    for i, variable in enumerate(model.trainable_variables):
        average = watch.seen[0][i]
        for weights in watch.seen[1:]:
            average = 0.6 * average + 0.4 * weights[i]
        np.testing.assert_allclose(to_numpy(variable), average, rtol=1e-4, atol=1e-6)
        assert np.abs(average - watch.seen[-1][i]).max() > 1e-3


@pytest.mark.parametrize("accumulation", [None, 2])
def test_the_average_becomes_slow(accumulation):
    """In step t from 0, new weights have the share m exp(-(1 + t) / ramp) + 1 - m."""
    model, watch = dense(), Weights()
    optimizer = training.LayerwiseAdamW(
        0.05,
        0.1,
        factors(model),
        use_ema=True,
        ema_momentum=0.9,
        ema_ramp=3,
        gradient_accumulation_steps=accumulation,
    )
    model.compile(optimizer, "mse")
    model.fit(*data(), batch_size=8, epochs=8, shuffle=False, verbose=0, callbacks=[watch])
    batches = accumulation or 1
    for i, variable in enumerate(model.trainable_variables):
        average = watch.seen[0][i]
        for t, weights in enumerate(watch.seen[1:], start=1):
            step = t // batches
            momentum = 0.9 * (1 - np.exp(-(1 + step) / 3)) ** (1 / batches) if step else 0
            average = momentum * average + (1 - momentum) * weights[i]
        np.testing.assert_allclose(to_numpy(variable), average, rtol=1e-4, atol=1e-6)
        assert np.abs(average - watch.seen[-1][i]).max() > 1e-3
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.ema_ramp == 3
    with pytest.raises(ValueError, match="positive number of steps or None. Received: ema_ramp=0"):
        training.LayerwiseAdamW(ema_ramp=0)


@pytest.mark.parametrize("accumulation", [None, 2])
def test_a_saved_model_goes_on_as_if_nothing_had_happened(tmp_path, accumulation):
    model = dense()
    optimizer = training.LayerwiseAdamW(
        training.WarmupSchedule(0.05, steps=9, warmup_steps=2),
        0.5,
        factors(model),
        ["first/bias"],
        global_clipnorm=1.0,
        use_ema=True,
        ema_momentum=0.7,
        gradient_accumulation_steps=accumulation,
    )
    fit(model, optimizer, epochs=3)
    model.save(tmp_path / "model.keras")
    other = keras.models.load_model(tmp_path / "model.keras")
    assert other.optimizer.get_config() == optimizer.get_config()
    assert len(other.optimizer.variables) == len(optimizer.variables)
    for a, b in zip(optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=a.path)
    results = []
    for either in (model, other):
        either.fit(*data(), batch_size=8, epochs=3, shuffle=False, verbose=0)
        results.append([to_numpy(v) for v in (*either.variables, *either.optimizer.variables)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(to_numpy(other.optimizer._iterations)) == 6


@pytest.mark.any_backend
def test_ten_lines_train_a_model(tmp_path):
    images, labels = trained_models.colours(16)
    model = trained_models.nested()
    row = training.recipe("finetune", "T", learning_rate=0.1, label_smoothing=0.0, mixup=0.2)
    model.compile(
        training.optimizer(model, row, steps=24, batch_size=16),
        training.loss(row),
        metrics=["accuracy"],
    )
    augment = training.augmentation(row, seed=1)
    before, accuracy = model.evaluate(images / 127.5 - 1, labels, verbose=0)
    if accuracy > 0.5:  # what initial weights get right by chance is made wrong
        labels = labels[:, ::-1].copy()
        before, accuracy = model.evaluate(images / 127.5 - 1, labels, verbose=0)
    assert accuracy <= 0.5
    for step in range(24):
        changed, soft = augment(images, labels, seed=step)
        model.train_on_batch(changed / 127.5 - 1, soft)
    loss, accuracy = model.evaluate(images / 127.5 - 1, labels, verbose=0)
    assert accuracy == 1.0 and loss < 0.5 * before
    # What was learnt, and how, comes back from the file.
    model.save(tmp_path / "model.keras")
    other = keras.models.load_model(tmp_path / "model.keras")
    assert other.optimizer.get_config() == model.optimizer.get_config()
    np.testing.assert_allclose(
        other.evaluate(images / 127.5 - 1, labels, verbose=0)[0], loss, rtol=1e-3, atol=1e-5
    )


def batches(images, labels, row, size=16):
    """As the documentation has it for labels that `ImageFiles` does not make of folders."""
    augment = training.augmentation(row, seed=0)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(images) // size

        def __getitem__(self, index):
            part = slice(size * index, size * (index + 1))
            x, y = augment(images[part], labels[part])
            return keras_internimage.preprocess_input(x), y

    return Batches()


def learns(labels, activation, loss, metric, tmp_path):
    """Trains by the public names; returns what the saved model predicts for the images."""
    images, _ = trained_models.colours(32)
    labels = labels.astype("float32")
    changes = {"learning_rate": 0.2, "color_jitter": 0.0, "epochs": 6}
    row = training.recipe("finetune", "T", **changes)
    model = trained_models.classifier(classes=labels.shape[1], classifier_activation=activation)
    model.compile(training.optimizer(model, row, steps=12, batch_size=16), loss, metrics=[metric])
    data = keras_internimage.preprocess_input(images.astype("float32"))
    before = model.evaluate(data, labels, verbose=0)[0]
    history = model.fit(batches(images, labels, row), epochs=6, shuffle=False, verbose=0).history
    assert model.evaluate(data, labels, verbose=0)[0] < 0.5 * before, history
    assert model.loss is loss and len(history) == 2
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras").predict(data, verbose=0)


@pytest.mark.any_backend
def test_several_classes_of_one_image(tmp_path):
    """Red, blue, any colour, none: a sigmoid for each class, which may all be right at once."""
    red = np.arange(32) % 2 == 0
    labels = np.stack([red, ~red, red | True, red & False], 1)
    scores = learns(
        labels,
        "sigmoid",
        keras.losses.BinaryCrossentropy(),
        keras.metrics.BinaryAccuracy(),
        tmp_path,
    )
    assert scores.min() >= 0 and scores.max() <= 1
    np.testing.assert_array_equal(scores > 0.5, labels)


@pytest.mark.any_backend
def test_a_regression(tmp_path):
    """Numbers of any sign and size: no activation."""
    red = np.arange(32) % 2 == 0
    targets = np.where(red, -2.0, 1.5)[:, None]
    predicted = learns(targets, None, keras.losses.MeanSquaredError(), "mae", tmp_path)
    assert np.abs(predicted - targets).mean() < 1.0
