"""Precision over recall, of boxes and of masks."""

import numpy as np

from keras_internimage.data.coco_metrics import RECALLS
from keras_internimage.report import style
from keras_internimage.report.text import share

_SIZE = (4.6, 3.2)  # inches


def draw(scores, theme):
    """A figure of `CocoScores`: precision at each recall, at an overlap of half."""
    from matplotlib.ticker import PercentFormatter

    made = style.figure(*_SIZE, theme, layout="constrained")
    axes = made.subplots()
    style.plain(axes, theme)
    lines = [("boxes", scores.box, theme.accent), ("masks", scores.mask, theme.second)]
    known = [line for line in lines if line[1] is not None and np.isfinite(line[1].curve).any()]
    for name, precision, colour in known:
        axes.plot(RECALLS, precision.curve, color=colour, linewidth=2, label=name, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("recall", color=theme.muted, fontsize=8.5)
    style.title(axes, "Precision", theme)
    if known:
        style.legend(axes, theme, columns=2)
    else:
        words = {"color": theme.muted, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "no objects to find", transform=axes.transAxes, **words)
    return made


def describe(scores):
    """The figure in words."""
    parts = []
    for name, precision in (("boxes", scores.box), ("masks", scores.mask)):
        if precision is not None and np.isfinite(precision.curve).any():
            middle = precision.curve[len(RECALLS) // 2]
            parts.append(f"{name}: {share(middle)} at half of the recall")
    return "Precision over recall at an overlap of 0.5. " + ("; ".join(parts) or "No objects") + "."
