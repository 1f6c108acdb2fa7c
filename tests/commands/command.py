"""The command in this process, and options that make it quick."""

from small_models import SMALL, as_options

from keras_internimage.commands.train import cli

NETWORK = [*as_options(SMALL), "--resolution", "32"]
QUICK = [*NETWORK, *"--epochs 1 --batch-size 8 --recipe finetune".split()]


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])
