"""Training recipes as data, and the Keras objects that a recipe stands for.

```python
row = training.recipe("finetune", "T")
optimizer = training.optimizer(model, row, steps=epochs * len(data), batch_size=32)
model.compile(optimizer, training.loss(row), metrics=["accuracy"])
augment = training.augmentation(row, seed=1)     # augment(images, labels) for each batch
```
"""

from keras_internimage.training.augmenting import Augmentation, augmentation
from keras_internimage.training.layerwise import (
    freeze,
    learning_rate_multipliers,
    without_weight_decay,
)
from keras_internimage.training.losses import loss
from keras_internimage.training.optimizers import LayerwiseAdamW, optimizer
from keras_internimage.training.recipes import RECIPES, RandAugment, Recipe, recipe
from keras_internimage.training.schedules import WarmupSchedule

__all__ = [
    "RECIPES",
    "Augmentation",
    "LayerwiseAdamW",
    "RandAugment",
    "Recipe",
    "WarmupSchedule",
    "augmentation",
    "freeze",
    "learning_rate_multipliers",
    "loss",
    "optimizer",
    "recipe",
    "without_weight_decay",
]
