"""The commands in this process, and options that make them quick."""

import csv

import pytest
from small_models import SMALL, as_options

from keras_internimage import predictor
from keras_internimage.commands.train import cli

NETWORK = [*as_options(SMALL), "--resolution", "32"]
QUICK = [*NETWORK, *"--epochs 1 --batch-size 8 --recipe finetune".split()]


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])


def train(*arguments):
    """Trains; what was printed of the settings, by name."""
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(cli, "_print_table", printed.extend)
        assert main(*arguments) == 0
    return {name: value for name, value, _ in printed}


def rows(path):
    """The rows of a CSV file."""
    with open(path) as file:
        return list(csv.DictReader(file))


def refused_before_loading(command, loading, arguments, model, image, root, capsys):
    """What a command says of arguments that it refuses, before a model is loaded or a file written.

    In the arguments "{model}", "{image}" and "{root}" stand for these, "{root}/empty" is a folder
    without images, and what is written would be in "{root}/out". `loading` is the module that
    builds the task's models.
    """

    def begin(*_, **__):
        raise AssertionError("begun")

    (root / "empty").mkdir()
    given = [a.format(root=root, model=model, image=image) for a in arguments]
    out = [] if "--out" in given else ["--out", str(root / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "load_model", begin)
        patch.setattr(loading, "_build", begin)
        assert command.main([*given, *out]) == 2
    printed, errors = capsys.readouterr()
    assert printed == "" and not (root / "out").exists()
    assert errors.startswith(f"{command.PROGRAM}: error: ")
    return errors
