"""The settings of a training: what was given, what the command chooses, and why."""

import dataclasses
import math
import pathlib

from keras_internimage.commands.train import device as devices
from keras_internimage.commands.train import tasks
from keras_internimage.variants import VARIANTS

CUSTOM = "custom"
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
BALANCING = ("none", "balanced")
SEED = 0
VALIDATION_SPLIT = 0.2
# Of a network of no published size.
RESOLUTION = 224
# Whether masks are learnt; as `data.coco_images.MASKS`, which is not imported for the help.
MASKS = ("annotated", "rectangles", "none")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides what a training computes; `run.json` holds it.

    Attributes:
        data: absolute path of the folder of images.
        backend: of Keras.
        variant: key of `VARIANTS`, or "custom" for a network given by the next three.
        channels, depths, groups: of the network.
        weights: what the training starts from; "none" for random weights.
        resolution: side of the images in pixels; of segmentation that of the crops.
        recipe: key of `training.RECIPES`.
        epochs: of the whole training.
        batch_size, accumulation: images in a batch, batches in an optimizer step.
        precision: Keras' policy of data types.
        learning_rate: the highest.
        drop_path: stochastic depth of the last block.
        ema: momentum of the moving average of the weights, 0 for none.
        freeze: how many stages are not trained.
        validation_split: share of the images for validation.
        seed: of all that is random.
        class_weights: "balanced" for a loss in which each class counts as much as any other.
        sampling: "balanced" for epochs in which each class is as frequent as any other.
        early_stopping: epochs without improvement that end the training, 0 for none.
        task: key of `tasks.TASKS`.
        decoder_channels: of UperNet, or of the pyramid of a detector.
        reduce_zero_label: whether 0 in masks is ignored, and 1 is the first class.
        masks: of detection, which masks are learnt, as of `scan_detection`.
    """

    data: str
    backend: str
    variant: str
    channels: int
    depths: tuple[int, ...]
    groups: tuple[int, ...]
    weights: str
    resolution: int
    recipe: str
    epochs: int
    batch_size: int
    accumulation: int
    precision: str
    learning_rate: float
    drop_path: float
    ema: float
    freeze: int
    validation_split: float
    seed: int
    # With defaults: a training of a version without them has none of it.
    class_weights: str = "none"
    sampling: str = "none"
    early_stopping: int = 0
    task: str = tasks.CLASSIFICATION.name
    decoder_channels: int = tasks.SEGMENTATION.decoder
    reduce_zero_label: bool = False
    masks: str = MASKS[0]

    def of_task(self):
        """The `Task`."""
        return tasks.TASKS[self.task]

    def network(self):
        """Arguments of `InternImage` that define the architecture."""
        if self.variant != CUSTOM:
            return VARIANTS[self.variant].config()
        return {"channels": self.channels, "depths": self.depths, "groups": self.groups}

    def recipe_row(self):
        """The `Recipe`, with what was chosen in place of its own values."""
        row = recipe_of(self.recipe, self.variant)
        # The recipe's rates are for its reference batch, the setting is the rate itself.
        factor = self.learning_rate / learning_rate(row, self.batch_size * self.accumulation)
        return dataclasses.replace(
            row,
            epochs=self.epochs,
            iterations=None,
            resolution=self.resolution,
            drop_path_rate=self.drop_path,
            ema=self.ema or None,
            learning_rate=row.learning_rate * factor,
            warmup_learning_rate=row.warmup_learning_rate * factor,
            minimum_learning_rate=row.minimum_learning_rate * factor,
        )


def operator(variant):
    """What samples in the network: "DCNv3" or "DCNv4"."""
    return "DCNv3" if variant == CUSTOM else VARIANTS[variant].core_op


def recipe_names(task=None):
    """Recipes of a task, or of all: of classification, of UperNet, and of both detectors."""
    from keras_internimage import training

    names = {
        tasks.CLASSIFICATION: [
            name
            for name, row in training.RECIPES.items()
            if row.layer_decay_scheme == "classification"
        ],
        tasks.SEGMENTATION: [name for name in training.RECIPES if "upernet" in name],
        tasks.DETECTION: [
            name
            for name in training.RECIPES
            if "-detection" in name or name.startswith(("mask-rcnn", "cascade"))
        ],
    }
    return sum(names.values(), []) if task is None else names[task]


def recipe_of(name, variant):
    """The row of a recipe. Networks of no published size have the values of InternImage-T."""
    from keras_internimage import training

    return training.recipe(name, "T" if variant == CUSTOM else variant)


def learning_rate(row, images):
    """The highest learning rate of a recipe for steps of so many images."""
    return row.learning_rate * images / row.reference_batch_size


def default_recipe(task, weights):
    """The recipe for given weights ("none" for random ones), and why."""
    if weights == "none":
        return task.scratch, "for random weights"
    return task.recipe, "for few epochs on pretrained weights"


def default_weights(task, variant, recipe=None):
    """The weights that a training starts from, by a recipe or the default one, and why."""
    if variant == CUSTOM:
        return "none", "there are none for this network"
    if task is tasks.DETECTION and recipe in (None, task.recipe):
        return "coco", "all but the last layers, unless the classes are as many"
    official = "of the backbone, as in the official recipes"
    if task is not tasks.CLASSIFICATION and VARIANTS[variant].resolution != RESOLUTION:
        return "imagenet22k", official
    if task is tasks.DETECTION:
        return "imagenet", official
    return "imagenet", "pretrained is far better"


def default_resolution(task, variant):
    """The side of the images, and why."""
    if task is tasks.DETECTION or (task is tasks.SEGMENTATION and variant != CUSTOM):
        return recipe_of(task.recipe, variant).resolution, "as in the official recipes"
    if variant == CUSTOM:
        return RESOLUTION, "the default"
    return VARIANTS[variant].resolution, "what the weights were trained on"


def of_network(options):
    """Variant, channels, depths and groups of the options.

    Raises:
        ValueError: only some of the three numbers are given, or `--variant` beside them.
    """
    numbers = (options.channels, options.depths, options.groups)
    if all(number is None for number in numbers):
        variant = options.variant or "T"
        config = VARIANTS[variant].config()
        return variant, config["channels"], config["depths"], config["groups"]
    if options.variant is not None or any(number is None for number in numbers):
        raise ValueError(
            "A network is defined either by --variant or by all of --channels, --depths and "
            f"--groups. Received: {_given(options, ('variant', 'channels', 'depths', 'groups'))}"
        )
    return CUSTOM, options.channels, tuple(options.depths), tuple(options.groups)


def _given(options, names):
    words = []
    for name in names:
        value = getattr(options, name)
        if value is not None:
            value = " ".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def choose(options, backend, images, device, classes=0, reduce_zero_label=False, masks=MASKS[0]):
    """The settings of a new training, and a reason for each that was not given.

    Args:
        options: of the command line, None where not given.
        backend: Keras' backend.
        images: how many images there are to train on.
        device: `device.Device`.
        classes: how many there are.
        reduce_zero_label: whether 0 is ignored in masks, as far as the folder tells.
        masks: which masks of objects are learnt, as far as the folder tells.

    Returns:
        `(Settings, reasons)`: a dict by the names of the settings.
    """
    why = {}

    def take(name, chosen, reason):
        value = getattr(options, name)
        if value is not None:
            return value
        why[name] = reason
        return chosen

    task = tasks.of(options)
    variant, channels, depths, groups = of_network(options)
    if variant != CUSTOM and not options.variant:
        why["variant"] = "the smallest"
    weights = take("weights", *default_weights(task, variant, options.recipe))
    resolution = take("resolution", *default_resolution(task, variant))
    decoder = take("decoder_channels", task.decoder, "as in the published models")
    if pathlib.Path(weights).exists():
        weights = str(pathlib.Path(weights).resolve())
    recipe = take("recipe", *default_recipe(task, weights))
    row = recipe_of(recipe, variant)
    precision = take("precision", *devices.precision(device))
    batch_size = take(
        "batch_size",
        *devices.batch_size(
            device,
            images,
            channels,
            depths,
            groups,
            resolution,
            precision,
            decoder,
            classes,
            box_heads=task.box_heads(variant),
        ),
    )
    accumulation = take("accumulation", 1, "a step for each batch")
    rate = learning_rate(row, batch_size * accumulation)
    epochs = row.epochs
    if epochs is None:
        updates = math.ceil(math.ceil(images / batch_size) / accumulation)
        epochs = math.ceil(row.iterations / updates)
    per = f"{row.learning_rate:g} for {row.reference_batch_size} images in a step"
    return Settings(
        data=str(pathlib.Path(options.data).resolve()),
        backend=backend,
        variant=variant,
        channels=channels,
        depths=tuple(depths),
        groups=tuple(groups),
        weights=weights,
        resolution=resolution,
        recipe=recipe,
        epochs=take("epochs", int(epochs), "the recipe's"),
        batch_size=batch_size,
        accumulation=accumulation,
        precision=precision,
        learning_rate=take("learning_rate", rate, f"the recipe's, {per}"),
        drop_path=take("drop_path", row.drop_path_rate, "the recipe's"),
        ema=take("ema", row.ema or 0.0, "the recipe's"),
        freeze=take("freeze", 0, "all stages are trained"),
        validation_split=take("validation_split", VALIDATION_SPLIT, "the default"),
        seed=take("seed", SEED, "the default"),
        class_weights=take("class_weights", "none", "each image counts the same"),
        sampling=take("sampling", "none", "each image once in an epoch"),
        early_stopping=take("early_stopping", 0, "all epochs are trained"),
        task=take("task", task.name, "by the folders in it"),
        decoder_channels=decoder,
        reduce_zero_label=take("reduce_zero_label", reduce_zero_label, "by the folder's layout"),
        masks=take("masks", masks, "by the annotations"),
    ), why  # fmt: skip


def check_same(options, settings, may_change=()):
    """Raise unless what was given with `--resume` is what the training started with.

    Args:
        options: of the command line, None where not given.
        settings: `Settings` of the training.
        may_change: names of settings that may differ.

    Raises:
        ValueError: by name, all that differs.
    """
    wrong = []
    for field in dataclasses.fields(settings):
        given = getattr(options, field.name)
        kept = getattr(settings, field.name)
        if given is None or field.name in may_change:
            continue
        if field.name == "data":
            given = str(pathlib.Path(given).resolve())
        if field.name == "weights" and pathlib.Path(given).exists():
            given = str(pathlib.Path(given).resolve())
        if isinstance(given, list):
            given = tuple(given)
        if given != kept:
            name = "DATA_DIR" if field.name == "data" else f"--{field.name.replace('_', '-')}"
            wrong.append(f"{name} {word(given)} (started with {word(kept)})")
    if wrong:
        raise ValueError(
            "The settings of a resumed training must be those that it started with. "
            f"Received: {', '.join(wrong)}"
        )


def word(value):
    """A setting as it is given on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def from_json(content):
    """The `Settings` of what `dataclasses.asdict` gave, after JSON.

    Raises:
        ValueError: settings are missing, or unknown to this version.
    """
    fields = dataclasses.fields(Settings)
    known = {field.name for field in fields}
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    wrong = sorted((set(content) - known) | (required - set(content)))
    if wrong:
        raise ValueError(
            "The training must be of this version of keras_internimage, or of an older one. "
            f"Received: a run.json with other settings: {', '.join(wrong)}"
        )
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    return Settings(**values)
