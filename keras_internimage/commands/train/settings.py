"""The settings of a training: what was given, what the command chooses, and why."""

import collections
import dataclasses
import pathlib

from keras_internimage.commands.train import device as devices
from keras_internimage.variants import VARIANTS

CUSTOM = "custom"
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
BALANCING = ("none", "balanced")
# For pretrained weights, and for random ones.
RECIPE, SCRATCH = "finetune", "scratch"
SEED = 0
VALIDATION_SPLIT = 0.2
# How many classes are listed with their counts.
LISTED = 8
# Of a network of no published size.
RESOLUTION = 224


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides what a training computes; `run.json` holds it.

    Attributes:
        data: absolute path of the folder of images.
        backend: of Keras.
        variant: key of `VARIANTS`, or "custom" for a network given by the next three.
        channels, depths, groups: of the network.
        weights: what the training starts from; "none" for random weights.
        resolution: side of the images in pixels.
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
            drop_path_rate=self.drop_path,
            ema=self.ema or None,
            learning_rate=row.learning_rate * factor,
            warmup_learning_rate=row.warmup_learning_rate * factor,
            minimum_learning_rate=row.minimum_learning_rate * factor,
        )


def recipe_names():
    """Recipes of classification."""
    from keras_internimage import training

    return [
        name for name, row in training.RECIPES.items() if row.layer_decay_scheme == "classification"
    ]


def recipe_of(name, variant):
    """The row of a recipe. Networks of no published size have the values of InternImage-T."""
    from keras_internimage import training

    return training.recipe(name, "T" if variant == CUSTOM else variant)


def learning_rate(row, images):
    """The highest learning rate of a recipe for steps of so many images."""
    return row.learning_rate * images / row.reference_batch_size


def default_recipe(weights):
    """The recipe for given weights ("none" for random ones), and why."""
    if weights == "none":
        return SCRATCH, "for random weights"
    return RECIPE, "for few epochs on pretrained weights"


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


def choose(options, backend, images, device):
    """The settings of a new training, and a reason for each that was not given.

    Args:
        options: of the command line, None where not given.
        backend: Keras' backend.
        images: how many images there are to train on.
        device: `device.Device`.

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

    variant, channels, depths, groups = of_network(options)
    if variant == CUSTOM:
        weights = take("weights", "none", "there are none for this network")
        resolution = take("resolution", RESOLUTION, "the default")
    else:
        why.update({} if options.variant else {"variant": "the smallest"})
        weights = take("weights", "imagenet", "pretrained is far better")
        resolution = take(
            "resolution", VARIANTS[variant].resolution, "what the weights were trained on"
        )
    if pathlib.Path(weights).exists():
        weights = str(pathlib.Path(weights).resolve())
    recipe = take("recipe", *default_recipe(weights))
    row = recipe_of(recipe, variant)
    precision = take("precision", *devices.precision(device))
    batch_size = take(
        "batch_size",
        *devices.batch_size(device, images, channels, depths, groups, resolution, precision),
    )
    accumulation = take("accumulation", 1, "a step for each batch")
    rate = learning_rate(row, batch_size * accumulation)
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
        epochs=take("epochs", int(row.epochs), "the recipe's"),
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
            wrong.append(f"{name} {_word(given)} (started with {_word(kept)})")
    if wrong:
        raise ValueError(
            "The settings of a resumed training must be those that it started with. "
            f"Received: {', '.join(wrong)}"
        )


def _word(value):
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


def table(settings, why, images, device):
    """The rows `(name, value, reason)` that say what a training is going to do, and why."""
    from keras_internimage.data.check import count

    network = settings.variant
    if network == CUSTOM:
        depths, groups = (" ".join(map(str, v)) for v in (settings.depths, settings.groups))
        network = f"{settings.channels} channels, depths {depths}, groups {groups}"
    counts = f"{len(images.train)} images to train on, {len(images.validation)} to validate with"
    step = settings.batch_size * settings.accumulation
    rows = [
        ("data", f"{len(images.class_names)} classes, {counts}", ""),
        ("images by class", counts_by_class(images), ""),
        ("device", f"{device.name} ({settings.backend})", _only_one(device)),
        ("network", f"InternImage-{network}" if settings.variant != CUSTOM else network, "variant"),
        ("weights", settings.weights, "weights"),
        ("resolution", f"{settings.resolution} pixels", "resolution"),
        ("recipe", settings.recipe, "recipe"),
        ("epochs", str(settings.epochs), "epochs"),
        ("batch size", str(settings.batch_size), "batch_size"),
        ("accumulation", f"{settings.accumulation} ({step} images in a step)", "accumulation"),
        ("precision", settings.precision, "precision"),
        ("learning rate", f"{settings.learning_rate:.3g}", "learning_rate"),
        ("drop path", f"{settings.drop_path:g}", "drop_path"),
        ("frozen stages", str(settings.freeze), "freeze"),
        ("seed", str(settings.seed), "seed"),
    ]
    if settings.ema:
        rows.append(("moving average", f"{settings.ema:g} (it is validated and saved)", "ema"))
    if settings.class_weights != "none":
        rows.append(("class weights", settings.class_weights, "class_weights"))
    if settings.sampling != "none":
        rows.append(("sampling", settings.sampling, "sampling"))
    if settings.early_stopping:
        stopping = f"after {count(settings.early_stopping, 'epoch')} without improvement"
        rows.append(("early stopping", stopping, "early_stopping"))
    known = set(dataclasses.asdict(settings))
    return [
        (name, value, reason if reason not in known else why.get(reason, "given"))
        for name, value, reason in rows
    ]


def counts_by_class(images):
    """How many images of each class there are to train on; of many classes, the extremes."""
    counts = collections.Counter(label for _, label in images.train)
    ordered = sorted(range(len(images.class_names)), key=lambda label: -counts[label])
    words = [f"{images.class_names[label]} {counts[label]}" for label in ordered]
    if len(words) > LISTED:
        half = LISTED // 2
        left_out = f"... ({len(words) - 2 * half} more)"
        words = [*words[:half], left_out, *words[-half:]]
    return ", ".join(words)


def _only_one(device):
    return f"one of {device.count}; docs/scaling.md has more" if device.count > 1 else ""
