"""`python -m keras_internimage.commands.train` is `internimage-train`."""

import sys

from keras_internimage.commands.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
