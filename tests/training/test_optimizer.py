"""The optimizer against PyTorch's AdamW with a parameter group for each variable."""

import keras
import numpy as np
import pytest
from gradients import relative_error, to_numpy
from training import trained_models

from keras_internimage import training

STEPS = 6
TORCH = keras.backend.backend() == "torch"


def recipe(**changes):
    return training.recipe(
        "in1k-224",
        "T",
        **{"layer_decay": 0.7, "learning_rate": 1e-3, "epochs": 3, "warmup_epochs": 1, **changes},
    )


def chosen(model):
    """A matrix and a vector of each layer: each factor, with and without weight decay."""
    found = {}
    for variable in model.trainable_variables:
        found.setdefault((variable.path.split("/")[0], len(variable.shape) > 1), variable)
    return list(found.values())


def gradients(model, step):
    """Small and large ones, so that clipping acts in some of the steps only."""
    random = np.random.default_rng(step)
    size = 10.0 if step % 2 else 1e-3
    return [
        (size * random.standard_normal(v.shape) * random.uniform(0.01, 1)).astype("float32")
        for v in chosen(model)
    ]


def apply(optimizer, model, grads):
    grads = [keras.ops.convert_to_tensor(g) for g in grads]
    variables = chosen(model)
    if keras.backend.backend() != "jax":
        optimizer.apply(grads, variables)
        return
    # As `fit` does it. One by one, each operation would be compiled for each shape.
    import jax

    if not optimizer.built:
        optimizer.build(variables)
    if not hasattr(optimizer, "jitted"):
        optimizer.jitted = jax.jit(optimizer.stateless_apply)
    state = [v.value for v in optimizer.variables], grads, [v.value for v in variables]
    for group, values in zip(
        (variables, optimizer.variables), optimizer.jitted(*state), strict=True
    ):
        for variable, value in zip(group, values, strict=True):
            variable.assign(value)


class Reference:
    """`torch.optim.AdamW` in float64, one parameter group for each variable."""

    def __init__(self, model, row, steps, scale):
        import torch

        self.torch, self.row, self.steps, self.scale = torch, row, steps, scale
        factors = training.learning_rate_multipliers(model, row.layer_decay)
        self.parameters, groups = [], []
        for variable in chosen(model):
            factor = factors[variable.path]
            value = torch.tensor(to_numpy(variable), dtype=torch.float64)
            parameter = torch.nn.Parameter(value)
            decay = row.weight_decay if len(variable.shape) > 1 else 0.0
            self.parameters.append(parameter)
            groups.append({"params": [parameter], "weight_decay": decay, "factor": factor})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)

    def rate(self, t):
        row, warm = self.row, self.steps * self.row.warmup_epochs / self.row.epochs
        first, highest, last = (
            self.scale * rate
            for rate in (row.warmup_learning_rate, row.learning_rate, row.minimum_learning_rate)
        )
        if t < warm:
            return first + (highest - first) * t / warm
        return last + (highest - last) * (1 + np.cos(np.pi * t / self.steps)) / 2

    def step(self, t, grads):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(t) * group["factor"]
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = self.torch.tensor(grad, dtype=self.torch.float64)
        self.torch.nn.utils.clip_grad_norm_(self.parameters, self.row.clip_norm)
        self.optimizer.step()

    def check(self, model):
        for variable, parameter in zip(chosen(model), self.parameters, strict=True):
            error = relative_error(to_numpy(variable), parameter.detach().numpy())
            assert error < 1e-6, (variable.path, error)


PATHS = ["fused", "foreach", "update_step"] if TORCH else ["update_step"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_step_by_step_as_parameter_groups_in_pytorch(monkeypatch, path, accumulation):
    if TORCH and path == "update_step":  # what runs where Keras has no hook for all at once

        def one_by_one(self, grads, variables, learning_rate):
            for grad, variable in zip(grads, variables, strict=True):
                self.update_step(grad, variable, learning_rate)

        monkeypatch.setattr(training.LayerwiseAdamW, "_backend_update_step", one_by_one)
    elif TORCH:
        from keras_internimage.training import optimizer_torch

        taken = {"fused": [], "foreach": []}
        for name, calls in taken.items():
            step = getattr(optimizer_torch, name)
            monkeypatch.setattr(
                optimizer_torch, name, lambda *a, c=calls, s=step: c.append(1) or s(*a)
            )
        if path == "foreach":
            monkeypatch.setattr(optimizer_torch, "can_fuse", lambda rows: False)
    row = recipe()
    model = trained_models.classifier(layer_scale=1e-2)
    optimizer = training.optimizer(model, row, STEPS, 1024, accumulation)
    reference = Reference(model, row, STEPS, scale=2.0)
    for t in range(STEPS):
        grads = [gradients(model, accumulation * t + i) for i in range(accumulation)]
        for part in grads:
            apply(optimizer, model, part)
        mean = [
            np.mean([g.astype("float64") for g in parts], 0) for parts in zip(*grads, strict=True)
        ]
        reference.step(t, mean)
        reference.check(model)
    if TORCH and path != "update_step":
        assert [name for name, calls in taken.items() if calls] == [path]


def test_gradients_that_do_not_lie_in_order():
    model = trained_models.classifier()
    optimizer = training.optimizer(model, recipe(warmup_epochs=0), STEPS)
    reference = Reference(model, recipe(warmup_epochs=0), STEPS, 1.0)
    grads = gradients(model, 0)
    if TORCH:
        import torch

        tensors = [torch.from_numpy(g.T.copy()).permute(*reversed(range(g.ndim))) for g in grads]
        optimizer.apply(tensors, chosen(model))
    else:
        apply(optimizer, model, grads)
    reference.step(0, grads)
    reference.check(model)


def test_frozen_after_the_optimizer_was_made():
    row = recipe(warmup_epochs=0)
    model = trained_models.classifier()
    optimizer = training.optimizer(model, row, STEPS)
    training.freeze(model, 2)
    reference = Reference(model, row, STEPS, 1.0)
    for t in range(2):
        apply(optimizer, model, gradients(model, t))
        reference.step(t, gradients(model, t))
        reference.check(model)


def test_the_config_restores_factors_and_exclusions():
    row = recipe(ema=0.9)
    model = trained_models.classifier()
    first = training.optimizer(model, row, STEPS, 256, accumulation=2)
    config = keras.optimizers.serialize(first)
    assert config["config"]["multipliers"]["stem/conv1/kernel"] == 0.7**4
    second = keras.optimizers.deserialize(config)
    assert second.get_config() == first.get_config()
    assert second.ema_momentum == pytest.approx(0.9**0.5) and second.use_ema
    assert second.global_clipnorm == 5.0 and second.gradient_accumulation_steps == 2
    values = [to_numpy(v) for v in chosen(model)]
    results = []
    for optimizer in (first, second):
        for variable, value in zip(chosen(model), values, strict=True):
            variable.assign(value)
        for t in range(4):
            apply(optimizer, model, gradients(model, t))
        results.append([to_numpy(v) for v in chosen(model)])
    for before, a, b in zip(values, *results, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(before, a)


def test_variables_it_was_not_made_for():
    model = training.freeze(trained_models.classifier(), 1)
    optimizer = training.optimizer(model, recipe(), STEPS)
    training.freeze(model, 0)
    with pytest.raises(ValueError, match="make the optimizer anew.*'stem/conv1/kernel'"):
        optimizer.build(model.trainable_variables)
    model = trained_models.nested()
    optimizer = training.optimizer(model, recipe(), STEPS)
    training.freeze(model, 1)
    with pytest.raises(ValueError, match="layers were frozen.*'stage1_norm/gamma#2' is missing"):
        optimizer.build(model.trainable_variables)


@pytest.mark.any_backend
def test_arguments_that_are_refused():
    model = trained_models.classifier()
    with pytest.raises(ValueError, match="`steps` must be a positive int. Received: steps=2.5"):
        training.optimizer(model, recipe(), 2.5)
    with pytest.raises(ValueError, match="`accumulation` must be a positive int"):
        training.optimizer(model, recipe(), 2, accumulation=0)
    with pytest.raises(ValueError, match="`batch_size` must be positive. Received: batch_size=0"):
        training.optimizer(model, recipe(), 2, batch_size=0)
    with pytest.raises(ValueError, match="must be for one variant"):
        training.optimizer(model, training.RECIPES["in1k-224"], 2)
    with pytest.raises(ValueError, match="`weight_decay` must be a float of at least 0"):
        training.LayerwiseAdamW(1e-3, weight_decay=None)
    with pytest.raises(ValueError, match=r"must not be negative.*multipliers\['a'\]=-1"):
        training.LayerwiseAdamW(1e-3, multipliers={"a": -1})
