"""Colours of the pictures and the page, and what all pictures share."""

import contextlib
import dataclasses
import io

from keras_internimage.report.lettering import without_font_warnings


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours by their task."""

    page: str  # behind everything
    surface: str  # behind pictures and tables
    ink: str
    muted: str  # captions, axes
    line: str  # rules, grids
    accent: str  # validation; the end of the colour scale
    second: str  # training
    wrong: str


LIGHT = Theme(
    page="#f7f7f5",
    surface="#ffffff",
    ink="#22262b",
    muted="#686f78",
    line="#e3e4e2",
    accent="#2f6690",
    second="#a3a9b0",
    wrong="#b4472f",
)
DARK = Theme(
    page="#15181b",
    surface="#1c2024",
    ink="#e4e6e8",
    muted="#9aa1a9",
    line="#31363c",
    accent="#7fb4dc",
    second="#737b84",
    wrong="#e58a70",
)


@contextlib.contextmanager
def drawing(families=("DejaVu Sans",)):
    """A context to draw in: a user's matplotlibrc changes nothing, and `$` starts no formula."""
    from matplotlib import style

    own = {"font.family": list(families), "text.parse_math": False, "text.usetex": False}
    with style.context(["default", own]), without_font_warnings():
        yield


def figure(width, height, theme, **options):
    """An empty figure of that many inches, on the theme's surface."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=theme.surface, **options)


def plain(axes, theme):
    """Axes with two quiet spines and a grid behind the data."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.line)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=0, pad=5)
    axes.grid(color=theme.line, linewidth=0.7)
    axes.set_axisbelow(True)


def title(axes, text, theme):
    """A title above the axes, at the left."""
    axes.set_title(text, loc="left", color=theme.ink, fontsize=11, fontweight="bold", pad=10)


def legend(axes, theme, columns):
    """A legend above the axes, at the right, beside the title."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.02, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.muted,
        handlelength=1.1,
        handletextpad=0.5,
        columnspacing=1.1,
        borderaxespad=0.2,
    )


def colour_scale(theme):
    """From the surface to the accent."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", [theme.surface, theme.accent])


def png(made, dpi=160):
    """The figure as bytes of a PNG file."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=dpi, facecolor=made.get_facecolor())
    return buffer.getvalue()
