"""What a training for classes of images has of its own."""

import pathlib

import keras
import numpy as np

from keras_internimage import models, training
from keras_internimage.commands.train import output
from keras_internimage.commands.train.settings import CUSTOM
from keras_internimage.commands.train.weighting import WeightedImageFiles
from keras_internimage.data import folders, labels
from keras_internimage.data.loader import ImageFiles
from keras_internimage.variants import function_name

# Files of the output folder besides those of every training.
FILES = (labels.FILE,)


def scan(options, split, seed):
    """The images of a folder by class, each of them read once."""
    return folders.scan(options.data, split, seed, options.skip_bad, options.threads)


def rows(images, settings):
    """What `images.csv` holds."""
    return [
        {
            "part": part,
            "class": images.class_names[label],
            **output.entry(path, images.folder),
        }
        for part in output.PARTS
        for path, label in getattr(images, part)
    ]


def record(images):
    """What `run.json` holds of the images besides the names of their classes."""
    return {}


def restored(rows, settings, kept, bad):
    """The images that a training started with: of `images.csv`, and of `run.json`."""
    label = {name: index for index, name in enumerate(kept["classes"])}
    parts = [
        tuple((row["file"], label[row["class"]]) for row in rows if row["part"] == part)
        for part in output.PARTS
    ]
    return folders.Images(pathlib.Path(settings.data), tuple(kept["classes"]), *parts, bad)


def build_model(settings, classes, weights):
    """The classifier, random or with weights."""
    arguments = {
        "input_shape": (settings.resolution, settings.resolution, 3),
        "classes": classes,
        "drop_path_rate": settings.drop_path,
        "weights": weights,
        "name": "internimage",
    }
    if settings.variant == CUSTOM:
        return models.InternImage(**settings.network(), **arguments)
    return getattr(models, function_name(settings.variant))(**arguments)


def finished_model(settings, classes):
    """The model that is handed over, still random."""
    return build_model(settings, classes, None)


def objective(row, classes):
    """Arguments of `compile`."""
    return {
        "loss": training.loss(row),
        "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
    }


def batches(settings, row, images, threads):
    """Batches for training and for validation."""
    classes = len(images.class_names)
    common = {"size": settings.resolution, "seed": settings.seed, "threads": threads}
    kind, balancing = ImageFiles, {}
    if settings.class_weights == "balanced":
        from keras_internimage.data import class_weights

        kind = WeightedImageFiles
        found = class_weights([label for _, label in images.train], classes)
        balancing["class_weights"] = found
    if settings.sampling == "balanced":
        balancing["sampling"] = "balanced"
    train = kind.for_training(
        images.train,
        classes,
        batch_size=settings.batch_size,
        recipe=row,
        multiple=settings.accumulation,
        **balancing,
        **common,
    )
    validation = ImageFiles(
        images.validation,
        classes,
        batch_size=min(settings.batch_size, len(images.validation)),
        training=False,
        **common,
    )
    return train, validation


def measures(settings, images, average):
    """Callbacks that measure what `objective` does not; there are none."""
    return []


def write_labels(folder, settings, images):
    """Writes what a finished model needs beside it."""
    labels.Labels(images.class_names, settings.resolution, settings.variant).write(folder)


def results(model, settings, images, validation, common):
    """The `Results` of a finished model; `common` is what both tasks tell."""
    from keras_internimage.report import Results

    positions, scores = _scores(model, validation)
    files = [images.validation[position] for position in positions]
    return Results(
        class_names=list(images.class_names),
        labels=np.array([label for _, label in files]),
        scores=scores,
        files=[path for path, _ in files],
        read=_upright,
        train_counts=np.bincount(
            [label for _, label in images.train], minlength=len(images.class_names)
        ),
        **common(),
    )


def _scores(model, validation):
    """Positions of the validation images that can be read, and their probabilities."""
    from keras_internimage.predictor import probabilities
    from keras_internimage.progress import Progress

    found = {}
    with Progress("Validating the model", len(validation)) as progress:
        for index in range(len(validation)):
            images, _, positions = validation.batch(index)
            found.update(zip(positions, probabilities(model, images), strict=True))
            progress.advance()
    return list(found), np.stack(list(found.values()))


def _upright(path):
    from keras_internimage.preprocessing import read_image

    return read_image(path)
