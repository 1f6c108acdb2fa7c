"""Training recipes as data, and the Keras objects that a recipe stands for.

```python
row = training.recipe("finetune", "T")
optimizer = training.optimizer(model, row, steps=epochs * len(data), batch_size=32)
model.compile(optimizer, training.loss(row), metrics=["accuracy"])
augment = training.augmentation(row, seed=1)     # augment(images, labels) for each batch
```

Where Keras is not imported yet, the names are imported at their first use: the recipes are plain
data, and reading them, as the command lines do for their help, must not import Keras.
"""

import sys
from typing import TYPE_CHECKING

from keras_internimage import lazy_names

if TYPE_CHECKING or "keras" in sys.modules:
    # For editors and type checkers; and because Keras finds the optimizer and the schedule of a
    # saved model only if their modules, which register them, were imported.
    from keras_internimage.training.augmentations import Augmentation, augmentation
    from keras_internimage.training.box_augmentations import BoxAugmentation, BoxPlacement
    from keras_internimage.training.layerwise import (
        freeze,
        learning_rate_multipliers,
        without_weight_decay,
    )
    from keras_internimage.training.losses import AUXILIARY_WEIGHT, SegmentationLoss, loss
    from keras_internimage.training.mask_augmentations import MaskAugmentation
    from keras_internimage.training.metrics import (
        MeanClassAccuracy,
        MeanIoU,
        PixelAccuracy,
        SegmentationScores,
        pixel_confusion,
        segmentation_scores,
    )
    from keras_internimage.training.optimizers import LayerwiseAdamW, optimizer
    from keras_internimage.training.recipe_types import RandAugment, Recipe
    from keras_internimage.training.recipes import RECIPES, recipe
    from keras_internimage.training.schedules import WarmupSchedule

# No module may have the name of something public: importing the module would put it in its place.
_MODULE_OF = {
    "AUXILIARY_WEIGHT": "losses",
    "RECIPES": "recipes",
    "Augmentation": "augmentations",
    "BoxAugmentation": "box_augmentations",
    "BoxPlacement": "box_augmentations",
    "LayerwiseAdamW": "optimizers",
    "MaskAugmentation": "mask_augmentations",
    "MeanClassAccuracy": "metrics",
    "MeanIoU": "metrics",
    "PixelAccuracy": "metrics",
    "RandAugment": "recipe_types",
    "Recipe": "recipe_types",
    "SegmentationLoss": "losses",
    "SegmentationScores": "metrics",
    "WarmupSchedule": "schedules",
    "augmentation": "augmentations",
    "freeze": "layerwise",
    "learning_rate_multipliers": "layerwise",
    "loss": "losses",
    "optimizer": "optimizers",
    "pixel_confusion": "metrics",
    "recipe": "recipes",
    "segmentation_scores": "metrics",
    "without_weight_decay": "layerwise",
}

__all__ = [
    "AUXILIARY_WEIGHT",
    "RECIPES",
    "Augmentation",
    "BoxAugmentation",
    "BoxPlacement",
    "LayerwiseAdamW",
    "MaskAugmentation",
    "MeanClassAccuracy",
    "MeanIoU",
    "PixelAccuracy",
    "RandAugment",
    "Recipe",
    "SegmentationLoss",
    "SegmentationScores",
    "WarmupSchedule",
    "augmentation",
    "freeze",
    "learning_rate_multipliers",
    "loss",
    "optimizer",
    "pixel_confusion",
    "recipe",
    "segmentation_scores",
    "without_weight_decay",
]

__getattr__, __dir__ = lazy_names.of(__name__, _MODULE_OF)
