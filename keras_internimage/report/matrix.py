"""The confusion matrix, readable for 2 and for 1000 classes."""

import dataclasses

import numpy as np

from keras_internimage.report import metrics, style

LABEL_WIDTH = 118  # points; longer names are shortened
SMALLEST = 5.5  # points; smaller text is not written
MANY = 30  # above that many classes, confused pairs say more than the matrix does
PAIRS = 20
PAIRS_WIDTH = 5.6  # inches


@dataclasses.dataclass(frozen=True)
class Plan:
    """What fits into a matrix of that many classes."""

    side: float  # inches
    label_size: float  # points
    number_size: float  # points; 0 where numbers do not fit
    step: int  # every step-th class is named

    @classmethod
    def of(cls, counts):
        classes = len(counts)
        side = float(np.clip(0.52 * classes, 2.4, 7.5))
        cell = side * 72 / classes
        # A digit of DejaVu Sans is 0.64 of its size wide.
        numbers = min(10.5, 0.88 * cell / (0.64 * len(str(counts.max(initial=0)))), 0.6 * cell)
        step = 1 if cell * 0.86 >= SMALLEST else int(np.ceil(11 / cell))
        label = min(9.0, cell * 0.86) if step == 1 else 6.5
        return cls(side, label, numbers if numbers >= SMALLEST else 0.0, step)


def draw(counts, names, theme, lettering, pairs=None, percent=False):
    """A figure of the matrix: colour is the share of the true class, numbers are images.

    Args:
        counts: `(classes, classes)`, of `metrics.confusion`.
        names: the classes' names, drawable.
        theme: `style.LIGHT` or `style.DARK`.
        lettering: the `lettering.Lettering` of the names.
        pairs: whether the most confused pairs stand beside the matrix. None: above 30 classes.
        percent: whether the numbers are the shares, in percent: pixels are too many to be read.
    """
    numbers = percents(counts) if percent else counts
    plan = Plan.of(numbers)
    pairs = len(counts) > MANY if pairs is None else pairs
    confused = metrics.confused_pairs(counts, PAIRS) if pairs else []
    shown = names[:: plan.step]
    labels = [lettering.fitted(name, plan.label_size, LABEL_WIDTH) for name in shown]
    widths = [lettering.width(label, plan.label_size) / 72 for label in labels]
    # Where names fit beside each other they are level, else they stand.
    level = max(widths) < plan.side / len(counts) * 0.92
    left = max(widths) + 0.5
    below = 0.62 if level else max(widths) + 0.5
    scale_width = 0.85
    pairs_width = PAIRS_WIDTH if confused else 0.0
    width = left + plan.side + scale_width + pairs_width
    height = below + plan.side + 0.25
    made = style.figure(width, height, theme)

    def place(x, y, w, h):
        return made.add_axes([x / width, y / height, w / width, h / height])

    axes = place(left, below, plan.side, plan.side)
    image = _heat_map(axes, counts, numbers, plan, theme)
    _name_classes(axes, labels, plan, level, theme)
    inch = 1 / plan.side  # of the matrix, in its own coordinates
    every = "" if plan.step == 1 else f" (every {_ordinal(plan.step)} is named)"
    words = {"transform": axes.transAxes, "color": theme.muted, "fontsize": 9}
    words |= {"ha": "center", "va": "center"}
    axes.text(0.5, -(below - 0.2) * inch, f"predicted class{every}", **words)
    axes.text(-(left - 0.2) * inch, 0.5, f"true class{every}", rotation=90, **words)
    _scale(place(left + plan.side + 0.15, below, 0.11, min(plan.side, 2.4)), image, theme)
    if confused:
        x = left + plan.side + scale_width
        panel = place(x, below, pairs_width, plan.side)
        _list_pairs(panel, confused, counts, names, theme, lettering, percent)
    return made


def percents(counts):
    """Shares of the true class in whole percent."""
    return np.rint(100 * metrics.shares(counts)).astype(int)


def _heat_map(axes, counts, numbers, plan, theme):
    from matplotlib.colors import PowerNorm

    share = metrics.shares(counts)
    # A single mistake among many classes is a dot of few pixels: the root makes it visible.
    norm = PowerNorm(0.5 if len(counts) > MANY else 1.0, 0, 1)
    image = axes.imshow(
        share, cmap=style.colour_scale(theme), norm=norm, interpolation="nearest", aspect="auto"
    )
    axes.spines[:].set_color(theme.line)
    if plan.number_size:
        edges = np.arange(1, len(counts)) - 0.5
        axes.hlines(edges, -0.5, len(counts) - 0.5, color=theme.line, linewidth=0.6)
        axes.vlines(edges, -0.5, len(counts) - 0.5, color=theme.line, linewidth=0.6)
        for (row, column), count in np.ndenumerate(numbers):
            if count:
                axes.text(
                    column,
                    row,
                    str(count),
                    ha="center",
                    va="center_baseline",
                    fontsize=plan.number_size,
                    color=theme.surface if norm(share[row, column]) > 0.55 else theme.ink,
                )
    return image


def _name_classes(axes, labels, plan, level, theme):
    where = [i * plan.step for i in range(len(labels))]
    axes.set_yticks(where, labels)
    turned = {} if level else {"rotation": 90, "ha": "center", "va": "top"}
    axes.set_xticks(where, labels, **turned)
    axes.tick_params(colors=theme.ink, labelsize=plan.label_size, length=0, pad=5)
    if plan.step > 1:
        axes.tick_params(length=3, color=theme.line)


def _scale(axes, image, theme):
    from matplotlib.ticker import PercentFormatter

    bar = image.figure.colorbar(image, cax=axes, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.outline.set_edgecolor(theme.line)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0, pad=4)


def _list_pairs(axes, confused, counts, names, theme, lettering, percent):
    """Lines of text with a bar each, top down, in inches."""
    width, height = PAIRS_WIDTH, axes.get_position().height * axes.figure.get_figheight()
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def say(x, y, text, size=8.5, colour=theme.muted, **options):
        options = {"va": "center_baseline", **options}
        axes.text(x, y, text, fontsize=size, color=colour, **options)

    say(0.3, 0.1, "Most confused pairs", 11, theme.ink, fontweight="bold", va="top")
    what = "share of the true class" if percent else "images (share of the true class)"
    say(0.3, 0.38, f"true class, predicted class, {what}", 8, va="top")
    line = min(0.33, (height - 0.85) / len(confused))
    most = confused[0][2]
    for i, (true, predicted, images) in enumerate(confused):
        y = 0.85 + (i + 0.5) * line
        for x, name in ((0.3, names[true]), (2.03, names[predicted])):
            say(x, y, lettering.fitted(name, 8.5, 1.5 * 72), colour=theme.ink)
        say(1.84, y, "→")
        long = 0.8 * images / most
        axes.barh(y, long, left=3.7, height=0.09, color=theme.wrong)
        share = f"{images / counts[true].sum():.0%}"
        say(3.78 + long, y, share if percent else f"{images} ({share})", 8)


def _ordinal(number):
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 * (number // 10 % 10 != 1), "th")
    return f"{number}{ending}"
