"""What a training recipe consists of. This module imports no Keras."""

import dataclasses
from collections.abc import Mapping

SCHEDULES = ("cosine", "step", "poly")
SCHEMES = ("classification", "dense")


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`operations` random changes of each image, each made with `probability`.

    Attributes:
        operations: number of changes in turn.
        magnitude: mean strength, on a scale of 0 to 10.
        deviation: standard deviation of the strength, on the same scale.
        probability: chance of each of the changes, in [0, 1].
    """

    operations: int = 2
    magnitude: float = 9.0
    deviation: float = 0.5
    probability: float = 0.5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What one training run is made of. Where values differ by variant, a dict by variant.

    Attributes:
        name: key of `RECIPES`.
        variants: the variants that it was made for; `recipe` takes no others.
        official: whether the authors of InternImage published it.
        resolution: side of the training images in pixels (dense rows: of the crop or of the
            short side), None where it varies.
        batch_size: images in one step of the official run.
        reference_batch_size: images in one step that `learning_rate` is meant for. The rates
            grow in proportion to the number of images in a step.
        epochs: passes over the training set; None where `iterations` says it.
        iterations: optimizer steps of the whole run; None where `epochs` says it.
        warmup_epochs, warmup_iterations: length of the linear warm-up, in epochs or in steps.
        learning_rate: the highest rate, per `reference_batch_size` images in a step.
        warmup_learning_rate, minimum_learning_rate: the rates of the first and the last step, per
            as many images.
        schedule: what follows the warm-up: "cosine", "poly" (linear to the minimum) or "step" (a
            tenth after each of `milestones`).
        milestones: epochs after which the rate falls, for "step".
        weight_decay: AdamW's, decoupled, a fraction of the learning rate. Never for biases and
            other variables of one dimension.
        layer_decay: factor of the learning rate from each block to the one before, 1 for none.
        optional_layer_decay: what the authors' alternative configuration files have instead.
        layer_decay_scheme: "classification" or "dense", see `learning_rate_multipliers`.
        beta_1, beta_2, epsilon: AdamW's.
        clip_norm: highest norm of all gradients together, None for no clipping.
        ema: momentum of the moving average of the weights for each step, None for none.
        ema_ramp: steps in which it rises to that, see `LayerwiseAdamW`; None for at once.
        drop_path_rate: stochastic depth of the last block, an argument of the models.
        label_smoothing: fraction of each label spread over all classes, in [0, 1).
        flip: probability of mirroring an image, left to right.
        crop_scale: least and greatest area of the random crop, as fractions of the image's; None
            for no crop.
        crop_ratio: least and greatest width over height of the crop.
        short_sides: of detection, the short sides in pixels that images are resized to, where
            `resolution` is 800, and in proportion where it is not; empty for `resolution` alone.
        long_side: of detection, the longest side in the same pixels.
        crop_probability: of detection, the share of images that are cropped before.
        color_jitter: strength of random brightness, contrast and saturation, in [0, 1]. As in the
            official program, it acts only where `rand_augment` is None.
        rand_augment: `RandAugment` or None.
        random_erasing: probability of filling a rectangle with noise.
        mixup, cutmix: alpha of the beta distribution of their weights, 0 for none.
        mix_probability: of mixing a batch at all.
        switch_probability: of CutMix rather than MixUp, where there are both.
    """

    name: str
    variants: tuple[str, ...]
    official: bool = True
    resolution: int | Mapping[str, int] | None = None
    batch_size: int | None = 512
    reference_batch_size: int = 512
    epochs: float | None = None
    iterations: int | None = None
    warmup_epochs: float = 0
    warmup_iterations: int = 0
    learning_rate: float = 2e-5
    warmup_learning_rate: float = 0.0
    minimum_learning_rate: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    weight_decay: float = 0.05
    layer_decay: float | Mapping[str, float] = 1.0
    optional_layer_decay: float | Mapping[str, float] | None = None
    layer_decay_scheme: str = "classification"
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = 5.0
    ema: float | None = None
    ema_ramp: int | None = None
    drop_path_rate: float | Mapping[str, float] = 0.0
    label_smoothing: float = 0.0
    flip: float = 0.5
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    short_sides: tuple[int, ...] = ()
    long_side: int = 1333
    crop_probability: float = 0.0
    color_jitter: float = 0.0
    rand_augment: RandAugment | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    switch_probability: float = 0.5
