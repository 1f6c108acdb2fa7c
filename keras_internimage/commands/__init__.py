"""The command lines: `internimage-train`, `internimage-predict`, `internimage-export`."""

import argparse


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
