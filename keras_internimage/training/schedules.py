"""Learning rates over a training run: a linear warm-up, then cosine, polynomial or steps."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_internimage.training.recipe_types import SCHEDULES, Recipe


@keras.saving.register_keras_serializable(package="keras_internimage")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each optimizer step.

    With step t of T, warm-up W, the highest rate r, the first a and the last b:

    ```
    cosine   t <  W: a + (r - a) t / W
             t >= W: b + (r - b) (1 + cos(pi t / T)) / 2
    poly     g(t) (b + (r - b) (1 - t / T))
    step     g(t) r 0.1^(number of milestones that t has reached)
             g(t) = a / r + (1 - a / r) t / W before W, 1 after
    ```

    From step T on, where the training has ended, the first two are exactly b.

    The first is what the official classification recipes run (timm's cosine without
    `warmup_prefix`: the cosine starts at t = 0, so that it has gone a little way down when the
    warm-up ends), the others what the dense recipes run (mmcv's).

    Args:
        learning_rate: r.
        steps: T, optimizer steps of the whole run.
        warmup_steps: W, at most T.
        warmup_learning_rate: a.
        minimum_learning_rate: b.
        kind: "cosine", "poly" or "step".
        milestones: optimizer steps after which the rate is a tenth, for "step".
        accumulation: calls for one optimizer step. Keras counts each batch where the optimizer
            has `gradient_accumulation_steps`; the rate changes with each update of the weights.

    Raises:
        ValueError: an argument is not as said above.
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int,
        warmup_steps: int = 0,
        warmup_learning_rate: float = 0.0,
        minimum_learning_rate: float = 0.0,
        kind: str = "cosine",
        milestones: Sequence[int] = (),
        accumulation: int = 1,
    ) -> None:
        super().__init__()
        if kind not in SCHEDULES:
            raise ValueError(
                f"`kind` must be one of {', '.join(SCHEDULES)}. Received: kind={kind!r}"
            )
        if learning_rate <= 0:
            raise ValueError(
                f"`learning_rate` must be positive. Received: learning_rate={learning_rate}"
            )
        if steps < 1 or not 0 <= warmup_steps <= steps:
            raise ValueError(
                "`steps` must be at least 1, and `warmup_steps` between 0 and `steps`. "
                f"Received: steps={steps}, warmup_steps={warmup_steps}"
            )
        if accumulation < 1:
            raise ValueError(
                f"`accumulation` must be at least 1. Received: accumulation={accumulation}"
            )
        self.learning_rate = float(learning_rate)
        self.steps = int(steps)
        self.warmup_steps = int(warmup_steps)
        self.warmup_learning_rate = float(warmup_learning_rate)
        self.minimum_learning_rate = float(minimum_learning_rate)
        self.kind = kind
        self.milestones = tuple(int(milestone) for milestone in milestones)
        self.accumulation = int(accumulation)

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step, an int or an integer tensor: a float32 tensor."""
        step = ops.cast(step, "int32")
        if self.accumulation > 1:
            step = ops.floor_divide(step, self.accumulation)
        t = ops.minimum(ops.cast(step, "float32"), float(self.steps))
        highest, first, last = (
            self.learning_rate,
            self.warmup_learning_rate,
            self.minimum_learning_rate,
        )
        warm = t / float(max(1, self.warmup_steps))
        if self.kind == "cosine":
            # (1 + cos x) / 2 as cos(x / 2)^2, which keeps its precision where it nears 0.
            wave = ops.square(ops.cos(t * (0.5 * 3.141592653589793 / self.steps)))
            rate = last + (highest - last) * wave
            # In float32, the cosine of half pi is -4e-8: not the end.
            rate = ops.where(t < self.steps, rate, last)
            ramp = first + (highest - first) * warm
        else:
            if self.kind == "poly":
                # A compiler may multiply by 1 / T, which leaves a rounding error at the end.
                rate = last + (highest - last) * (1.0 - t / self.steps)
                rate = ops.where(t < self.steps, rate, last)
            else:
                passed = ops.zeros_like(t)
                for milestone in self.milestones:
                    passed = passed + ops.cast(t >= milestone, "float32")
                rate = highest * ops.power(0.1, passed)
            ramp = rate * (first / highest + (1.0 - first / highest) * warm)
        return ops.where(t < self.warmup_steps, ramp, rate)

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "warmup_learning_rate": self.warmup_learning_rate,
            "minimum_learning_rate": self.minimum_learning_rate,
            "kind": self.kind,
            "milestones": list(self.milestones),
            "accumulation": self.accumulation,
        }


def schedule(
    recipe: Recipe, steps: int, scale: float = 1.0, accumulation: int = 1
) -> WarmupSchedule:
    """The learning rates of a resolved recipe over `steps`, all of them times `scale`.

    A warm-up given in epochs takes its share of the steps; one given in steps takes as many, and a
    tenth of a shorter training at most.
    """
    epoch = steps / recipe.epochs if recipe.epochs else 0  # in optimizer steps
    warmup = round(recipe.warmup_epochs * epoch) + min(recipe.warmup_iterations, steps // 10)
    return WarmupSchedule(
        recipe.learning_rate * scale,
        steps,
        warmup_steps=min(warmup, steps),
        warmup_learning_rate=recipe.warmup_learning_rate * scale,
        minimum_learning_rate=recipe.minimum_learning_rate * scale,
        kind=recipe.schedule,
        milestones=tuple(round(milestone * epoch) for milestone in recipe.milestones),
        accumulation=accumulation,
    )
