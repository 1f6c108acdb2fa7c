"""Made-up trainings to report on."""

import numpy as np
from PIL import Image

from keras_internimage.report import Results


def history(epochs):
    x = np.arange(1, epochs + 1) / epochs
    return {
        "loss": list(2 * np.exp(-3 * x)),
        "accuracy": list(1 - 0.7 * np.exp(-3 * x)),
        "val_loss": list(2 * np.exp(-2 * x)),
        "val_accuracy": list(1 - 0.7 * np.exp(-2 * x)),
        "learning_rate": list(5e-4 * (1.01 - x)),
    }


def scores_of(labels, classes, accuracy, seed=0):
    """Probabilities, right for about that share."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(labels), classes))
    wrong = (labels + random.integers(1, max(classes, 2), len(labels))) % classes
    right = random.random(len(labels)) < accuracy
    logits[np.arange(len(labels)), np.where(right, labels, wrong)] += random.uniform(4, 9)
    scores = np.exp(logits)
    return scores / scores.sum(-1, keepdims=True)


def colour(index):
    """Of the image of that index, far from every other's for indices below 100."""
    return (index % 5 * 60, index // 5 % 5 * 60, index // 25 % 4 * 80)


def images(folder, number, size=(24, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(number)]
    for index, path in enumerate(paths):
        Image.new("RGB", size, colour(index)).save(path)
    return paths


def results(folder, names, number=60, epochs=5, accuracy=0.8, **others):
    labels = np.random.default_rng(1).integers(0, len(names), number)
    paths = images(folder, min(number, 100))
    return Results(
        class_names=names,
        history=history(epochs),
        labels=labels,
        scores=scores_of(labels, len(names), accuracy),
        files=[paths[index % len(paths)] for index in range(number)],
        **{
            "settings": {"variant": "tiny", "batch size": "32"},
            "skipped": [("a/broken.jpg", "truncated")],
            **others,
        },
    )
