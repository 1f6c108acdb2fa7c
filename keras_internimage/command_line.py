"""What all command lines share. Imports nothing that takes long."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

from keras_internimage import files


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


def add_model(made: argparse.ArgumentParser) -> None:
    """Adds the argument MODEL: a finished model, as `predictor.locate` finds it."""
    made.add_argument(
        "model",
        metavar="MODEL",
        help="folder of internimage-train, .keras file, the name of a published checkpoint "
        "(internimage-convert list), or a repository of the hub, hf://organisation/name",
    )


def add_images(made: argparse.ArgumentParser) -> None:
    """Adds the arguments IMAGE and --out: images, and a folder for the results of each."""
    made.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image, or folder (all images below it)"
    )
    made.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the results: new, empty, or of an earlier run",
    )


def check_out(out: pathlib.Path, option: str = "--out") -> None:
    """Raises ValueError unless the folder of an option can be made, or be written again."""
    files.check_folder(out)
    _check_parent(out, option)


def check_file(path: pathlib.Path, option: str, suffixes: tuple[str, ...]) -> None:
    """Raises ValueError unless the file of an option can be written, as `files.check_file`."""
    _check_parent(path, option)
    files.check_file(path, suffixes)


def _check_parent(path, option):
    if not path.absolute().parent.is_dir():
        raise ValueError(f"The folder of {option} must exist. Received: {option} {path}")


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Raises ValueError where one of these options is given and less than 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1. Received: --{option} {value}")


def remark(program: str) -> Callable[[str], None]:
    """A function that prints a remark of a command on standard error."""
    return lambda text: print(f"{program}: {text}", file=sys.stderr)


def exit_code(
    program: str, command: Callable[[argparse.Namespace], int], options: argparse.Namespace
) -> int:
    """What `command(options)` returns; 2 if it raises, with the message, 130 if it is stopped."""
    try:
        return command(options)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of strings as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
