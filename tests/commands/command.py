"""The command in this process, and options that make it quick."""

from keras_internimage.commands.train import cli

NETWORK = "--channels 16 --depths 1 1 1 1 --groups 1 2 4 8 --resolution 32".split()
QUICK = [*NETWORK, *"--epochs 1 --batch-size 8 --recipe finetune".split()]


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])
