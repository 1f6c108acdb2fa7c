"""What the pictures show, in words: their alternative texts."""

import numpy as np

from keras_internimage.report import metrics
from keras_internimage.report.curves import PANELS, values_of
from keras_internimage.report.text import clean, count, percent

# What is better: more or less.
_RISING = {"Loss": False, "Accuracy": True, "mIoU": True, "Box AP": True, "Mask AP": True}


def curve(history, title):
    """One panel of `curves`: where its lines begin, are best, and end."""
    if title == "Learning rate":
        return f"{title} over the epochs: {_rate(values_of(history, PANELS[title][0]))}."
    word = title[0].lower() + title[1:]
    training, validation = (values_of(history, key) for key in PANELS[title])
    lines = [
        _course(f"{kind} {word}", values, _RISING[title])
        for kind, values in (("validation", validation), ("training", training))
        if values.size
    ]
    return f"{title} over the epochs: {'; '.join(lines)}."


def confusion(counts, names, unit="image"):
    """The confusion matrix: how much of it is right, and what is confused most."""
    right, total = int(np.trace(counts)), int(counts.sum())
    text = f"Confusion matrix of {count(len(counts), 'class', 'classes')}: "
    text += f"{right:,} of {count(total, unit)} on its diagonal, classified correctly."
    for true, predicted, images in metrics.confused_pairs(counts, 1):
        true, predicted = clean(names[true]), clean(names[predicted])
        text += f" Most often, {true} is taken for {predicted}: {count(images, unit)}."
    return text


def mistake(mistake, names):
    """A thumbnail of the worst mistakes."""
    return (
        f"{mistake.path}, an image of {clean(names[mistake.true])}, "
        f"taken for {clean(names[mistake.predicted])} with {percent(mistake.probability)}"
    )


def _course(label, values, rising):
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return f"{label} has not one finite value"
    first, last = finite[0], finite[-1]
    signed = np.where(np.isfinite(values), values if rising else -values, -np.inf)
    best = int(np.argmax(signed))
    end = f", and is {values[last]:.4g} in epoch {last + 1}, the last" if last != best else ""
    if best == first:
        better = ", its best" if end else ""
        return f"{label} is {values[best]:.4g} in epoch {best + 1}{better}{end}"
    verb = "rises" if rising else "falls"
    return f"{label} {verb} from {values[first]:.4g} to {values[best]:.4g} in epoch {best + 1}{end}"


def _rate(values):
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return "not one finite value"
    first, highest, last = (
        finite[0],
        int(np.argmax(np.where(np.isfinite(values), values, -np.inf))),
        finite[-1],
    )
    text = f"{values[first]:.3g} in epoch {first + 1}"
    if highest not in (first, last):
        text += f", at most {values[highest]:.3g} in epoch {highest + 1}"
    return text + (f", {values[last]:.3g} in epoch {last + 1}, the last" if last != first else "")
