"""Loss, accuracy, mIoU or average precision, and learning rate over the epochs."""

import numpy as np

from keras_internimage.report import metrics, style

PANELS = {  # of the history's keys: (training, validation)
    "Loss": ("loss", "val_loss"),
    "Accuracy": ("accuracy", "val_accuracy"),
    "mIoU": ("logits_mean_iou", "val_logits_mean_iou"),
    "Box AP": (None, "val_box_ap"),
    "Mask AP": (None, "val_mask_ap"),
    "Learning rate": ("learning_rate", None),
}
PANEL_SIZE = (4.3, 3.0)  # inches
MARKED = 20  # as many epochs or fewer are drawn with a mark each


def panels(history):
    """Titles of the panels for which there is something to draw."""
    return [
        title for title, keys in PANELS.items() if any(values_of(history, k).size for k in keys)
    ]


def draw(history, theme, titles=None):
    """A figure with one panel per title, side by side; None means all there are."""
    titles = panels(history) if titles is None else titles
    width, height = PANEL_SIZE
    if not titles:
        made = style.figure(width * 1.5, 1.2, theme)
        words = {"color": theme.muted, "ha": "center", "va": "center", "fontsize": 11}
        made.text(0.5, 0.5, "No history was recorded.", **words)
        return made
    made = style.figure(width * len(titles), height, theme, layout="constrained")
    made.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.04)
    for axes, title in zip(made.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
        _panel(axes, history, title, theme)
    return made


def _panel(axes, history, title, theme):
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style.plain(axes, theme)
    training, validation = (values_of(history, key) for key in PANELS[title])
    epochs = max(len(training), len(validation))
    best = metrics.best_epoch(history)
    lines = [(training, "training", theme.second), (validation, "validation", theme.accent)]
    if title == "Learning rate":
        lines = [(training, None, theme.accent)]
    finite = {}
    for values, label, colour in lines:
        if not values.size:
            continue
        finite[label] = np.isfinite(values)
        axes.plot(
            np.arange(1, len(values) + 1),
            np.where(finite[label], values, np.nan),
            color=colour,
            linewidth=2,
            solid_capstyle="round",
            marker="o" if len(values) <= MARKED or _has_isolated(finite[label]) else None,
            markersize=4,
            label=label,
            clip_on=False,
            zorder=3,
        )
    if best and best[1] in PANELS[title]:
        axes.plot(
            [best[0]],
            [best[2]],
            linestyle="none",
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=theme.ink,
            markeredgewidth=1.3,
            label="best",
            clip_on=False,
            zorder=4,
        )
    style.title(axes, title, theme)
    if title != "Learning rate":
        style.legend(axes, theme, columns=3)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim((0.5, 1.5) if epochs == 1 else (1, epochs))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_xlabel(_epochs_label(finite), color=theme.muted, fontsize=8.5)
    if not any(mask.any() for mask in finite.values()):
        axes.set(yticks=[])
        axes.text(
            0.5,
            0.5,
            "not one finite value",
            transform=axes.transAxes,
            color=theme.wrong,
            ha="center",
            va="center",
            fontsize=10,
        )


def values_of(history, key):
    """The values of the epochs, none where the history lacks the key."""
    return np.asarray(history.get(key, ()), float)


def _has_isolated(finite):
    """Whether a finite value has no finite neighbour, so that no line would show it."""
    beside = np.pad(finite, 1)
    return bool((finite & ~beside[:-2] & ~beside[2:]).any())


def _epochs_label(finite):
    missing = [
        f"{label or ''} {len(mask) - mask.sum()} of {len(mask)}".strip()
        for label, mask in finite.items()
        if not mask.all()
    ]
    return "epoch" + (f" (not finite: {', '.join(missing)})" if missing else "")
