"""`python -m keras_internimage.train` is `internimage-train`."""

import sys

from keras_internimage.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
