"""What all command lines share. Imports nothing that takes long."""

import argparse
from collections.abc import Sequence


def parser(program: str, description: str, **options) -> argparse.ArgumentParser:
    """A command's `ArgumentParser`, with `--version`.

    Args:
        program: the command's name.
        description: what it does, in a sentence.
        **options: of `argparse.ArgumentParser`.
    """
    from keras_internimage import __version__

    made = argparse.ArgumentParser(prog=program, description=description, **options)
    made.add_argument("--version", action="version", version=f"{program} {__version__}")
    return made


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of strings as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
