"""`python -m keras_internimage.weights_convert`: see `cli`."""

import sys

from .cli import main

sys.exit(main())
