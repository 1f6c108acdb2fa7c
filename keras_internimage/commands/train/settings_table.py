"""What a training is going to do, and why: a table for people, before it starts."""

import collections
import dataclasses

from keras_internimage.commands.train import tasks
from keras_internimage.commands.train.settings import CUSTOM

# How many classes are listed with their counts.
LISTED = 8


def table(settings, why, images, device):
    """The rows `(name, value, reason)` that say what a training is going to do, and why."""
    from keras_internimage.data.check import count

    task = settings.of_task()
    network = task.network(settings.variant)
    if settings.variant == CUSTOM:
        depths, groups = (" ".join(map(str, v)) for v in (settings.depths, settings.groups))
        network = f"{settings.channels} channels, depths {depths}, groups {groups}"
    counts = f"{len(images.train)} images to train on, {len(images.validation)} to validate with"
    step = settings.batch_size * settings.accumulation
    rows = [
        ("data", f"{len(images.class_names)} classes, {counts}", ""),
        ("task", task.name, "task"),
        by_class(images, task),
        ("device", f"{device.name} ({settings.backend})", _only_one(device)),
        ("network", network, "variant"),
        ("weights", settings.weights, "weights"),
        ("resolution", f"{settings.resolution} {task.crops}", "resolution"),
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
    if "decoder_channels" in task.options:
        name = "pyramid" if task is tasks.DETECTION else "decoder"
        rows.append((name, f"{settings.decoder_channels} channels", "decoder_channels"))
    if task is tasks.DETECTION:
        rows.append(("masks", _MASKS[settings.masks], "masks"))
    if settings.reduce_zero_label:
        rows.append(("masks", "0 is ignored, 1 is the first class", "reduce_zero_label"))
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


_MASKS = {
    "annotated": "those of the annotations",
    "rectangles": "the box's rectangle where there is none",
    "none": "none: boxes are learnt alone",
}


def by_class(images, task):
    """The row on the classes that there are to train on."""
    if task is tasks.CLASSIFICATION:
        return "images by class", counts_by_class(images), ""
    if task is tasks.DETECTION:
        counts = collections.Counter(x.label for image in images.train for x in image.objects)
        numbers = [counts[label] for label in range(len(images.class_names))]
        return "objects by class", _most_first(images.class_names, numbers, numbers), ""
    total = max(1, sum(images.train_pixels))
    shares = [f"{pixels / total:.1%}" for pixels in images.train_pixels]
    return "pixels by class", _most_first(images.class_names, images.train_pixels, shares), ""


def counts_by_class(images):
    """How many images of each class there are to train on; of many classes, the extremes."""
    counts = collections.Counter(label for _, label in images.train)
    numbers = [counts[label] for label in range(len(images.class_names))]
    return _most_first(images.class_names, numbers, numbers)


def _most_first(names, numbers, texts):
    ordered = sorted(range(len(names)), key=lambda label: -numbers[label])
    words = [f"{names[label]} {texts[label]}" for label in ordered]
    if len(words) > LISTED:
        half = LISTED // 2
        left_out = f"... ({len(words) - 2 * half} more)"
        words = [*words[:half], left_out, *words[-half:]]
    return ", ".join(words)


def _only_one(device):
    return f"one of {device.count}; docs/scaling.md has more" if device.count > 1 else ""
