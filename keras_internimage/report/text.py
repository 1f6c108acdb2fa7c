"""Texts of users, made fit to be shown, and numbers as words."""

import pathlib
import unicodedata

import numpy as np

DASH = "–"


def clean(text):
    """One line of text that can be encoded.

    Control characters become spaces. A byte of a file's name that is not UTF-8, and hence a lone
    surrogate in Python, becomes the replacement character.
    """
    text = unicodedata.normalize("NFC", str(text))
    kinds = {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "\N{REPLACEMENT CHARACTER}"}
    return "".join(kinds.get(unicodedata.category(x), x) for x in text)


def short_path(path):
    """The file's name and its folder's, enough to find an image of a folder by class."""
    return "/".join(pathlib.Path(path).parts[-2:])


def number(value, digits):
    """`value` with that many digits after the point; a dash where it is not finite."""
    return f"{value:,.{digits}f}" if np.isfinite(value) else DASH


def share(value):
    """Of 1, in percent with one digit; a dash where it is not finite."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if np.isfinite(value) else DASH


def percent(value):
    """Of 1, in whole percent, but 100 % only where it is that."""
    rounded = f"{np.floor(value * 1000) / 10:.1f}" if 0.995 <= value < 1 else f"{100 * value:.0f}"
    return f"{rounded}\N{NO-BREAK SPACE}%"


def count(amount, one, many=None):
    """`1 image`, `2 images`; `many` is the plural where it is not `one` and an s."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def duration(seconds):
    """`1 h 23 min`, `4 min 5 s` or `7 s`: the two largest units."""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60
    if hours:
        return f"{hours:,} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
