"""AdamW with a learning rate and a weight decay for each variable, on every backend."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import keras
from keras import ops

from keras_internimage.training.layerwise import (
    learning_rate_multipliers,
    variable_keys,
    without_weight_decay,
)
from keras_internimage.training.recipe_types import Recipe
from keras_internimage.training.recipes import check_resolved
from keras_internimage.training.schedules import schedule

Rate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], float]


@keras.saving.register_keras_serializable(package="keras_internimage")
class LayerwiseAdamW(keras.optimizers.Adam):
    """AdamW whose learning rate is multiplied by a factor of each variable's own.

    For the variable p with the factor f and the gradient g, in step t of the rate r:

    ```
    m = beta_1 m + (1 - beta_1) g             v = beta_2 v + (1 - beta_2) g^2
    p = p - r f weight_decay p - r f (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)
    ```

    which is `torch.optim.AdamW` with a parameter group (`lr=r * f`) for each variable. It differs
    from `keras.optimizers.AdamW` in f, and in that `epsilon` is added to the corrected root, as in
    the paper's algorithm and in PyTorch; Keras adds it to the uncorrected one, where the first
    steps' epsilon is up to thirty times as large. To scale gradients instead would do nothing:
    Adam's steps do not depend on their size.

    Factors and exclusions are kept by the variables' keys (their paths; of several with one path,
    the second is "path#2") in the optimizer's config, so that they are saved with a model. (Keras'
    own `exclude_from_weight_decay` is not.)

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
        weight_decay: decoupled weight decay, a fraction of the learning rate; 0 for none. The
            attribute is `decoupled_weight_decay`; Keras' attribute `weight_decay` stays None,
            which keeps Keras from applying it with one rate for all.
        multipliers: dict of variables' keys to factors, None for 1 everywhere. The model that it is
            built for may have fewer trainable variables (frozen since), but not others.
        no_weight_decay: keys of the variables without weight decay.
        beta_1, beta_2, epsilon: as above.
        ema_ramp: with `use_ema`, steps in which the moving average becomes slow: step `t`, counted
            from 0, has the momentum `ema_momentum (1 - exp(-(1 + t) / ema_ramp))`, so that an
            average of few steps is of new weights. None for the same momentum always.
        **kwargs: as for `keras.optimizers.Optimizer`: clipping, moving average (EMA), gradient
            accumulation, loss scale, name.

    Raises:
        ValueError: a factor is negative, `ema_ramp` is not positive, or a variable has no factor
            when the optimizer is built.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; `ema_ramp`:
    the momentum of MMDetection's `ExpMomentumEMAHook`.
    """

    def __init__(
        self,
        learning_rate: Rate = 1e-3,
        weight_decay: float = 0.05,
        multipliers: Mapping[str, float] | None = None,
        no_weight_decay: Iterable[str] = (),
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        ema_ramp: int | None = None,
        name: str = "layerwise_adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )
        if weight_decay is None or weight_decay < 0:
            raise ValueError(
                "`weight_decay` must be a float of at least 0. "
                f"Received: weight_decay={weight_decay}"
            )
        for path, factor in (multipliers or {}).items():
            if not factor >= 0:
                raise ValueError(
                    f"`multipliers` must not be negative. Received: multipliers[{path!r}]={factor}"
                )
        if ema_ramp is not None and not ema_ramp > 0:
            raise ValueError(
                f"`ema_ramp` must be a positive number of steps or None. Received: {ema_ramp=}"
            )
        self.ema_ramp = ema_ramp
        self.decoupled_weight_decay = weight_decay
        self.multipliers = None if multipliers is None else dict(multipliers)
        self.no_weight_decay = tuple(no_weight_decay)
        self._factors: tuple[tuple[float, float], ...] | None = None

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the moments, and looks up the factors, of a list of variables."""
        if self.built:
            return
        keys = variable_keys(variables)
        table = {} if self.multipliers is None else dict(self.multipliers)
        if self.multipliers is None:
            rows = [(key, 1.0) for key in keys]
        elif list(map(_tail, table)) == list(map(_tail, keys)):
            # The same variables in the same order. After loading, Keras may have given them paths
            # with another beginning.
            rows = list(table.items())
        else:
            self._check_known(keys)
            rows = [(key, table[key]) for key in keys]
        super().build(variables)
        excluded = {key for key, _ in rows} & set(self.no_weight_decay)
        # Pairs (factor of the rate, weight decay) in the order of the variables. A tuple: Keras
        # makes attributes out of lists that it watches.
        self._factors = tuple(
            (float(factor), 0.0 if key in excluded else float(self.decoupled_weight_decay))
            for key, factor in rows
        )
        # The config lists these variables only, so that they are found again by their order.
        self.multipliers = dict(rows)
        self.no_weight_decay = tuple(key for key, _ in rows if key in excluded)

    def _check_known(self, keys):
        missing = [key for key in keys if key not in self.multipliers]
        if missing:
            raise ValueError(
                "Each variable must have an entry in `multipliers`: make the optimizer anew for a "
                "model whose layers changed, or were made trainable. "
                f"Received: {len(missing)} variables without, among them {missing[0]!r}"
            )
        # Of variables with one path, those that are left after freezing could be any.
        present = set(keys)
        for key in self.multipliers:
            path, _, number = key.rpartition("#")
            if number.isdigit() and key not in present and path in present:
                raise ValueError(
                    "Variables of the same path must all be trainable, or none: make the optimizer "
                    f"anew for a model whose layers were frozen. Received: {key!r} is missing"
                )

    def update_step(self, gradient, variable, learning_rate):
        """One step of one variable; the only override that all backends need."""
        index = self._get_variable_index(variable)
        factor, decay = self._factors[index]
        m, v = self._momentums[index], self._velocities[index]
        rate, root = (ops.cast(x, variable.dtype) for x in self._corrected(learning_rate))
        gradient = ops.cast(gradient, variable.dtype)
        self.assign_add(m, ops.multiply(ops.subtract(gradient, m), 1 - self.beta_1))
        self.assign_add(v, ops.multiply(ops.subtract(ops.square(gradient), v), 1 - self.beta_2))
        denominator = ops.add(ops.divide(ops.sqrt(v), root), self.epsilon)
        update = ops.multiply(ops.divide(m, denominator), ops.multiply(rate, factor))
        if factor * decay:
            shrink = ops.cast(ops.multiply(learning_rate, factor * decay), variable.dtype)
            update = ops.add(update, ops.multiply(variable, shrink))
        self.assign_sub(variable, update)

    def _corrected(self, learning_rate):
        """`r / (1 - beta_1^t)` and `sqrt(1 - beta_2^t)` in float32, without cancellation."""
        t = ops.cast(self.iterations + 1, "float32")
        first = -ops.expm1(t * math.log(self.beta_1)) if self.beta_1 else 1.0
        second = -ops.expm1(t * math.log(self.beta_2)) if self.beta_2 else 1.0
        return ops.cast(learning_rate, "float32") / first, ops.sqrt(second)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # PyTorch runs one small kernel after the other, thousands a step; its `fused` and `foreach`
        # operations take all variables at once. Keras has the same for its own optimizers at this
        # place. It is no public method, but nothing depends on it: without it, `update_step` does
        # the same.
        if keras.backend.backend() != "torch":
            return super()._backend_update_step(grads, trainable_variables, learning_rate)
        import torch

        from keras_internimage.training import optimizer_torch

        rate, root = self._corrected(learning_rate)
        groups = {}
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            index = self._get_variable_index(variable)
            value = variable.value
            moments = (self._momentums[index].value, self._velocities[index].value)
            row = (value, gradient.to(value.dtype), *moments, *self._factors[index])
            groups.setdefault((value.dtype, value.device), []).append(row)
        betas = (self.beta_1, self.beta_2)
        with torch.no_grad():
            for rows in groups.values():
                if optimizer_torch.can_fuse(rows):
                    step = ops.cast(self.iterations + 1, "float32")
                    optimizer_torch.fused(rows, learning_rate, step, betas, self.epsilon)
                else:
                    current = ops.convert_to_tensor(learning_rate, "float32")
                    optimizer_torch.foreach(rows, current, rate, root, betas, self.epsilon)

    def _update_model_variables_moving_average(self, trainable_variables):
        # No public method, either: Keras' momentum is one number.
        if not self.use_ema or self.ema_ramp is None:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        # With accumulated gradients Keras averages after each batch: a root of the step's momentum.
        batches = self.gradient_accumulation_steps or 1
        step = ops.cast(self.iterations + 1, "float32")
        ramp = -ops.expm1(-step / self.ema_ramp)
        momentum = self.ema_momentum * (ramp if batches == 1 else ramp ** (1 / batches))
        momentum = ops.where(ops.equal(self.iterations, 0), 0.0, momentum)
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            if average is not None:
                share = ops.cast(momentum, variable.dtype)
                average.assign(share * average + (1 - share) * variable)

    def finalize_variable_values(self, var_list):
        """Puts the moving averages in the variables' place, when `fit` ends."""
        if not self.use_ema or keras.backend.backend() != "jax":
            return super().finalize_variable_values(var_list)
        # With Keras 3.15 on JAX, variable and average become one, and the next `fit` fails.
        for variable, average in zip(var_list, self._model_variables_moving_average, strict=True):
            if average is not None:
                self.assign(variable, ops.copy(average.value))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        # Of Adam's that which this class does not have.
        config.pop("amsgrad")
        return {
            **config,
            "weight_decay": self.decoupled_weight_decay,
            "multipliers": None if self.multipliers is None else dict(self.multipliers),
            "no_weight_decay": list(self.no_weight_decay),
            "ema_ramp": self.ema_ramp,
        }


def _tail(key):
    """The last layer's and the variable's name of a key."""
    return key.split("#")[0].split("/")[-2:]


def optimizer(
    model: keras.Model,
    recipe: Recipe,
    steps: int,
    batch_size: float | None = None,
    accumulation: int = 1,
) -> LayerwiseAdamW:
    """The optimizer of a recipe for one model and one length of training.

    ```python
    row = recipe("finetune", "T")
    model.compile(optimizer(model, row, steps=epochs * len(data), batch_size=32), loss(row))
    ```

    Learning rates are the recipe's times `batch_size / recipe.reference_batch_size`. The moving
    average (EMA) is of the trainable variables, starts with their values after the first step, and
    takes their place after the last epoch of `fit`, as Keras has it. Means and variances of
    BatchNormalization are not averaged a second time: they stay those of the last steps, which the
    averaged weights come close to as the learning rate falls.

    Args:
        model: built; a model with layer-wise decay must be, or contain, an InternImage.
        recipe: a `Recipe` for one variant.
        steps: optimizer steps (updates of the weights) of the whole training.
        batch_size: images of one such step, over all devices and accumulated batches; None for the
            number that the recipe's learning rate is meant for (512 in classification).
        accumulation: batches whose gradients are averaged for one step.

    Returns:
        A `LayerwiseAdamW`. A model of the policy "mixed_float16" wraps it into a
        `keras.optimizers.LossScaleOptimizer` in `compile`.

    Raises:
        ValueError: an argument is not as said above.
    """
    check_resolved(recipe)
    for name, value in (("steps", steps), ("accumulation", accumulation)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive int. Received: {name}={value!r}")
    batch_size = recipe.reference_batch_size if batch_size is None else batch_size
    if batch_size <= 0:
        raise ValueError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    rates = schedule(recipe, steps, batch_size / recipe.reference_batch_size, accumulation)
    average: dict[str, Any] = {}
    if recipe.ema is not None:
        # Keras averages after each batch, be the weights new or not.
        average = {
            "use_ema": True,
            "ema_momentum": recipe.ema ** (1 / accumulation),
            "ema_ramp": recipe.ema_ramp,
        }
    decay = cast(float, recipe.layer_decay)  # no mapping: the recipe is for one variant
    return LayerwiseAdamW(
        rates,
        weight_decay=recipe.weight_decay,
        multipliers=learning_rate_multipliers(model, decay, recipe.layer_decay_scheme),
        no_weight_decay=without_weight_decay(model),
        beta_1=recipe.beta_1,
        beta_2=recipe.beta_2,
        epsilon=recipe.epsilon,
        global_clipnorm=recipe.clip_norm,
        gradient_accumulation_steps=accumulation if accumulation > 1 else None,
        **average,
    )
